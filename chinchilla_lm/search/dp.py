"""The cheapest path through the chain within a time budget: exact, for costs that add up.

Nodes are the boundaries between blocks; the edges over one block are the four ways through it: keep both links, drop
either, drop both. (With an edge per link and a third that spans the block, a path could drop both links one by one and
dodge the joint cost of the block. Four edges per block are the same paths without that detour.) An edge costs what it
drops and takes the time of what it keeps. We look for

    min  Σ cost   subject to   fixed_us + Σ time kept ≤ budget_us ,

a multiple-choice knapsack (Dudziński and Walukiewicz 1987). The room left for links is cut into integer ticks, times
are rounded *up* in exact rational arithmetic, and

    D[block][τ] = min over edges of  D[block - 1][τ - ticks(edge)] + cost(edge)

is filled a whole row of τ at a time. Rounding up means that no plan ever exceeds its budget (SPDY, arXiv 2201.13096,
rounds to nearest and may overrun by half a tick per layer); the price is that a plan within `num_blocks` ticks of the
budget, 0.3 % for 30 blocks and 10,000 ticks, may be passed over.

`max_changes` adds an axis: at most m links may differ from an incumbent, which makes the DP one step of a trust region.
Among equal costs the path with the fewest dropped links wins.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import combinations

import numpy as np
import numpy.typing as npt

from chinchilla_lm.errors import ContractError
from chinchilla_lm.plan import CostTable, Plan, pair
from chinchilla_lm.plan.strict import check_known, check_whole
from chinchilla_lm.search.budget import check_budget, fits, make_plan, too_slow

TICKS = 10_000  # resolution of the budget: 0.01 % of the time that links may take (a choice; cost is linear in it)


@dataclass(frozen=True)
class Edge:
    """One way through one block: what it drops, its cost, the exact time of what it keeps, links changed."""

    dropped: tuple[str, ...]
    cost: float
    time_us: Fraction
    changes: int = 0


def ways(block: int) -> tuple[tuple[str, ...], ...]:
    """The four sets of links that a path may drop in a block, the emptiest first."""
    attn, mlp = pair(block)
    return (), (attn,), (mlp,), (attn, mlp)


def time_kept(table: CostTable, block: int, dropped: Collection[str]) -> Fraction:
    """Exact microseconds of the links of a block that are kept."""
    return sum((Fraction(table.time(name)) for name in pair(block) if name not in dropped), Fraction(0))


def edges_of(table: CostTable, block: int, protected: Collection[str], incumbent: Collection[str]) -> list[Edge]:
    """The edges over a block, at the table's costs; `changes` counts links that differ from the incumbent."""
    before = {name for name in pair(block) if name in incumbent}
    return [
        Edge(way, table.cost_of(way), time_kept(table, block, way), len(before.symmetric_difference(way)))
        for way in ways(block)
        if not any(name in protected for name in way)
    ]


def cheapest_path(
    blocks: Sequence[Sequence[Edge]], room_us: Fraction, ticks: int, max_changes: int | None = None
) -> frozenset[str] | None:
    """The links that the cheapest path drops, or None if none keeps within `room_us` and `max_changes`."""
    taken = cheapest_edges(blocks, room_us, ticks, max_changes)
    if taken is None:
        return None
    return frozenset(name for edges, index in zip(blocks, taken, strict=True) for name in edges[index].dropped)


def cheapest_edges(
    blocks: Sequence[Sequence[Edge]], room_us: Fraction, ticks: int, max_changes: int | None = None
) -> list[int] | None:
    """The edge that the cheapest path takes over each block, or None if none keeps within `room_us` and `max_changes`.

    Time is O(blocks · edges · changes · ticks) in numpy, memory two bytes per block, change and tick.
    """
    if room_us < 0:
        return None
    most = 0 if max_changes is None else max_changes
    shape = (most + 1, ticks + 1)
    cost, drops = np.zeros(shape), np.zeros(shape, dtype=np.int32)
    picks: list[npt.NDArray[np.uint16]] = []
    steps: list[list[tuple[int, int]]] = []
    for edges in blocks:
        new_cost, new_drops = np.full(shape, np.inf), np.zeros(shape, dtype=np.int32)
        pick = np.zeros(shape, dtype=np.uint16)
        step = [(0 if max_changes is None else e.changes, _ticks_up(e.time_us, room_us, ticks)) for e in edges]
        for index, (edge, (m, t)) in enumerate(zip(edges, step, strict=True)):
            if m > most or t > ticks:
                continue
            there = np.s_[m:, t:]
            via_cost = cost[: most + 1 - m, : ticks + 1 - t] + edge.cost
            via_drops = drops[: most + 1 - m, : ticks + 1 - t] + len(edge.dropped)
            same = (via_cost == new_cost[there]) & (via_drops < new_drops[there])
            better = (via_cost < new_cost[there]) | same
            np.copyto(new_cost[there], via_cost, where=better)
            np.copyto(new_drops[there], via_drops, where=better)
            pick[there][better] = index
        cost, drops = new_cost, new_drops
        picks.append(pick)
        steps.append(step)
    if not np.isfinite(cost[most, ticks]):
        return None
    taken: list[int] = []
    m, t = most, ticks
    for pick, step in zip(reversed(picks), reversed(steps), strict=True):
        index = int(pick[m, t])
        taken.append(index)
        m, t = m - step[index][0], t - step[index][1]
    return taken[::-1]


