import itertools
import time
from collections import Counter
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest

from chinchilla_lm.errors import InputError
from chinchilla_lm.runtime.measuring.clock import MIN_ROUNDS, Interleaved, Timing, interleave, speedup


def test_order_changes_and_warmup_is_not_counted():
    calls: list[str] = []
    timings = interleave({name: partial(calls.append, name) for name in "ABC"}, rounds=4, warmup=2)
    assert "".join(calls) == "ABCABC" + "ABC" + "BCA" + "CAB" + "ACB"
    assert {name: len(timing.seconds) for name, timing in timings.items()} == {"A": 4, "B": 4, "C": 4}


@pytest.mark.parametrize(("count", "rounds"), [(2, 4), (3, 12), (4, 48), (6, 60)])
def test_all_orders_come_equally_often_and_every_function_stands_in_every_place(count, rounds):
    names = "ABCDEF"[:count]
    calls: list[str] = []
    interleave({name: partial(calls.append, name) for name in names}, rounds=rounds, warmup=0)
    orders = ["".join(calls[first : first + count]) for first in range(0, len(calls), count)]
    for place in range(count):
        assert set(Counter(order[place] for order in orders).values()) == {rounds // count}
    if count <= 4:
        assert Counter(orders) == {"".join(order): 2 for order in itertools.permutations(names)}
    else:
        assert len(set(orders)) > rounds // 2


@pytest.mark.parametrize("places", [(1.05, 1.0, 0.97), (0.95, 1.0, 1.05), (1.1, 1.0, 1.0)])
def test_three_times_the_same_function_is_no_difference_though_the_places_of_a_round_differ(places, monkeypatch):
    rng = np.random.default_rng(0)
    now = 0.0
    turns = itertools.cycle(places)

    def work():
        nonlocal now
        now += next(turns) * np.exp(0.005 * rng.standard_normal())

    monkeypatch.setattr("chinchilla_lm.runtime.measuring.clock.time", SimpleNamespace(perf_counter=lambda: now))
    timings = interleave(dict.fromkeys("ABC", work), rounds=300, warmup=1)
    for one, other in itertools.combinations("ABC", 2):
        ratio = speedup(timings[one], timings[other])
        # One interval in twenty misses, and that by noise of 0.5 %; the places differ by twenty times as much.
        assert ratio.low - 0.003 <= 1.0 <= ratio.high + 0.003
        assert ratio.value == pytest.approx(1.0, abs=0.02)


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
    deciding = Interleaved({"a": lambda: time.sleep(0.001)}, warmup=0, least_rounds=17)
    assert len(deciding.run(seconds=0.001)["a"].seconds) == 17


def test_a_timing_goes_on_where_it_stopped():
    calls: list[str] = []
    race = Interleaved({name: partial(calls.append, name) for name in "AB"}, warmup=1)
    first = race.run(rounds=2)
    both = race.run(rounds=1)
    assert "".join(calls) == "AB" + "ABBA" + "AB", "warm already, and the next order is the next"
    assert [len(timing.seconds) for timing in (first["A"], both["A"], both["B"])] == [2, 3, 3]
    assert both["A"].seconds[:2].tolist() == first["A"].seconds.tolist()


def test_a_latency_has_an_interval_in_milliseconds():
    latency = Timing(np.full(12, 0.02)).latency_ms
    assert (latency.value, latency.low, latency.high) == (20.0, 20.0, 20.0)


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
