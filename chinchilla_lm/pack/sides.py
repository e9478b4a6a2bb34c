"""What stands in front of the weights of a panel: a float16 number for each group of inputs of each of 16 outputs."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from chinchilla_lm.pack.panels import ALIGNMENT, LANES, Bytes, round_up

Halves = NDArray[np.float16]


def side_bytes(groups: int) -> int:
    """Bytes of one such table in a panel: whole cache lines."""
    return round_up(groups * 2 * LANES, ALIGNMENT)


def to_side(values_NG: NDArray[np.floating], groups: int) -> Bytes:
    """[N / 16, bytes]: [G][16] of each panel. groups: as many as the padded inputs have; those that lack one have 0."""
    outputs, known = values_NG.shape
    panels = np.ascontiguousarray(values_NG.reshape(outputs // LANES, LANES, known).transpose(0, 2, 1))
    flat = panels.reshape(len(panels), -1).view(np.uint8)
    return np.pad(flat, ((0, 0), (0, side_bytes(groups) - flat.shape[1])))


def from_side(side: Bytes, groups: int) -> Halves:
    """[N, G] from `to_side`, of the first `groups`."""
    flat = np.ascontiguousarray(side[:, : groups * 2 * LANES]).view(np.float16)
    return np.ascontiguousarray(flat.reshape(len(flat), groups, LANES).transpose(0, 2, 1)).reshape(-1, groups)


def finite_half(values: NDArray[np.floating]) -> Halves:
    """float16, what is beyond its range at its end."""
    largest = float(np.finfo(np.float16).max)
    return np.clip(values, -largest, largest).astype(np.float16)
