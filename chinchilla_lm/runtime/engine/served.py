"""A model as it will be served, called as a transformer is: a batch in, what the head gives out.

On torch that is the prepared transformer itself; on the engine it is this.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from chinchilla_lm.models.batch import Batch
from chinchilla_lm.models.transformer import Transformer
from chinchilla_lm.runtime.engine.compile import compile_model
from chinchilla_lm.runtime.engine.native import NativeModel
from chinchilla_lm.runtime.engine.program import Program


class NativeForward:
    """A program in the engine. Between calls its threads sleep, so that models can be timed in turn."""

    def __init__(self, program: Program, kind: str, threads: int) -> None:
        """kind: of the head."""
        self.model = NativeModel(program, threads)
        self.everywhere = kind in ("language-modeling", "token-classification")
        self.writes = kind == "language-modeling" and bool(program.header["causal"])

    @classmethod
    def compiled(cls, model: Transformer, dtype: torch.dtype, threads: int) -> NativeForward:
        """A model in bfloat16 or float32."""
        form = "bf16" if dtype == torch.bfloat16 else "f32"
        return cls(compile_model(model, form), model.config.head.kind, threads)

    def __call__(self, batch: Batch) -> Tensor:
        """float32 [B, T, V], [B, T, C], [B, C] or [B, D]; 0 where the batch is padded."""
        outputs = torch.from_numpy(self._run(batch, self.everywhere))
        if not self.everywhere:
            return outputs
        lengths = batch.lengths().tolist()
        if batch.mask is None:
            return outputs.unflatten(0, (len(lengths), -1))
        found = outputs.new_zeros(*batch.ids.shape, outputs.shape[1])
        found[batch.mask] = outputs
        return found

    def nats(self, batch: Batch, targets_BT: Tensor) -> Tensor:
        """How unexpected each target is, float32 [B, T]; 0 where there is none, that is where it is below 0."""
        lengths = batch.lengths().tolist()
        ids = _rows(batch.ids, lengths)
        targets = _rows(targets_BT, lengths)
        found = torch.zeros(targets_BT.shape)
        found[targets_BT >= 0] = torch.from_numpy(self.model.nats(ids, targets))
        self.model.rest()
        return found

    def read(self, batch: Batch) -> None:
        """A pass as a server has it: of a causal language model only the last position's logits."""
        self._run(batch, self.everywhere and not self.writes)

    def _run(self, batch: Batch, everywhere: bool) -> np.ndarray:
        lengths = batch.lengths().tolist()
        segments = None if batch.segments is None else _rows(batch.segments, lengths)
        found = self.model.run(_rows(batch.ids, lengths), segments=segments, everywhere=everywhere)
        self.model.rest()
        return found


def _rows(numbers_BT: Tensor, lengths: list[int]) -> list[np.ndarray]:
    """Each row without its padding."""
    return [row[:length].to(torch.int32).numpy() for row, length in zip(numbers_BT, lengths, strict=True)]
