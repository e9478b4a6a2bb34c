"""Intervals of medians over rounds that resemble their neighbours, by simulated races whose true ratio is 1."""

import numpy as np
import pytest

from chinchilla_lm.runtime.measuring.blocks import median_block_length, median_interval
from chinchilla_lm.runtime.measuring.clock import DECIDING_ROUNDS, Timing, speedup

RACES = 400


def noise(rounds: int, correlation: float, drawing: np.random.Generator) -> np.ndarray:
    """AR(1) with a variance of 1."""
    news = np.sqrt(1 - correlation**2) * drawing.standard_normal(rounds)
    series = np.empty(rounds)
    series[0] = drawing.standard_normal()
    for place in range(1, rounds):
        series[place] = correlation * series[place - 1] + news[place]
    return series


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
    assert covered(median_interval, 100, 0.7) >= 0.93


@pytest.mark.parametrize(("rounds", "least"), [(10, 0.87), (DECIDING_ROUNDS, 0.93), (30, 0.93), (60, 0.93)])
def test_few_rounds_that_are_alike_decide_nothing_too_soon(rounds, least):
    assert covered(median_interval, rounds, 0.7) >= least
    assert covered(median_interval, rounds, 0.3) >= 0.93


@pytest.mark.parametrize("rounds", [DECIDING_ROUNDS, 30])
def test_rounds_that_hardly_change_are_covered_less(rounds):
    """What the module says of an autocorrelation of 0.9: no more, and no less."""
    assert 0.79 <= covered(median_interval, rounds, 0.9) <= 0.87


@pytest.mark.parametrize("rounds", [10, 31, 100])
def test_independent_rounds_are_covered_nineteen_times_in_twenty(rounds):
    # 0.95 expected, 0.011 its deviation; the floor of the length and Student's t lean wide
    assert covered(median_interval, rounds, 0.0) >= 0.93


def test_the_price_is_a_wider_interval_of_few_rounds():
    """Against 1.96 deviations of the median of independent normal rounds."""

    def width(rounds: int) -> float:
        drawing, logs = np.random.default_rng(7), []
        for _ in range(50):
            low, high = median_interval(np.exp(0.03 * noise(rounds, 0.0, drawing)))
            logs.append(np.log(high / low) / 2)
        return float(np.median(logs)) / (1.96 * 0.03 * np.sqrt(np.pi / 2 / rounds))

    assert width(DECIDING_ROUNDS) < 2.5
    assert width(200) < 1.35


def test_the_ratio_of_a_race_has_this_interval():
    drawing = np.random.default_rng(1)
    hits = 0
    for _ in range(RACES):
        neighbour = np.exp(0.05 * noise(80, 0.7, drawing))  # slows one of the two, for some rounds
        ratio = speedup(Timing(neighbour), Timing(np.exp(0.01 * drawing.standard_normal(80))))
        hits += ratio.low <= 1.0 <= ratio.high
    assert hits / RACES >= 0.92


def test_the_length_follows_the_autocorrelation():
    def median_length(rounds: int, correlation: float) -> float:
        drawing = np.random.default_rng(2)
        return float(np.median([median_block_length(noise(rounds, correlation, drawing)) for _ in range(40)]))

    assert [median_length(rounds, 0.0) for rounds in (16, 100, 400)] == [5, 13, 26], "1.3 √n where nothing is alike"
    assert median_length(400, 0.9) > 26
    assert median_length(16, 0.9) <= 5, "a third of the rounds at most"


@pytest.mark.parametrize("rounds", [2, 3, 4, 5, 9])
def test_few_rounds_and_equal_ones(rounds):
    assert median_interval(np.full(rounds, 2.0)) == (2.0, 2.0)
    rising = np.linspace(1.0, 2.0, rounds)
    low, high = median_interval(rising)
    assert 0 < low < np.median(rising) < high < np.inf


def test_the_truth_may_lie_outside_of_all_rounds():
    """Of two rounds it does in half of all cases, of ten alike ones in 7 %."""
    low, high = median_interval(np.array([1.0, 1.1]))
    assert low < 0.9
    assert high > 1.2


def test_an_interval_turns_around_with_its_ratio():
    """How many times as fast, and how many times as slow."""
    values = np.exp(0.1 * noise(25, 0.5, np.random.default_rng(8)))
    low, high = median_interval(values)
    assert median_interval(1 / values) == pytest.approx((1 / high, 1 / low), rel=1e-9)


def test_one_outlier_hides_no_correlation():
    values = noise(200, 0.8, np.random.default_rng(3))
    disturbed = values.copy()
    disturbed[50] = 1e6
    assert median_block_length(disturbed) == pytest.approx(median_block_length(values), abs=2)
