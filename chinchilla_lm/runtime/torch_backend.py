"""The model in torch, on any device: what every other backend is held against.

The cache has slots only for the attention links that are left, so a shortened model also needs less memory a token. The
head is applied to the last position alone: over a prompt of 512 tokens the decoder of a 135 M model with 49 k words
would else cost a quarter of the pass.

B rows, T positions, V vocabulary, C labels, D hidden features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from chinchilla_lm.data.batches import batches
from chinchilla_lm.data.encoded import Encoded
from chinchilla_lm.errors import InputError
from chinchilla_lm.models.batch import Batch
from chinchilla_lm.models.cache import KVCache
from chinchilla_lm.models.transformer import Transformer
from chinchilla_lm.pack.quantized import Quantized
from chinchilla_lm.runtime.device import resolve_dtype
from chinchilla_lm.runtime.prepare import prepare
from chinchilla_lm.runtime.sampling import check_whole

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}
# Positions a batch, padding included: enough to fill the cores, little enough for the activations of a long text.
BATCH_TOKENS = 4096


class TorchBackend:
    """A prepared model. Its calls are in inference mode and give float32 arrays."""

    name = "torch"

    def __init__(self, model: Transformer, pad_id: int = 0) -> None:
        self.model, self.pad_id = model, pad_id
        self.switches = model.config.switches
        weight = model.embedding.tokens.weight
        self.device, self.dtype = weight.device, weight.dtype

    @classmethod
    def prepared(
        cls,
        model: Transformer,
        device: torch.device,
        dtype: torch.dtype,
        pad_id: int = 0,
        codes: Mapping[str, Quantized] | None = None,
    ) -> TorchBackend:
        """On a copy of a model, which stays as it is. codes: of a packed model's matrices, by the names of parameters;
        on a GPU that has Triton they stay codes, elsewhere the matrices are what they mean."""
        if not codes or device.type != "cuda" or find_spec("triton") is None:
            return cls(prepare(model, device, dtype), pad_id)
        from chinchilla_lm.runtime.cuda.linear import pack_into

        ready = prepare(model, torch.device("cpu"), dtype, fold=False)
        pack_into(ready, codes, dtype)
        return cls(ready.to(device), pad_id)

    @torch.inference_mode()
    def forward(self, batch: Batch) -> Tensor:
        """What the head gives, float32 on the CPU: [B, T, V], [B, T, C], [B, C] or [B, D]."""
        return self.model(batch.to(self.device)).float().cpu()

    def outputs(self, windows: Sequence[Encoded]) -> list[NDArray[np.float32]]:
        """What the head gives for each window: [T, C], [C] or [D]."""
        found: list[NDArray[np.float32]] = [np.empty(0, np.float32)] * len(windows)
        for batch in batches(windows, max_tokens=BATCH_TOKENS, pad_id=self.pad_id):
            for row, output in zip(batch.rows, self.forward(batch.batch).numpy(), strict=True):
                tokens = len(windows[row].ids)
                found[row] = output[:tokens] if output.ndim == 2 else output
        return found

    def logits(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """[T, V] for token ids [T] of a language model."""
        found: NDArray[np.float32] = self.forward(Batch(torch.tensor([list(ids)])))[0].numpy()
        return found

    @torch.inference_mode()
    def cache(self, capacity: int) -> KVCache:
        """See generate.Model."""
        return KVCache(self.model, rows=1, capacity=capacity)

    @torch.inference_mode()
    def read(self, ids: Sequence[Sequence[int]], caches: Sequence[KVCache]) -> NDArray[np.float32]:
        """See generate.Model. One text after another: together they would need padding, and masks against it.

        Raises InputError for more than a cache has room for; whatever is raised, no cache has grown.
        """
        before = [cache.mark() for cache in caches]
        try:
            rows = [
                read(self.model, torch.tensor([list(new)], device=self.device), cache).float().cpu()
                for new, cache in zip(ids, caches, strict=True)
            ]
        except BaseException:
            for cache, mark in zip(caches, before, strict=True):
                cache.restore(mark)
            raise
        found: NDArray[np.float32] = torch.cat(rows).numpy()
        return found

    def best(
        self, ids: Sequence[Sequence[int]], caches: Sequence[KVCache]
    ) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """See generate.Model."""
        logits_BV = self.read(ids, caches)
        return logits_BV.argmax(1).astype(np.int32), logits_BV.max(1)


def read(model: Transformer, ids: Tensor, cache: KVCache) -> Tensor:
    """Read tokens int64 [B, T] after those in the cache, which grows by them; the last position's logits [B, V]."""
    x, context = model.embed(Batch(ids), cache)
    x = model.run(x, context)
    cache.advance(ids.shape[1])
    return model.head.classify(model.finish(x[:, -1]))


def set_threads(threads: int) -> None:
    """Set torch's CPU threads, for the whole process. Raises InputError for fewer than one."""
    check_whole("threads", threads, 1, "leave --threads away to use every core")
    torch.set_num_threads(threads)


def dtype_of(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    """`auto` or a name as torch has it. Raises InputError for any other name."""
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype == "auto":
        return resolve_dtype(dtype, device)
    if dtype not in DTYPES:
        raise InputError(f"dtype {dtype!r} is not one of auto, {', '.join(DTYPES)}; pass one of them")
    return DTYPES[dtype]
