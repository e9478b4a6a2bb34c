"""int4 as panels: float16 scales [K / group][16], minima likewise where there are any, and [K/8][16][4] bytes.

The low nibbles of four bytes are inputs 0 … 3, the high ones 4 … 7. Inputs are int8, with a scale for each group of a
token.
"""

from __future__ import annotations

import numpy as np

from chinchilla_lm.pack.panels import LANES, Bytes, from_panels, pad, round_up, rows_of, to_panels
from chinchilla_lm.pack.quantized import Quantized
from chinchilla_lm.pack.sides import from_side, side_bytes, to_side
from chinchilla_lm.pack.uniform import Uniform

STEP = 64


def step(group: int) -> int:
    """K is padded to a multiple of this."""
    return max(STEP, group)


def lay(rounded: Quantized) -> Bytes:
    """The bytes of a rounded matrix."""
    codes = pad(rounded.codes_NV, step(rounded.group), rounded.middle)
    sides = (rounded.scales_NG,) if rounded.minima_NG is None else (rounded.scales_NG, rounded.minima_NG)
    parts = [to_side(pad(one, 1), codes.shape[1] // rounded.group) for one in sides]
    nibbles = to_panels(codes, 8)
    packed = nibbles[..., :4] | (nibbles[..., 4:] << 4)
    return np.concatenate((*parts, packed.reshape(len(packed), -1)), axis=1).reshape(-1)


def read(packed: Bytes, outputs: int, inputs: int, how: Uniform) -> Quantized:
    """The rounded matrix of such bytes."""
    panels = rows_of(packed, outputs)
    side = side_bytes(round_up(inputs, step(how.group)) // how.group)
    count = 2 if how.asymmetric else 1
    pieces = np.ascontiguousarray(panels[:, side * count :]).reshape(len(panels), -1, LANES, 4)
    codes = from_panels(np.concatenate((pieces & 15, pieces >> 4), axis=3))
    groups = -(-inputs // how.group)
    scales, *minima = (from_side(panels[:, part * side : (part + 1) * side], groups)[:outputs] for part in range(count))
    return Quantized(codes[:outputs, :inputs], scales, minima[0] if minima else None, how.group, how.middle)
