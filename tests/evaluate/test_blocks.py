"""Blocks of a bootstrap over consecutive rows."""

from __future__ import annotations

import numpy as np
import pytest

from chinchilla_lm.evaluate.blocks import block_draws, mean_block_length
from chinchilla_lm.evaluate.certificate import certify
from chinchilla_lm.evaluate.sums import Sums, bootstrap


def autoregressive(rng: np.random.Generator, rows: int, likeness: float) -> np.ndarray:
    """A stationary series of unit variance whose neighbours correlate by `likeness`."""
    noise = rng.normal(size=rows) * np.sqrt(1 - likeness**2)
    series = np.empty(rows)
    series[0] = rng.normal()
    for i in range(1, rows):
        series[i] = likeness * series[i - 1] + noise[i]
    return series


def mean_of(values: np.ndarray, consecutive: bool) -> Sums:
    rows = np.column_stack([values, np.ones(len(values))])
    return Sums("mean", "points", True, rows, lambda sums: sums[..., 0] / sums[..., 1], consecutive)


def test_draws_are_blocks_of_consecutive_rows_around_the_end():
    weights = block_draws(10, 4, 500, np.random.default_rng(0))
    assert weights.shape == (500, 10)
    assert (weights.sum(axis=1) == 10).all()
    assert abs(weights.mean(axis=0) - 1).max() < 0.15
    single = block_draws(6, 5, 200, np.random.default_rng(1))  # one block of five, one of a single row
    assert all((draw > 0).sum() >= 5 for draw in single)
    # Each row begins as many blocks as it has more than the row before: two begin, of four rows, and one of two.
    assert all(np.clip(draw - np.roll(draw, 1), 0, None).sum() <= 3 for draw in weights)


def test_blocks_are_as_long_as_the_likeness_asks():
    rng = np.random.default_rng(0)
    lengths = {
        likeness: np.median([mean_block_length(autoregressive(rng, 400, likeness)) for _ in range(50)])
        for likeness in (0.0, 0.5, 0.9)
    }
    assert lengths[0.0] == 12  # 1.5 times the cube root of 400, rounded up
    assert lengths[0.0] <= lengths[0.5] < lengths[0.9] <= 60
    assert mean_block_length(np.ones(30)) == 5
    assert [mean_block_length(np.arange(rows, dtype=float)) for rows in (1, 2, 6)] == [1, 1, 2]


@pytest.mark.parametrize(("likeness", "least"), [(0.0, 0.92), (0.5, 0.9)])
def test_intervals_over_running_text_hold_the_truth(likeness: float, least: float):
    rng = np.random.default_rng(2)
    held = {False: 0, True: 0}
    trials = 300
    for _ in range(trials):
        series = autoregressive(rng, 120, likeness)
        for consecutive in held:
            estimate = bootstrap(mean_of(series, consecutive), resamples=300)
            held[consecutive] += estimate.low <= 0 <= estimate.high
    assert held[True] / trials >= least
    if likeness:
        assert held[False] / trials < 0.8, "drawn one by one, neighbours make the interval too narrow"


def test_few_blocks_decide_nothing():
    rng = np.random.default_rng(3)
    before, after = (mean_of(0.9 + 0.01 * rng.normal(size=12), consecutive=True) for _ in range(2))
    certificate = certify(before, after, 5.0, 12)
    assert (certificate.passed, certificate.decided) == (False, False)
    assert "12 pieces of running text, taken as 3 blocks" in certificate.verdict
