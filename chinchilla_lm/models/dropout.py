"""Dropout that follows from the row, whatever batch the row is in and whichever process has it.

torch draws one stream of random numbers for a whole batch: what a row loses depends on the rows before it. Here the
number of each feature is a hash (splitmix64, Steele et al. 2014) of the row's key, the place in the model, the position
and the feature, so that a batch that is parted over processes or into pieces drops what it would have dropped whole.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Of splitmix64, as signed numbers.
_STEP, _FIRST, _SECOND = (
    constant - (1 << 64) for constant in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
)
_BITS = 24  # of a number that is compared: a share is met to 1 / 2^24


def mixed(numbers: Tensor) -> Tensor:
    """int64, each number's bits well mixed."""
    numbers = (numbers ^ _shifted(numbers, 30)) * _FIRST
    numbers = (numbers ^ _shifted(numbers, 27)) * _SECOND
    return numbers ^ _shifted(numbers, 31)


def _shifted(numbers: Tensor, bits: int) -> Tensor:
    """To the right, zeros from the left."""
    return numbers >> bits & (1 << 64 - bits) - 1


def keys_of(rows: list[int], seed: int, step: int) -> Tensor:
    """A key for each row of a batch, int64 [B]: rows are numbers of windows, whose keys change with the step."""
    base = mixed(mixed(torch.tensor([seed])) + step)
    return mixed(base + torch.tensor(rows))


def kept(keys_B: Tensor, place: int, share: float, *shape: int) -> Tensor:
    """bool [B, *shape]: False for about `share` of the places. place: in the model; shape: of a row, [T] or [T, D]."""
    count = 1
    for size in shape:
        count *= size
    numbers = torch.arange(count, device=keys_B.device) * _STEP
    drawn = mixed(mixed(keys_B + place)[:, None] + numbers)
    return (_shifted(drawn, 64 - _BITS) >= round(share * (1 << _BITS))).view(-1, *shape)
