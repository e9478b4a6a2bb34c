"""int8: w ≈ q · s, with a float16 scale for each group of inputs of an output, or one a row.

q is in −127 … 127, as many steps below zero as above it.

The inputs of a product are rounded the same way when it is made, with a scale for each group of a token, or one a token
(Dettmers et al. 2022, LLM.int8(), without its outliers in float16). One scale a token is not enough for a small
language model, whose few outlying features set it: SmolLM2-135M's perplexity rose by 2.9 %, with groups of 64 by 0.4 %
(docs/log.md). Bytes hold q + 128, for one operand of the CPU's dot product must be unsigned.
"""

from __future__ import annotations

import numpy as np

from chinchilla_lm.pack.panels import ALIGNMENT, LANES, Bytes, Floats, from_panels, pad, round_up, rows_of, to_panels
from chinchilla_lm.pack.sides import finite_half, from_side, side_bytes, to_side

STEP = 64
OFFSET = 128
MOST = 127


def pack(matrix_NK: Floats, group: int, asymmetric: bool = False) -> Bytes:
    """Panels of scales and [K/4][16][4] bytes. group 0: one float32 scale a row."""
    assert not asymmetric
    padded = pad(np.asarray(matrix_NK, np.float32), STEP)
    outputs, inputs = padded.shape
    groups_NGJ = padded.reshape(outputs, -1, group or inputs)
    peaks = np.abs(groups_NGJ).max(2) / np.float32(MOST)
    if group:
        halves = finite_half(peaks)
        side, scales = to_side(halves), halves.astype(np.float32)
    else:
        scales = peaks
        side = np.ascontiguousarray(peaks.reshape(-1, LANES)).view(np.uint8)
    safe = np.where(scales > 0, scales, np.float32(1.0))[..., None]
    steps = groups_NGJ / safe
    np.rint(steps, out=steps)
    np.clip(steps, -MOST, MOST, out=steps)  # a scale that was rounded down to float16 leads beyond
    steps += OFFSET
    weights = to_panels(steps.astype(np.uint8).reshape(outputs, inputs), 4)
    return np.concatenate((side, weights.reshape(len(weights), -1)), axis=1).reshape(-1)


def unpack(packed: Bytes, outputs: int, inputs: int, group: int, asymmetric: bool = False) -> Floats:
    """float32 [N, K]."""
    assert not asymmetric
    panels = rows_of(packed, outputs)
    groups = round_up(inputs, STEP) // group if group else 1
    side = side_bytes(groups) if group else ALIGNMENT
    codes = from_panels(np.ascontiguousarray(panels[:, side:]).reshape(len(panels), -1, LANES, 4))
    if group:
        scales = from_side(panels[:, :side], groups)
    else:
        scales = np.ascontiguousarray(panels[:, :side]).view(np.float32).reshape(-1, 1, 1)
    values = (codes.astype(np.float32) - OFFSET).reshape(len(codes), groups, -1) * scales
    return values.reshape(len(codes), -1)[:outputs, :inputs]
