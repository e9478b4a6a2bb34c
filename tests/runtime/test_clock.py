import time
from functools import partial

import numpy as np
import pytest

from chinchilla_lm.errors import InputError
from chinchilla_lm.runtime.clock import MIN_ROUNDS, Timing, interleave, speedup


def test_order_rotates_and_warmup_is_not_counted():
    calls: list[str] = []
    timings = interleave({name: partial(calls.append, name) for name in "ABC"}, rounds=4, warmup=2)
    assert "".join(calls) == "ABCABC" + "ABC" + "BCA" + "CAB" + "ABC"
    assert {name: len(timing.seconds) for name, timing in timings.items()} == {"A": 4, "B": 4, "C": 4}


def test_the_same_work_twice_is_as_fast_and_half_the_work_twice_as_fast():
    # Sleeping, not computing: a busy machine only ever prolongs a sleep, and by the same for both.
    timings = interleave(
        {"a": lambda: time.sleep(0.02), "b": lambda: time.sleep(0.02), "half": lambda: time.sleep(0.01)},
        rounds=21,
        warmup=1,
    )
    same, half = speedup(timings["a"], timings["b"]), speedup(timings["a"], timings["half"])
    assert same.low <= same.value <= same.high
    assert same.low <= 1.05
    assert same.high >= 0.95
    assert half.low > 1.3


def test_ratio_is_the_median_within_rounds_not_of_the_medians():
    drift = np.array([1.0, 10.0, 100.0, 1000.0, 1.0])
    ratio = speedup(Timing(2 * drift), Timing(drift))
    assert (ratio.value, ratio.low, ratio.high) == (2.0, 2.0, 2.0)
    shuffled = speedup(Timing(2 * drift), Timing(drift[[1, 2, 3, 4, 0]]))  # ratios .2, .2, .2, 2000, 2
    assert shuffled.value == pytest.approx(0.2)
    assert shuffled.high > 1.0


def test_interval_covers_the_true_ratio_about_nineteen_times_in_twenty():
    rng = np.random.default_rng(3)
    covered = 0
    for _ in range(200):
        noise = np.exp(0.1 * rng.standard_normal((2, 31)))
        ratio = speedup(Timing(noise[0]), Timing(noise[1]))
        covered += ratio.low <= 1.0 <= ratio.high
    assert 178 <= covered <= 200  # 190 expected; 178 is three deviations below, the percentile bootstrap leans wide


def test_percentiles_are_milliseconds():
    timing = Timing(np.linspace(0.0, 0.1, 101))
    assert timing.to_dict() == pytest.approx({"p50": 50.0, "p95": 95.0})


def test_a_time_limit_still_gives_rounds():
    timings = interleave({"a": lambda: time.sleep(0.01)}, seconds=0.001, warmup=0)
    assert len(timings["a"].seconds) == MIN_ROUNDS
    timings = interleave({"a": lambda: time.sleep(0.001)}, seconds=0.1, warmup=0)
    assert MIN_ROUNDS < len(timings["a"].seconds) <= 100


def test_one_round_has_no_interval():
    ratio = speedup(Timing(np.array([2.0])), Timing(np.array([1.0])))
    assert ratio.to_dict() == {"value": 2.0, "low": None, "high": None}


@pytest.mark.parametrize("limits", [{}, {"rounds": 3, "seconds": 1.0}, {"rounds": 0}, {"seconds": -1.0}])
def test_limits_that_make_no_sense_are_refused(limits):
    with pytest.raises(InputError, match="pass"):
        interleave({"a": lambda: None}, **limits)


def test_a_failing_function_is_not_hidden():
    with pytest.raises(ZeroDivisionError):
        interleave({"a": lambda: 1 / 0}, rounds=1)
