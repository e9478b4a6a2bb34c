"""How many threads a program runs on, found by trying; for each measure, since a prompt and a token want other numbers.

More threads are the rule, and fewer have to prove that they are faster: two numbers take turns, A B, B A, A B …, until
a sign test on the ratios within rounds decides, or time is up, which is a tie. A noisy trial of one request each once
put int4 on one thread of two, and it lost half its speed.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

import numpy as np

# All of eight rounds one way come by chance once in 128; more rounds may be of two minds.
LEAST_ROUNDS, MOST_CHANCE = 8, 0.01
# Fewer threads that are not faster by this are a tie.
LEAST_GAIN = 1.02
LIMIT_S = 10.0  # of one comparison, LEAST_ROUNDS apart


def best_threads(
    choices: Sequence[int], trial: Callable[[int], float], now: Callable[[], float] = time.monotonic
) -> int:
    """The number of threads that is fastest. trial: a number → seconds, infinite where it does not work."""
    best, *others = sorted(choices, reverse=True)
    for fewer in others:
        if _faster(fewer, best, trial, now):
            best = fewer
    return best


def _faster(fewer: int, more: int, trial: Callable[[int], float], now: Callable[[], float]) -> bool:
    ratios: list[float] = []
    end = now() + LIMIT_S
    while len(ratios) < LEAST_ROUNDS or now() < end:
        order = (more, fewer) if len(ratios) % 2 == 0 else (fewer, more)
        taken = {threads: trial(threads) for threads in order}
        ratios.append(taken[more] / taken[fewer] if math.isfinite(taken[fewer]) else 0.0)
        if len(ratios) >= LEAST_ROUNDS and chance(ratios) <= MOST_CHANCE:
            return float(np.median(ratios)) > LEAST_GAIN
    return False


def chance(ratios: Sequence[float]) -> float:
    """How often as many of these or more would lie on one side of 1 if both sides were as likely (sign test)."""
    rounds, above = len(ratios), sum(ratio > 1 for ratio in ratios)
    fewer = min(above, rounds - above)
    return min(1.0, 2 * sum(math.comb(rounds, count) for count in range(fewer + 1)) / 2**rounds)
