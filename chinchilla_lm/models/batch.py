"""What goes into a model: token ids, and a mask only where there is padding.

Shapes: B rows, T positions. Padding stands on the right, so position t of every row is t.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Batch:
    """ids int64 [B, T]; mask bool [B, T] (True: a real token), None where nothing is padded; segments int64 or None."""

    ids: Tensor
    mask: Tensor | None = None
    segments: Tensor | None = None

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        mask = None if self.mask is None else self.mask.to(device)
        segments = None if self.segments is None else self.segments.to(device)
        return Batch(self.ids.to(device), mask, segments)

    def lengths(self) -> Tensor:
        """Number of real tokens of each row, int64 [B]."""
        if self.mask is None:
            return torch.full((self.ids.shape[0],), self.ids.shape[1], dtype=torch.int64, device=self.ids.device)
        return self.mask.sum(1)

    @property
    def tokens(self) -> int:
        """Number of real tokens."""
        return self.ids.numel() if self.mask is None else int(self.mask.sum())
