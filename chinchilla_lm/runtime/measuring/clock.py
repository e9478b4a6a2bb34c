"""Timing that two things can be compared by: A B A B … in one run, never A A A … and then B B B ….

A machine's speed drifts (heat, clock, neighbours), and what drifts between two separate measurements looks like a
difference between the things measured. So every round runs each function once, the order changes from round to round
(who goes first finds colder caches), and the comparison is the median of the ratios *within* rounds. Its interval is a
bootstrap over rounds: honest about scatter, blind to whatever is wrong in all rounds alike.

The road not taken: rotating one order, A B C, B C A, C A B. There A and C stand in places 1 and 3, 3 and 2, 2 and 1,
never the other way round; where the places differ in speed, no number of rounds takes that out of the median.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np
import torch
from numpy.typing import NDArray

from chinchilla_lm.errors import InputError
from chinchilla_lm.results import Interval, Latency

# Fewer rounds than this have no tail to speak of; a time limit does not cut below it.
MIN_ROUNDS = 5
# Draws per interval, as in evaluate.sums: the 2.5 % tail is then known to 0.35 %.
RESAMPLES = 2000
LEVEL = 0.95
# Functions up to which a timing goes through all orders: 24 of them are soon done, 120 would rarely be.
ALL_ORDERS_UP_TO = 4


@dataclass(frozen=True, eq=False)
class Timing:
    """How long each round took: float64 [rounds], in seconds, in the order of the rounds."""

    seconds: NDArray[np.float64]

    @property
    def p50(self) -> float:
        """Median, in milliseconds."""
        return 1e3 * float(np.quantile(self.seconds, 0.50))

    @property
    def p95(self) -> float:
        """95th percentile, in milliseconds; interpolated, so with few rounds it leans on the slowest one."""
        return 1e3 * float(np.quantile(self.seconds, 0.95))

    def to_dict(self) -> Latency:
        """`{"p50", "p95"}` in milliseconds."""
        return {"p50": self.p50, "p95": self.p95}


@dataclass(frozen=True, slots=True)
class Ratio:
    """How many times as fast, with its 95 % interval; the bounds are NaN where there was one round only."""

    value: float
    low: float
    high: float

    def to_dict(self) -> Interval:
        """Bounds that are not known become null."""
        value, low, high = (v if math.isfinite(v) else None for v in (self.value, self.low, self.high))
        return {"value": value, "low": low, "high": high}


def interleave(
    functions: Mapping[str, Callable[[], object]],
    *,
    rounds: int | None = None,
    seconds: float | None = None,
    warmup: int = 3,
    device: torch.device | None = None,
) -> dict[str, Timing]:
    """Time every function once a round, after `warmup` rounds that are not counted.

    rounds: how many; or seconds: until that much time has passed in counted rounds (five rounds at least). The clock
    stops when the work is done: on a CUDA `device` it waits for the queue before and after each call.
    Raises InputError unless exactly one of `rounds` and `seconds` is given, above 0; functions' own errors pass on.
    """
    _check(functions, rounds, seconds)
    names = list(functions)
    for _ in range(warmup):
        for name in names:
            functions[name]()
    taken: dict[str, list[float]] = {name: [] for name in names}
    turns = orders(names)
    begun = time.perf_counter()
    done = 0
    while _goes_on(done, time.perf_counter() - begun, rounds, seconds):
        for name in next(turns):
            taken[name].append(_time(functions[name], device))
        done += 1
    return {name: Timing(np.array(values)) for name, values in taken.items()}


def speedup(original: Timing, changed: Timing) -> Ratio:
    """How many times as fast `changed` is: the median of original / changed within rounds of one `interleave`.

    The interval is the 95 % percentile bootstrap of that median. A/A gives an interval around 1.
    """
    assert len(original.seconds) == len(changed.seconds) > 0, "both timings come from one interleave"
    ratios = original.seconds / changed.seconds
    value = float(np.median(ratios))
    if len(ratios) == 1:
        return Ratio(value, math.nan, math.nan)
    drawn = np.random.default_rng(0).integers(len(ratios), size=(RESAMPLES, len(ratios)))
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(np.median(ratios[drawn], axis=1), [tail, 1 - tail])
    return Ratio(value, float(low), float(high))


def _check(functions: Mapping[str, Callable[[], object]], rounds: int | None, seconds: float | None) -> None:
    if not functions:
        raise InputError("0 functions to time; at least 1 is needed; pass one")
    if (rounds is None) == (seconds is None):
        raise InputError(f"rounds {rounds} and seconds {seconds}: exactly one limits a timing; pass one of them")
    limit = rounds if rounds is not None else seconds
    if limit is None or not limit > 0:
        raise InputError(f"a timing limit of {limit} is not above 0; pass rounds=20 or seconds=5")


def _goes_on(done: int, passed: float, rounds: int | None, seconds: float | None) -> bool:
    if rounds is not None:
        return done < rounds
    assert seconds is not None
    return done < MIN_ROUNDS or passed < seconds


def orders(names: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Endless orders of the names: each name in each place once in every len(names) rounds, beside changing others.

    Up to ALL_ORDERS_UP_TO names all orders come equally often; beyond, what is rotated is drawn, the same in every run.
    """
    drawing = random.Random(0)
    rests = list(permutations(names[1:])) if len(names) <= ALL_ORDERS_UP_TO else []
    while True:
        for rest in rests or [tuple(drawing.sample(names[1:], len(names) - 1))]:
            order = (names[0], *rest)
            for turn in range(len(order)):
                yield order[turn:] + order[:turn]


def _time(function: Callable[[], object], device: torch.device | None) -> float:
    _wait(device)
    begun = time.perf_counter()
    function()
    _wait(device)
    return time.perf_counter() - begun


def _wait(device: torch.device | None) -> None:
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)
