"""A model on torch as an engine of a race."""

from __future__ import annotations

import time
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from chinchilla_lm.errors import InputError
from chinchilla_lm.models import checkpoint as checkpoints
from chinchilla_lm.models.batch import Batch
from chinchilla_lm.models.cache import KVCache
from chinchilla_lm.models.transformer import Transformer
from chinchilla_lm.runtime.device import resolve_device
from chinchilla_lm.runtime.engine.packed import is_packed
from chinchilla_lm.runtime.engine.unpacking import unpack_checkpoint
from chinchilla_lm.runtime.measuring.engines import EngineSpec, phases
from chinchilla_lm.runtime.measuring.roofline import ModelDemand
from chinchilla_lm.runtime.measuring.shape import Ids
from chinchilla_lm.runtime.torch_backend import TorchBackend, dtype_of, read


class TorchEngine:
    """Our backend on torch, a packed model by its twin. A head of random weights is as fast as a trained one, and so
    is accepted."""

    def __init__(self, spec: EngineSpec) -> None:
        if spec.cache != "auto":
            raise InputError(f"cache {spec.cache} is the native engine's; leave --cache away on torch")
        device = resolve_device(spec.device)
        load = unpack_checkpoint if is_packed(spec.path) else checkpoints.load
        self.backend = TorchBackend.prepared(
            load(spec.path, task=spec.task).model, device, dtype_of(spec.dtype, device)
        )
        self.demand = ModelDemand(self.backend.model)
        self.form = self.cache = str(self.backend.dtype).removeprefix("torch.")

    def generate(self, ids: Ids, new_tokens: int) -> tuple[float, float]:
        """See Engine."""
        return write_torch(self.backend.model, ids, new_tokens)

    @torch.inference_mode()
    def forward(self, ids: Ids) -> NDArray[Any]:
        """See Engine."""
        return self.backend.forward(Batch(torch.from_numpy(ids))).numpy()


@torch.inference_mode()
def write_torch(model: Transformer, ids: Ids, new_tokens: int) -> tuple[float, float]:
    """A whole request of a prepared model, greedy, over a cache: the seconds that `phases` gives."""
    device = model.embedding.tokens.weight.device
    prompts = torch.from_numpy(ids).to(device)
    caches: list[KVCache] = []

    def begin() -> Tensor:
        caches.append(KVCache(model, rows=ids.shape[0], capacity=ids.shape[1] + new_tokens))
        return step(prompts)

    def step(tokens: Tensor) -> Tensor:
        return read(model, tokens, caches[0]).argmax(-1, keepdim=True)

    return phases(begin, step, new_tokens, lambda: _now(device))


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
