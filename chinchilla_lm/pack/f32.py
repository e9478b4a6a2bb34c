"""float32, as it is."""

from __future__ import annotations

import numpy as np

from chinchilla_lm.pack.panels import Bytes, Floats, from_panels, pad, rows_of, to_panels

STEP = 16


def lay(matrix_NK: Floats) -> Bytes:
    """Panels of [K][16] floats."""
    return to_panels(pad(matrix_NK, STEP), 1).view(np.uint8).reshape(-1)


def read(packed: Bytes, outputs: int, inputs: int) -> Floats:
    """float32 [N, K]."""
    panels = rows_of(packed, outputs).view(np.float32)
    return from_panels(panels.reshape(len(panels), -1, 16, 1))[:outputs, :inputs]
