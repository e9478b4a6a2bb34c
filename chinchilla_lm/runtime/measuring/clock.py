"""Timing that two things can be compared by: A B A B … in one run, never A A A … and then B B B ….

A machine's speed drifts (heat, clock, neighbours), and what drifts between two separate measurements looks like a
difference between the things measured. So every round runs each function once, the order changes from round to round
(who goes first finds colder caches), and the comparison is the median of the ratios *within* rounds. Its interval is a
bootstrap over blocks of rounds (`blocks.py`): honest about scatter, blind to whatever is wrong in all rounds alike.

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
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray

from chinchilla_lm.errors import InputError
from chinchilla_lm.results import Interval, Latency
from chinchilla_lm.runtime.measuring.blocks import median_interval

# Fewer rounds than this have no tail to speak of: between the fastest and the slowest of 5 the median lies in 94 % of
# cases even where rounds are independent. A time limit does not cut below it.
MIN_ROUNDS = 10
# Rounds from which an interval may decide a promise. Where rounds are alike (autocorrelation 0.7) it covers the truth
# in 95 % of all cases, of MIN_ROUNDS in 90 % (`blocks.py`).
DECIDING_ROUNDS = 15
WARM_UP = 3
# Functions up to which a timing goes through all orders: 24 of them are soon done, 120 would rarely be.
ALL_ORDERS_UP_TO = 4


@dataclass(frozen=True, slots=True)
class Median:
    """A median over rounds with its 95 % interval; the bounds are NaN where there was one round only."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, values: NDArray[np.float64]) -> Self:
        """Of values in the order of the rounds."""
        value = float(np.median(values))
        return cls(value, *(median_interval(values) if len(values) > 1 else (math.nan, math.nan)))

    def to_dict(self) -> Interval:
        """Bounds that are not known become null."""
        value, low, high = (number if math.isfinite(number) else None for number in (self.value, self.low, self.high))
        return {"value": value, "low": low, "high": high}


class Ratio(Median):
    """How many times as fast."""


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

    @property
    def latency_ms(self) -> Median:
        """The median in milliseconds, with its interval."""
        return Median.of(1e3 * self.seconds)

    def to_dict(self) -> Latency:
        """`{"p50", "p95"}` in milliseconds."""
        return {"p50": self.p50, "p95": self.p95}


class Interleaved:
    """Functions that are timed in turn, for as long as it takes: each `run` adds rounds to those before."""

    def __init__(
        self,
        functions: Mapping[str, Callable[[], object]],
        *,
        warmup: int = WARM_UP,
        device: torch.device | None = None,
        least_rounds: int = MIN_ROUNDS,
    ) -> None:
        """warmup: rounds before the first that counts. The clock stops when the work is done: on a CUDA `device` it
        waits for the queue before and after each call. least_rounds: what a time limit does not cut below. Raises
        InputError without any function."""
        if not functions:
            raise InputError("0 functions to time; at least 1 is needed; pass one")
        self._functions, self._warmup, self._device = dict(functions), warmup, device
        self._least_rounds = least_rounds
        self._turns = orders(list(functions))
        self._taken: dict[str, list[float]] = {name: [] for name in functions}

    def run(self, *, rounds: int | None = None, seconds: float | None = None) -> dict[str, Timing]:
        """Time every function once a round; all rounds so far.

        rounds: how many more; or seconds: until that much more time has passed, and there are rounds enough in all.
        Raises InputError unless exactly one of them is given, above 0; functions' own errors pass on.
        """
        _check(rounds, seconds)
        for _ in range(self._warmup):
            for function in self._functions.values():
                function()
        self._warmup = 0
        begun = time.perf_counter()
        done = 0
        while self._goes_on(done, time.perf_counter() - begun, rounds, seconds):
            for name in next(self._turns):
                self._taken[name].append(_time(self._functions[name], self._device))
            done += 1
        return {name: Timing(np.array(values)) for name, values in self._taken.items()}

    def _goes_on(self, done: int, passed: float, rounds: int | None, seconds: float | None) -> bool:
        if rounds is not None:
            return done < rounds
        assert seconds is not None
        taken = len(next(iter(self._taken.values())))
        return taken < self._least_rounds or passed < seconds


def interleave(
    functions: Mapping[str, Callable[[], object]],
    *,
    rounds: int | None = None,
    seconds: float | None = None,
    warmup: int = WARM_UP,
    device: torch.device | None = None,
) -> dict[str, Timing]:
    """The same, once: see Interleaved."""
    return Interleaved(functions, warmup=warmup, device=device).run(rounds=rounds, seconds=seconds)


def speedup(original: Timing, changed: Timing) -> Ratio:
    """How many times as fast `changed` is: the median of original / changed within rounds of one `interleave`.

    A/A gives an interval around 1.
    """
    assert len(original.seconds) == len(changed.seconds) > 0, "both timings come from one interleave"
    return Ratio.of(original.seconds / changed.seconds)


def _check(rounds: int | None, seconds: float | None) -> None:
    if (rounds is None) == (seconds is None):
        raise InputError(f"rounds {rounds} and seconds {seconds}: exactly one limits a timing; pass one of them")
    limit = rounds if rounds is not None else seconds
    if limit is None or not limit > 0:
        raise InputError(f"a timing limit of {limit} is not above 0; pass rounds=20 or seconds=5")


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
