"""What can be raced: our own session, and other programs that run the same model.

Every engine reads the same token ids at the same dtype and number of threads. `generate` reads the prompt, then feeds
greedy tokens one at a time over its cache, and times the two phases apart, which a single call from outside could not.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from chinchilla_lm.errors import InputError
from chinchilla_lm.models import checkpoint as checkpoints
from chinchilla_lm.models.batch import Batch
from chinchilla_lm.models.cache import KVCache
from chinchilla_lm.models.config import HeadKind
from chinchilla_lm.runtime.device import resolve_device
from chinchilla_lm.runtime.torch_backend import DTYPES, TorchBackend, dtype_of, read

OURS = "chinchilla-torch"
# Engines besides our own, by the name that --peers takes.
PEERS = ("transformers",)


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """What to open; plain values, so that another process can open the same.

    path: a model as `checkpoint.load` takes it, for a peer a Hugging Face folder. task: None for the head that was
    saved.
    auto_class: for transformers, the name of its class, from `auto_class`.
    """

    engine: str
    path: str
    dtype: str
    device: str
    task: str | None = None
    auto_class: str = ""


class Engine(Protocol):
    """A loaded model that can be timed. Ids are int64 [B, T] on the CPU, below `vocabulary`."""

    vocabulary: int

    def generate(self, ids: Tensor, new_tokens: int) -> tuple[float, float]:
        """Seconds until the first new token, and seconds of the `new_tokens` − 1 steps after it."""

    def forward(self, ids: Tensor) -> Tensor:
        """What the head gives, on the CPU."""


def open_engine(spec: EngineSpec) -> Engine:
    """Load the model. Raises InputError for an unknown engine or a model that cannot be read."""
    if spec.engine == OURS:
        return OwnEngine.load(spec)
    if spec.engine == "transformers":
        return TransformersEngine(spec)
    raise InputError(f"engine {spec.engine!r} is not one of {', '.join((OURS, *PEERS))}; pass one of them")


class OwnEngine:
    """Our backend on torch."""

    def __init__(self, backend: TorchBackend) -> None:
        self.backend = backend
        self.vocabulary = backend.model.config.vocab_size

    @classmethod
    def load(cls, spec: EngineSpec) -> OwnEngine:
        """The backend; a head of random weights is as fast as a trained one, and so is accepted."""
        model = checkpoints.load(spec.path, task=spec.task).model
        device = resolve_device(spec.device)
        return cls(TorchBackend.prepared(model, device, dtype_of(spec.dtype, device)))

    @torch.inference_mode()
    def generate(self, ids: Tensor, new_tokens: int) -> tuple[float, float]:
        """See Engine."""
        model, device = self.backend.model, self.backend.device
        ids = ids.to(device)

        def begin() -> tuple[Tensor, KVCache]:
            cache = KVCache(model, rows=ids.shape[0], capacity=ids.shape[1] + new_tokens)
            return read(model, ids, cache), cache

        return _phases(begin, lambda token, cache: (read(model, token, cache), cache), new_tokens, device)

    @torch.inference_mode()
    def forward(self, ids: Tensor) -> Tensor:
        """See Engine."""
        output: Tensor = self.backend.model(Batch(ids.to(self.backend.device)))
        return output.cpu()


class TransformersEngine:
    """Hugging Face transformers in eager mode, with the attention that it chooses by itself."""

    def __init__(self, spec: EngineSpec) -> None:
        import transformers

        transformers.utils.logging.disable_progress_bar()
        self.device = torch.device(spec.device)
        load = getattr(transformers, spec.auto_class).from_pretrained
        model = load(spec.path, dtype=DTYPES[spec.dtype], local_files_only=True, trust_remote_code=False)
        self.model = model.to(self.device).eval().requires_grad_(False)
        self.vocabulary = int(self.model.config.vocab_size)

    @torch.inference_mode()
    def generate(self, ids: Tensor, new_tokens: int) -> tuple[float, float]:
        """See Engine."""

        def step(ids: Tensor, cache: Any) -> tuple[Tensor, Any]:
            output = self.model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
            return output.logits[:, -1], output.past_key_values

        prompt = ids.to(self.device)
        return _phases(lambda: step(prompt, None), step, new_tokens, self.device)

    @torch.inference_mode()
    def forward(self, ids: Tensor) -> Tensor:
        """See Engine; without a head, the last hidden state."""
        output = self.model(input_ids=ids.to(self.device))
        found: Tensor = output.logits if hasattr(output, "logits") else output.last_hidden_state
        return found.cpu()


def auto_class(kind: HeadKind, causal: bool) -> str:
    """The class of transformers that loads a model with this head."""
    names: dict[HeadKind, str] = {
        "language-modeling": "AutoModelForCausalLM" if causal else "AutoModelForMaskedLM",
        "token-classification": "AutoModelForTokenClassification",
        "text-classification": "AutoModelForSequenceClassification",
        "ranking": "AutoModelForSequenceClassification",
        "embedding": "AutoModel",
    }
    return names[kind]


def _phases(
    begin: Callable[[], tuple[Tensor, Any]],
    step: Callable[[Tensor, Any], tuple[Tensor, Any]],
    new_tokens: int,
    device: torch.device,
) -> tuple[float, float]:
    """Seconds of the first token and of the rest; logits are [B, V], tokens [B, 1]."""
    started = _now(device)
    logits, cache = begin()
    token = logits.argmax(-1, keepdim=True)
    first = _now(device)
    for _ in range(new_tokens - 1):
        logits, cache = step(token, cache)
        token = logits.argmax(-1, keepdim=True)
    return first - started, _now(device) - first


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