def _ticks_up(time_us: Fraction, room_us: Fraction, ticks: int) -> int:
    """Ticks that a time takes of `room_us` cut into `ticks`, rounded up; `ticks` + 1 if it does not fit."""
    if time_us == 0:
        return 0
    return ticks + 1 if time_us > room_us else math.ceil(time_us * ticks / room_us)


def solve(
    table: CostTable,
    budget_us: float,
    *,
    ticks: int = TICKS,
    incumbent: Collection[str] | None = None,
    max_changes: int | None = None,
    protected: Collection[str] = frozenset(),
) -> Plan:
    """The plan of least additive cost whose predicted time, rounded up to ticks, is within the budget.

    A budget at or above the full time gives the full plan, whose cost is exactly 0, even if some cost is negative.

    Args:
        budget_us: microseconds per forward pass for the whole model.
        ticks: resolution; more is finer and slower.
        incumbent: dropped links of the plan that `max_changes` counts from; None is the full model.
        max_changes: at most so many links may differ from the incumbent; None is no limit.
        protected: links that must be kept.

    Raises:
        InputError: bad budget, ticks or link names, or max_changes below 0.
        ContractError: no plan meets the budget; the message says the least time to be had.
    """
    check_whole(ticks, "ticks", 1)
    if max_changes is not None:
        check_whole(max_changes, "max_changes", 0)
    start = frozenset(incumbent or ())
    check_known(start, table.links)
    check_budget(table, budget_us, protected)
    dropped: frozenset[str] | None = frozenset()
    if not fits(table, (), budget_us) or (max_changes is not None and len(start) > max_changes):
        blocks = [edges_of(table, block, protected, start) for block in range(table.num_blocks)]
        dropped = cheapest_path(blocks, Fraction(budget_us) - Fraction(table.fixed_us), ticks, max_changes)
    if dropped is None:
        raise _no_path(table, budget_us, ticks, start, max_changes, protected)
    return make_plan(table, dropped, "dp", budget_us, {"ticks": ticks, "protected": sorted(protected)})


def _no_path(
    table: CostTable,
    budget_us: float,
    ticks: int,
    start: frozenset[str],
    max_changes: int | None,
    protected: Collection[str],
) -> ContractError:
    """Why there is no path within a budget that `check_budget` allows: too few changes, or too coarse ticks."""
    if max_changes is not None:
        restored = start.intersection(protected)
        if len(restored) > max_changes:
            rule = f"the number of protected links to restore, {len(restored)}"
            return ContractError(f"max_changes {max_changes} is below {rule}; raise it")
        free = sorted(set(table.links).difference(start, protected), key=table.time, reverse=True)
        least_us = table.predict_us((start - restored).union(free[: max_changes - len(restored)]))
        if least_us > budget_us:
            return too_slow(table, least_us, budget_us, f" with {max_changes} changes")
    return ContractError(f"budget {budget_us:.6g} us cannot be met in {ticks} ticks, rounded up; pass more ticks")


def lagrangian_bound(table: CostTable, budget_us: float, *, protected: Collection[str] = frozenset()) -> float:
    """A lower bound on the additive cost of every plan within the budget, in the table's unit.

    The dual of the budget, g(λ) = Σ_blocks min over edges (cost + λ time) - λ room, bounds the optimum for every λ ≥ 0.
    It is concave and piecewise linear, so its maximum lies at λ = 0 or where two edges of a block change places, and
    trying all of those finds it exactly. (Everett 1963; the gap to the DP is what the convex hull hides.)

    Raises:
        InputError, ContractError: as `solve`.
    """
    check_budget(table, budget_us, protected)
    room_us = float(Fraction(budget_us) - Fraction(table.fixed_us))
    blocks = [edges_of(table, block, protected, ()) for block in range(table.num_blocks)]
    lines = [[(edge.cost, float(edge.time_us)) for edge in edges] for edges in blocks]
    crossings = [(c2 - c1) / (t1 - t2) for edges in lines for (c1, t1), (c2, t2) in combinations(edges, 2) if t1 != t2]
    slopes = np.array([0.0, *(slope for slope in crossings if slope > 0)])
    dual = -room_us * slopes
    for edges in lines:
        dual += np.min([cost + slopes * time for cost, time in edges], axis=0)
    bound = float(dual.max())
    return min(bound, 0.0) if fits(table, (), budget_us) else bound
