"""What can be raced in one process: a model on torch, and in the engine.

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
from chinchilla_lm.models.transformer import Transformer
from chinchilla_lm.runtime.device import resolve_device
from chinchilla_lm.runtime.prepare import prepare
from chinchilla_lm.runtime.served import NativeForward
from chinchilla_lm.runtime.torch_backend import DTYPES, TorchBackend, dtype_of, read

TORCH, NATIVE = "chinchilla-torch", "chinchilla-native"


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """What to open; plain values, so that another process can open the same.

    path: a model as `checkpoint.load` takes it. task: None for the head that was saved.
    """

    engine: str
    path: str
    dtype: str
    device: str
    task: str | None = None


class Engine(Protocol):
    """A loaded model that can be timed. Ids are int64 [B, T] on the CPU, below `vocabulary`."""

    vocabulary: int
    model: Transformer  # prepared: what must be read and computed

    def generate(self, ids: Tensor, new_tokens: int) -> tuple[float, float]:
        """Seconds until the first new token, and seconds of the `new_tokens` − 1 steps after it."""

    def forward(self, ids: Tensor) -> Tensor:
        """What the head gives, on the CPU."""


def open_engine(spec: EngineSpec) -> Engine:
    """Load the model. Raises InputError for an unknown engine or a model that cannot be read."""
    if spec.engine == TORCH:
        return TorchEngine(spec)
    if spec.engine == NATIVE:
        return NativeEngine(spec)
    raise InputError(f"engine {spec.engine!r} is not one of {TORCH}, {NATIVE}; pass one of them")


class TorchEngine:
    """Our backend on torch. A head of random weights is as fast as a trained one, and so is accepted."""

    def __init__(self, spec: EngineSpec) -> None:
        device = resolve_device(spec.device)
        checkpoint = checkpoints.load(spec.path, task=spec.task)
        self.backend = TorchBackend.prepared(checkpoint.model, device, dtype_of(spec.dtype, device))
        self.model = self.backend.model
        self.vocabulary = self.model.config.vocab_size

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


class NativeEngine:
    """Our engine, on as many threads as torch has."""

    def __init__(self, spec: EngineSpec) -> None:
        model = checkpoints.load(spec.path, task=spec.task).model
        self.device = torch.device("cpu")
        self.served = NativeForward.compiled(model, DTYPES[spec.dtype], torch.get_num_threads())
        self.model = prepare(model, self.device, DTYPES[spec.dtype])
        self.vocabulary = model.config.vocab_size

    def generate(self, ids: Tensor, new_tokens: int) -> tuple[float, float]:
        """See Engine."""
        engine = self.served.model
        rows = list(ids.to(torch.int32).numpy())
        caches = [engine.cache(len(row) + new_tokens) for row in rows]

        def step(tokens: Tensor, _: Any) -> tuple[Tensor, Any]:
            return torch.from_numpy(engine.run(list(tokens.to(torch.int32).numpy()), caches)), None

        taken = _phases(lambda: step(ids, None), step, new_tokens, self.device)
        engine.rest()
        return taken

    def forward(self, ids: Tensor) -> Tensor:
        """See Engine."""
        return self.served(Batch(ids))


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
