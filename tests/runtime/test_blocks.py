"""Intervals of medians over rounds that resemble their neighbours, by simulated races whose true ratio is 1."""

import numpy as np
import pytest

from chinchilla_lm.runtime.measuring.blocks import block_length, median_interval
from chinchilla_lm.runtime.measuring.clock import Timing, speedup

RACES = 200


def noise(rounds: int, correlation: float, drawing: np.random.Generator) -> np.ndarray:
    """AR(1) with a variance of 1."""
    news = np.sqrt(1 - correlation**2) * drawing.standard_normal(rounds)
    found = np.empty(rounds)
    found[0] = drawing.standard_normal()
    for place in range(1, rounds):
        found[place] = correlation * found[place - 1] + news[place]
    return found


def single_rounds(values: np.ndarray) -> tuple[float, float]:
    """The bootstrap that takes rounds for independent."""
    drawn = np.random.default_rng(0).integers(len(values), size=(1000, len(values)))
    low, high = np.quantile(np.median(values[drawn], axis=1), [0.025, 0.975])
    return float(low), float(high)


def covered(interval, rounds: int, correlation: float) -> float:
    """Share of simulated races whose interval has the true ratio."""
    drawing, hits = np.random.default_rng(5), 0
    for _ in range(RACES):
        low, high = interval(np.exp(0.03 * noise(rounds, correlation, drawing)))
        hits += low <= 1.0 <= high
    return hits / RACES


def test_rounds_that_are_alike_do_not_narrow_the_interval():
    assert covered(single_rounds, 100, 0.7) < 0.72, "what this is about"
    assert covered(median_interval, 100, 0.7) >= 0.9
    assert covered(median_interval, 60, 0.7) >= 0.88


@pytest.mark.parametrize("rounds", [10, 31, 100])
def test_independent_rounds_are_covered_about_nineteen_times_in_twenty(rounds):
    # 0.95 expected, 0.015 its deviation; of ten rounds a little less, of many the floor of the length leans wide
    assert 0.9 <= covered(median_interval, rounds, 0.0) <= 0.99


def test_the_ratio_of_a_race_has_this_interval():
    drawing = np.random.default_rng(1)
    hits = 0
    for _ in range(RACES):
        neighbour = np.exp(0.05 * noise(80, 0.7, drawing))  # slows one of the two, for some rounds
        ratio = speedup(Timing(neighbour), Timing(np.exp(0.01 * drawing.standard_normal(80))))
        hits += ratio.low <= 1.0 <= ratio.high
    assert hits / RACES >= 0.88


def test_the_length_follows_the_autocorrelation():
    def median_length(rounds: int, correlation: float) -> float:
        drawing = np.random.default_rng(2)
        return float(np.median([block_length(noise(rounds, correlation, drawing)) for _ in range(40)]))

    assert [median_length(rounds, 0.0) for rounds in (16, 100, 400)] == [4, 10, 20], "√n where nothing is correlated"
    assert median_length(400, 0.9) >= 26
    assert median_length(16, 0.9) <= 5, "a third of the rounds at most"


@pytest.mark.parametrize("rounds", [2, 3, 4, 5, 9])
def test_few_rounds_and_equal_ones(rounds):
    assert median_interval(np.full(rounds, 2.0)) == (2.0, 2.0)
    rising = np.linspace(1.0, 2.0, rounds)
    low, high = median_interval(rising)
    assert 1.0 <= low < np.median(rising) < high <= 2.0


def test_one_outlier_hides_no_correlation():
    values = noise(200, 0.8, np.random.default_rng(3))
    disturbed = values.copy()
    disturbed[50] = 1e6
    assert block_length(disturbed) == pytest.approx(block_length(values), abs=2)
