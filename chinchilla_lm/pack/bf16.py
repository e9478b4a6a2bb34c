"""bfloat16: the upper half of a float32, rounded to the nearest, ties to even."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from chinchilla_lm.pack.panels import Bytes, Floats, from_panels, pad, rows_of, to_panels

STEP = 32


def to_halves(values: Floats) -> NDArray[np.uint16]:
    """The bits of bfloat16 numbers, of the same shape."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = bits >> 16
    rounded &= 1
    rounded += 0x7FFF
    rounded += bits
    rounded >>= 16
    halves = rounded.astype(np.uint16)
    nan = np.isnan(values)
    return np.where(nan, np.uint16(0x7FC0), halves) if nan.any() else halves


def from_halves(halves: NDArray[np.uint16]) -> Floats:
    """The float32 numbers of bfloat16 bits."""
    return (halves.astype(np.uint32) << 16).view(np.float32)


def lay(matrix_NK: Floats) -> Bytes:
    """Panels of [K/2][16][2] bfloat16."""
    return to_panels(to_halves(pad(matrix_NK, STEP)), 2).view(np.uint8).reshape(-1)


def read(packed: Bytes, outputs: int, inputs: int) -> Floats:
    """float32 [N, K]."""
    panels = rows_of(packed, outputs).view(np.uint16)
    return from_halves(from_panels(panels.reshape(len(panels), -1, 16, 2)))[:outputs, :inputs]
