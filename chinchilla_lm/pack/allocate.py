"""Which option each item gets, so that the sizes keep within a budget and the costs sum to the least: exact.

A multiple-choice knapsack (Dudziński and Walukiewicz 1987): every matrix is stored in one of several formats, each with
its bytes and its predicted loss. Every item has its smallest option at least; what an option takes beyond that is
counted in ticks, rounded *up*, so that no choice ever exceeds the budget, and

    D[item][τ] = min over options of  D[item - 1][τ - ticks(option)] + cost(option)

is filled a whole row of τ at a time. Where the ticks are as fine as the sizes' greatest common divisor nothing is
rounded and the optimum is exact; they are coarser only for models whose sizes would take more than TICKS of them. They
do not depend on the budget, so that more room never gives a worse choice.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Ticks of the whole span from the smallest choice to the largest, at most: a row of costs has 2 MB then. SmolLM2-135M
# in the formats of 4 and 8 bits takes 95,000, each of 768 bytes.
TICKS = 1 << 18


@dataclass(frozen=True, slots=True)
class Option:
    """One way to store an item: its bytes, and what it costs."""

    name: str
    size: int
    cost: float


def worthwhile(options: Sequence[Option]) -> list[Option]:
    """Those that no other one equals or beats in both size and cost, the smallest first."""
    kept: list[Option] = []
    for option in sorted(options, key=lambda one: (one.size, one.cost)):
        if not kept or option.cost < kept[-1].cost:
            kept.append(option)
    return kept


def allocate(items: Sequence[Sequence[Option]], budget: int, ticks: int = TICKS) -> list[Option] | None:
    """An option for each item, of least total cost within `budget` bytes; None where even the smallest exceed it.

    Time and memory are O(items · options · ticks) and one byte an item and tick. Among equal costs the smaller wins.
    """
    ordered = [sorted(options, key=lambda one: (one.size, one.cost)) for options in items]
    least = sum(options[0].size for options in ordered)
    if least > budget:
        return None
    unit = _unit([[one.size - options[0].size for one in options] for options in ordered], ticks)
    extra = [[-(-(one.size - options[0].size) // unit) for one in options] for options in ordered]
    room = min((budget - least) // unit, sum(some[-1] for some in extra))
    picks = _fill([[one.cost for one in options] for options in ordered], extra, room)
    chosen = []
    for options, some, pick in zip(reversed(ordered), reversed(extra), reversed(picks), strict=True):
        index = int(pick[room])
        chosen.append(options[index])
        room -= some[index]
    return chosen[::-1]


def _fill(costs: list[list[float]], extra: list[list[int]], room: int) -> list[NDArray[np.uint8]]:
    """For each item, the index of the best option by the ticks that it and the items before it may take."""
    total, picks = np.zeros(room + 1), []
    for some_costs, some_ticks in zip(costs, extra, strict=True):
        best, pick = np.full(room + 1, np.inf), np.zeros(room + 1, np.uint8)
        for index, (cost, taken) in enumerate(zip(some_costs, some_ticks, strict=True)):
            if taken > room:
                continue
            via = total[: room + 1 - taken] + cost
            better = via < best[taken:]
            np.copyto(best[taken:], via, where=better)
            pick[taken:][better] = index
        total = best
        picks.append(pick)
    return picks


def _unit(beyond: list[list[int]], ticks: int) -> int:
    """Bytes a tick: what divides all sizes beyond the least ones, or so many times that as `ticks` allow."""
    divisor = math.gcd(*(size for sizes in beyond for size in sizes)) or 1
    span = sum(max(sizes) for sizes in beyond)
    return divisor * max(1, -(-span // (divisor * ticks)))
