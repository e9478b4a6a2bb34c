"""The one layout of packed matrices: panels of 16 outputs, whose outputs are the lanes of a vector.

A product then needs no sum across lanes, and a panel is one forward stream of bytes. native/kernels.h has the layout of
each format; the C++ reads what is written here.

N outputs, K inputs; padded: N to 16, K to a format's step, with zeros or the code of zero. What stands behind
the inputs is multiplied with zeros.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

LANES = 16
ALIGNMENT = 64  # bytes: where each part of a panel starts

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]


def round_up(value: int, step: int) -> int:
    """The next multiple of `step`."""
    return -(-value // step) * step


def pad(matrix_NK: NDArray, step: int, zero: int = 0) -> NDArray:
    """`zero` up to N a multiple of 16, and K of `step`."""
    outputs, inputs = matrix_NK.shape
    added = (0, round_up(outputs, LANES) - outputs), (0, round_up(inputs, step) - inputs)
    return np.pad(matrix_NK, added, constant_values=zero) if added != ((0, 0), (0, 0)) else matrix_NK


def to_panels(matrix_NK: NDArray, together: int) -> NDArray:
    """[N / 16, K / together, 16, together]: `together` inputs of an output stand side by side."""
    outputs, inputs = matrix_NK.shape
    panels = matrix_NK.reshape(outputs // LANES, LANES, inputs // together, together)
    return np.ascontiguousarray(panels.transpose(0, 2, 1, 3))


def from_panels(panels: NDArray) -> NDArray:
    """What `to_panels` was given, [N, K]."""
    count, steps, lanes, together = panels.shape
    return np.ascontiguousarray(panels.transpose(0, 2, 1, 3)).reshape(count * lanes, steps * together)


def rows_of(packed: Bytes, outputs: int) -> Bytes:
    """The bytes of each panel, [N / 16, bytes]."""
    return packed.reshape(round_up(outputs, LANES) // LANES, -1)
