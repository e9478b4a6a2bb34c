"""int8 with a scale an output: w ≈ q · s, q in −127 … 127, the largest weight of the row being 127.

The inputs are rounded the same way, with a scale a token, when the product is made (Dettmers et al. 2022, LLM.int8(),
without its outliers in float16). Bytes hold q + 128, for one operand of the CPU's dot product must be unsigned.
"""

from __future__ import annotations

import numpy as np

from chinchilla_lm.pack.panels import ALIGNMENT, LANES, Bytes, Floats, from_panels, pad, rows_of, to_panels

STEP = 64
OFFSET = 128


def pack(matrix_NK: Floats) -> Bytes:
    """Panels of 16 float32 scales and [K/4][16][4] bytes."""
    padded = pad(np.asarray(matrix_NK, np.float32), STEP)
    scales = np.abs(padded).max(1, keepdims=True) / np.float32(127.0)
    safe = np.where(scales > 0, scales, np.float32(1.0))
    codes = (np.rint(padded / safe).astype(np.int16) + OFFSET).astype(np.uint8)
    weights = to_panels(codes, 4)
    head = scales.astype(np.float32).reshape(-1, LANES).view(np.uint8)
    return np.concatenate((head, weights.reshape(len(weights), -1)), axis=1).reshape(-1)


def unpack(packed: Bytes, outputs: int, inputs: int) -> Floats:
    """float32 [N, K]."""
    panels = rows_of(packed, outputs)
    scales = np.ascontiguousarray(panels[:, :ALIGNMENT]).view(np.float32).reshape(-1, 1)
    codes = from_panels(np.ascontiguousarray(panels[:, ALIGNMENT:]).reshape(len(panels), -1, LANES, 4))
    return ((codes.astype(np.float32) - OFFSET) * scales)[:outputs, :inputs]
