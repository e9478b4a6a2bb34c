"""int4 in groups of inputs that share a float16 scale: w ≈ (q − 8) · s, or q · s + m with a float16 minimum.

q is in 0 … 15. Symmetric groups map their largest magnitude to 7 (or to −8 with its own sign, as ggml's Q4_0 does,
whichever is nearer in squares); asymmetric ones their span to 0 … 15, as Q4_1. A matrix that Q4_1 made therefore comes
back as it was. Inputs are int8, with a scale for each group of a token.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from chinchilla_lm.pack.panels import LANES, Bytes, Floats, from_panels, pad, round_up, rows_of, to_panels
from chinchilla_lm.pack.sides import finite_half, from_side, side_bytes, to_side

GROUPS = (32, 64, 128)
STEP = 64
MIDDLE = 8


def step(group: int) -> int:
    """K is padded to a multiple of this."""
    return max(STEP, group)


def pack(matrix_NK: Floats, group: int, asymmetric: bool) -> Bytes:
    """Panels of float16 scales [K / group][16], minima likewise if asymmetric, and [K/8][16][4] bytes."""
    padded = pad(np.asarray(matrix_NK, np.float32), step(group))
    outputs, inputs = padded.shape
    groups_NGJ = padded.reshape(outputs, inputs // group, group)
    codes, scales, minima = (_asymmetric if asymmetric else _symmetric)(groups_NGJ)
    parts = [to_side(scales)] + ([to_side(minima)] if asymmetric else [])
    nibbles = to_panels(codes.reshape(outputs, inputs), 8)
    packed = nibbles[..., :4] | (nibbles[..., 4:] << 4)
    return np.concatenate((*parts, packed.reshape(len(packed), -1)), axis=1).reshape(-1)


def unpack(packed: Bytes, outputs: int, inputs: int, group: int, asymmetric: bool) -> Floats:
    """float32 [N, K]."""
    panels = rows_of(packed, outputs)
    groups = round_up(inputs, step(group)) // group
    side = side_bytes(groups)
    pieces = np.ascontiguousarray(panels[:, side * (2 if asymmetric else 1) :]).reshape(len(panels), -1, LANES, 4)
    codes = from_panels(np.concatenate((pieces & 15, pieces >> 4), axis=3)).reshape(-1, groups, group)
    scales = from_side(panels[:, :side], groups)
    values = codes.astype(np.float32) - (0 if asymmetric else MIDDLE)
    values = values * scales
    if asymmetric:
        values = values + from_side(panels[:, side : 2 * side], groups)
    return values.reshape(len(codes), -1)[:outputs, :inputs]


def _symmetric(groups_NGJ: Floats) -> tuple[NDArray[np.uint8], NDArray[np.float16], NDArray[np.float16]]:
    """Codes, scales [N, G], and no minima: the nearer of two scales for each group."""
    at = np.abs(groups_NGJ).argmax(2)[..., None]
    peak = np.take_along_axis(groups_NGJ, at, 2)[..., 0]
    best = None
    for scales in (np.abs(peak) / 7, peak / -8):
        halves = finite_half(scales)
        codes = _round(groups_NGJ, halves.astype(np.float32)[..., None], MIDDLE)
        error = ((codes.astype(np.float32) - MIDDLE) * halves.astype(np.float32)[..., None] - groups_NGJ) ** 2
        found = (error.sum(2), codes, halves)
        if best is None:
            best = found
        else:
            nearer = found[0] < best[0]
            best = (
                np.where(nearer, found[0], best[0]),
                np.where(nearer[..., None], found[1], best[1]),
                np.where(nearer, found[2], best[2]),
            )
    assert best is not None
    return best[1], best[2], best[2]


def _asymmetric(groups_NGJ: Floats) -> tuple[NDArray[np.uint8], NDArray[np.float16], NDArray[np.float16]]:
    low, high = groups_NGJ.min(2), groups_NGJ.max(2)
    scales, minima = finite_half((high - low) / 15), finite_half(low)
    shifted = groups_NGJ - minima.astype(np.float32)[..., None]
    return _round(shifted, scales.astype(np.float32)[..., None], 0), scales, minima


def _round(values: Floats, scales: Floats, middle: int) -> NDArray[np.uint8]:
    safe = np.where(scales != 0, scales, np.float32(1.0))
    return np.clip(np.rint(values / safe) + middle, 0, 15).astype(np.uint8)
