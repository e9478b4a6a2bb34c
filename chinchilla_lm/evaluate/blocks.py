"""How long the blocks of a bootstrap have to be, where neighbouring rows are alike.

Pieces of one running text are not independent: what one piece is about, the next is about. Rows drawn one by one give
intervals that are too narrow then; blocks of consecutive rows keep the likeness inside (the circular block bootstrap,
Politis & Romano 1992). The length follows Politis & White ("Automatic block-length selection for the dependent
bootstrap", Econometric Reviews 2004, with the correction by Patton, Politis & White 2009). That length is right for the
error of a variance, and has intervals that are too narrow: a block cuts off likeness at its ends. For coverage it is
taken half as long again, and no shorter than 1.5 times the cube root of the number of rows, since the estimate from one
short series is itself noisy (benchmarks/false_pass.py has what comes out).
"""

import math

import numpy as np
from numpy.typing import NDArray

from chinchilla_lm.resampling import Floats, politis_white

LONGER = 1.5
"""Times the length of least error of the variance."""

SHORTEST_SERIES = 8
"""Rows below which no likeness can be estimated; the cube root alone decides then."""


def mean_block_length(series: Floats) -> int:
    """Rows a block, at least 1 and at most a third of them, for the mean of a stationary series float64 [rows], or of
    what behaves like one. A median over rounds of a clock has a rule of its own, `runtime.measuring.blocks`."""
    rows = len(series)
    longest = max(1, math.ceil(min(3 * math.sqrt(rows), rows / 3)))
    return min(
        longest, max(shortest_block(rows), math.ceil(LONGER * politis_white(series)) if rows >= SHORTEST_SERIES else 1)
    )


def shortest_block(rows: int) -> int:
    """The least length that `mean_block_length` gives for so many rows, up to a third of them."""
    return math.ceil(LONGER * rows ** (1 / 3) - 1e-9)


def block_draws(rows: int, length: int, count: int, rng: np.random.Generator) -> Floats:
    """float64 [count, rows]: how often each row was drawn, when blocks of `length` consecutive rows are, around the end
    as well; each draw has `rows` rows in all, the last block cut to fit."""
    whole, rest = divmod(rows, length)
    weights = _covered(rng.integers(rows, size=(count, whole)), rows, length)
    if rest:
        weights += _covered(rng.integers(rows, size=(count, 1)), rows, rest)
    return weights


def _covered(starts: NDArray[np.int64], rows: int, length: int) -> Floats:
    """How many of the blocks that begin at `starts` [count, blocks] hold each row: float64 [count, rows]."""
    count = len(starts)
    flat = (starts + np.arange(count)[:, None] * rows).ravel()
    begun = np.bincount(flat, minlength=count * rows).reshape(count, rows)
    around = np.concatenate([begun[:, rows - length + 1 :], begun], axis=1) if length > 1 else begun
    sums = np.concatenate([np.zeros((count, 1), dtype=np.int64), around.cumsum(axis=1)], axis=1)
    return (sums[:, length:] - sums[:, :-length]).astype(np.float64)
