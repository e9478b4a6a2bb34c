"""int8 as panels: float16 scales [K / 64][16], or one float32 a row, and [K/4][16][4] bytes.

The inputs of a product are rounded the same way when it is made, with a scale for each group of a token, or one a token
(Dettmers et al. 2022, LLM.int8(), without its outliers in float16). One scale a token is not enough for a small
language model, whose few outlying features set it: SmolLM2-135M's perplexity rose by 2.9 %, with groups of 64 by 0.4 %
(docs/log.md). Bytes hold q + 128, for one operand of the CPU's dot product must be unsigned.
"""

from __future__ import annotations

import numpy as np

from chinchilla_lm.pack.panels import ALIGNMENT, LANES, Bytes, from_panels, pad, round_up, rows_of, to_panels
from chinchilla_lm.pack.quantized import Quantized, Scales
from chinchilla_lm.pack.sides import from_side, side_bytes, to_side
from chinchilla_lm.pack.uniform import Uniform

STEP = 64


def lay(rounded: Quantized) -> Bytes:
    """The bytes of a rounded matrix."""
    codes = pad(rounded.codes_NV, STEP, rounded.middle)
    weights = to_panels(codes, 4)
    if rounded.group:
        side = to_side(pad(rounded.scales_NG, 1), codes.shape[1] // rounded.group)
    else:
        side = np.ascontiguousarray(pad(rounded.scales_NG, 1).reshape(-1, LANES)).view(np.uint8)
    return np.concatenate((side, weights.reshape(len(weights), -1)), axis=1).reshape(-1)


def read(packed: Bytes, outputs: int, inputs: int, how: Uniform) -> Quantized:
    """The rounded matrix of such bytes."""
    panels = rows_of(packed, outputs)
    groups = -(-inputs // how.group) if how.group else 1
    side = side_bytes(round_up(inputs, STEP) // how.group) if how.group else ALIGNMENT
    codes = from_panels(np.ascontiguousarray(panels[:, side:]).reshape(len(panels), -1, LANES, 4))
    head = np.ascontiguousarray(panels[:, :side])
    scales: Scales = from_side(head, groups) if how.group else head.view(np.float32).reshape(-1, 1)
    return Quantized(codes[:outputs, :inputs], scales[:outputs], None, how.group, how.middle)
