"""What goes into a model: token ids, and a mask only where there is padding.

Shapes: B rows, T positions. Padding stands on the right, so position t of every row is t.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Batch:
    """ids int64 [B, T]; mask bool [B, T] (True: a real token), None where nothing is padded; segments int64 or None.

    keys: int64 [B], from which dropout follows (models/dropout.py); None where nothing is dropped.
    """

    ids: Tensor
    mask: Tensor | None = None
    segments: Tensor | None = None
    keys: Tensor | None = None

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        others = (None if one is None else one.to(device) for one in (self.mask, self.segments, self.keys))
        return Batch(self.ids.to(device), *others)

    def lengths(self) -> Tensor:
        """Number of real tokens of each row, int64 [B]."""
        if self.mask is None:
            return torch.full((self.ids.shape[0],), self.ids.shape[1], dtype=torch.int64, device=self.ids.device)
        return self.mask.sum(1)

    @property
    def tokens(self) -> int:
        """Number of real tokens."""
        return self.ids.numel() if self.mask is None else int(self.mask.sum())
