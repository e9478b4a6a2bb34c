"""Dropped links and formats in one search: the cheapest mix within a time budget, and within one of bytes.

Every link is dropped or kept in one of the formats that the table offers for it, and the head of a language model has
one too. A mix is a path as in `dp.py`: the edges over a block are all ways through its two links, those that drop both
at the joint cost, and the head is one block more. What formats cost adds up well, for rounding errors are nearly
uncorrelated (HIGGS, arXiv 2411.17525); what drops cost does not, and `mix_refine.py` repairs it.

Two budgets. Time is the axis of the path, in ticks rounded up, and exact; so are bytes where they are the only limit.
Beside a limit of time bytes are priced: each edge costs λ · bytes more, and for every λ ≥ 0

    min over paths (cost + λ · bytes) - λ · room   ≤   the least cost within both budgets ,

a lower bound (Everett 1963; the path that it comes from keeps within the time budget). The two paths on either side of
the room for bytes are joined as in a search on the convex hull: λ is the slope between them, until no path lies below
their line. That λ gives the best of these bounds. The path of it that keeps within the room is feasible, and it takes
ways of the other one, as long as these fit, which closes most of the gap; what is left of it is said.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import product

from chinchilla_lm.errors import ContractError, InputError
from chinchilla_lm.plan import HEAD, CostTable, FormatTable, Plan, pair
from chinchilla_lm.search.dp import TICKS, Edge, cheapest_edges

DROP = "drop"
Mix = Mapping[str, str]
"""Link → `drop` or the format that it is kept in; and `head` → its format."""

# Prices of a byte that are tried; the hull of 60 links has some hundred corners, of which a search meets a few.
MOST_PRICES = 64
# Of a plan's time, what two plans around a target differ by at least (assumption: what a timing of seconds decides).
STEP = 0.02
MOST_STEPS = 10


@dataclass(frozen=True)
class Way(Edge):
    """One way through a block, or a head: what becomes of its parts, and the bytes of what it keeps."""

    parts: tuple[tuple[str, str], ...] = ()
    bytes: int = 0


Ways = list[Way]


@dataclass(frozen=True)
class Budget:
    """Microseconds of a pass or request, and bytes of the program; None: no limit."""

    time_us: float | None = None
    bytes: int | None = None

    def __post_init__(self) -> None:
        for value, what in ((self.time_us, "us"), (self.bytes, "bytes")):
            if value is not None and not 0 < value < math.inf:
                raise InputError(f"budget {value} {what} is not a finite number above 0; give one")


@dataclass(frozen=True)
class Mixes:
    """All mixes of one model: what drops cost and save, and what formats cost, take and weigh."""

    drops: CostTable
    formats: FormatTable

    def __post_init__(self) -> None:
        for name in ("num_blocks", "model_sha256", "shape", "metric"):
            one, other = getattr(self.drops, name), getattr(self.formats, name)
            if one != other:
                raise InputError(f"{name} of the cost table is {one}, of the table of formats {other}; score again")

    @property
    def names(self) -> tuple[str, ...]:
        """Links in chain order, and the head where it has a format."""
        return (*self.drops.links, *((HEAD,) if self.formats.has_head else ()))

    def cost(self, mix: Mix) -> float:
        """The sum of what its choices cost one by one, a block that is dropped whole at its joint cost."""
        dropped, kept = split(mix)
        return self.drops.cost_of(dropped) + math.fsum(self.formats.entry(*one).cost for one in kept.items())

    def time(self, mix: Mix) -> float:
        """Predicted microseconds."""
        return self.formats.time_of(split(mix)[1])

    def bytes(self, mix: Mix) -> int:
        """Bytes of its program."""
        return self.formats.bytes_of(split(mix)[1])

    @property
    def least_bytes(self) -> int:
        """Of the smallest program: no link is kept, and a head in its smallest format."""
        head = [entry.bytes for entry in self.formats.options(HEAD)] if self.formats.has_head else []
        return self.formats.fixed_bytes + min(head, default=0)

    def fits(self, mix: Mix, budget: Budget) -> bool:
        """Whether it is predicted to keep within both budgets."""
        quick = budget.time_us is None or self.time(mix) <= budget.time_us
        return quick and (budget.bytes is None or self.bytes(mix) <= budget.bytes)

    def plan(self, mix: Mix, method: str, origin: Mapping[str, object]) -> Plan:
        """The plan of a mix, with what is predicted of it."""
        dropped, kept = split(mix)
        common = {
            "metric": self.drops.metric,
            "unit": self.drops.unit,
            "predicted_us": self.time(mix),
            "predicted_bytes": self.bytes(mix),
            "full_us": self.formats.total_us,
            "cost": self.cost(mix),
        }
        plan = Plan.from_dropped(self.drops.num_blocks, dropped, self.drops.norms, method, {**common, **origin})
        return plan.packed_as(kept, kept.get(HEAD))

    @property
    def total_us(self) -> float:
        """Microseconds of the original as it is served without packing."""
        return self.formats.total_us

    def plan_us(self, plan: Plan) -> float:
        """Predicted microseconds of a plan."""
        return self.time(mix_of_plan(plan))

    def plan_cost(self, plan: Plan) -> float:
        """Additive cost of a plan."""
        return self.cost(mix_of_plan(plan))

    def steps(self, plan: Plan) -> tuple[float, int]:
        """A share of the plan's time that clocks tell apart, and up to how many of them a plan is sought at."""
        return STEP * self.plan_us(plan), MOST_STEPS

    def fastest(self) -> Plan:
        """The plan that drops every link, the head in its fastest format."""
        mix = dict.fromkeys(self.drops.links, DROP)
        if self.formats.has_head:
            mix[HEAD] = min(self.formats.options(HEAD), key=lambda entry: entry.time_us).format
        return self.plan(mix, "mix", {})

    def blocks(self, costs: Mapping[tuple[str, str], float] | None = None, incumbent: Mix | None = None) -> list[Ways]:
        """The ways over every block, and over a head. costs: of a link's, or the head's, choice in place of the
        tables' (a block dropped whole is then the sum of both); a choice without one is left out. incumbent: from which
        `changes` counts the links that are dropped or restored; without it, none are counted."""
        found = []
        for block in range(self.drops.num_blocks):
            found.append(self._ways(pair(block), costs, incumbent))
        if self.formats.has_head:
            found.append(self._ways((HEAD,), costs, incumbent))
        return found

    def _ways(self, names: Sequence[str], costs: Mapping[tuple[str, str], float] | None, incumbent: Mix | None) -> Ways:
        choices = [self.choices(name) for name in names]
        if costs is not None:
            choices = [[one for one in some if (name, one) in costs] for name, some in zip(names, choices, strict=True)]
        ways = []
        for taken in product(*choices):
            parts = tuple(zip(names, taken, strict=True))
            dropped, kept = split(dict(parts))
            entries = [self.formats.entry(*one) for one in kept.items()]
            if costs is None:
                cost = self.drops.cost_of(dropped) + math.fsum(entry.cost for entry in entries)
            else:
                cost = math.fsum(costs[part] for part in parts)
            before = dict(parts) if incumbent is None else incumbent
            turned = sum((before[name] == DROP) != (choice == DROP) for name, choice in parts)
            time_us = sum((Fraction(entry.time_us) for entry in entries), Fraction(0))
            ways.append(Way(tuple(dropped), cost, time_us, turned, parts, sum(entry.bytes for entry in entries)))
        return ways

    def choices(self, name: str) -> list[str]:
        """What may become of a link, or of the head."""
        return [*(entry.format for entry in self.formats.options(name)), *(() if name == HEAD else (DROP,))]


@dataclass(frozen=True)
class Found:
    """The cheapest mix that was found, what its choices cost together, and a lower bound on that of every mix whose
    time, or bytes where they alone are limited, are within the budget in ticks rounded up."""

    mix: dict[str, str]
    cost: float
    bound: float


def mix_of_plan(plan: Plan) -> dict[str, str]:
    """What a plan with formats makes of each link, and of the head."""
    head = {} if plan.head is None else {HEAD: plan.head}
    return dict.fromkeys(plan.dropped, DROP) | plan.formats | head


def split(mix: Mix) -> tuple[list[str], dict[str, str]]:
    """The names of dropped links, and the formats of what is kept."""
    return [name for name, choice in mix.items() if choice == DROP], {
        name: choice for name, choice in mix.items() if choice != DROP
    }


def solve_mix(mixes: Mixes, budget: Budget, *, ticks: int = TICKS) -> Found:
    """The mix of least additive cost within both budgets, exact but for rounding and, with bytes, for what `bound`
    leaves open.

    Raises ContractError, with the least that can be had, where no mix keeps within them.
    """
    found = cheapest_mix(mixes, mixes.blocks(), budget, ticks=ticks)
    if found is None:
        raise ContractError(too_little(mixes, budget, ticks))
    return found


def cheapest_mix(
    mixes: Mixes, blocks: Sequence[Ways], budget: Budget, *, ticks: int = TICKS, max_changes: int | None = None
) -> Found | None:
    """The same over given ways, with at most so many changes; None where no mix keeps within the budgets."""
    if budget.time_us is None and budget.bytes is not None:
        return _by_bytes(blocks, budget.bytes - mixes.formats.fixed_bytes, ticks, max_changes)
    blocks = [_undominated(ways) for ways in blocks]
    room_us = _room_us(mixes, budget, blocks)

    def path(price: float) -> Ways | None:
        priced = [[replace(way, cost=way.cost + price * way.bytes) for way in ways] for ways in blocks]
        taken = cheapest_edges(priced, room_us, ticks, max_changes)
        return None if taken is None else [ways[index] for ways, index in zip(blocks, taken, strict=True)]

    best = path(0.0)
    if best is None:
        return None
    if budget.bytes is None or _bytes(best) <= budget.bytes - mixes.formats.fixed_bytes:
        return Found(_mix(best), _cost(best), _cost(best))
    return _priced(path, best, blocks, budget.bytes - mixes.formats.fixed_bytes, room_us)


def _by_bytes(blocks: Sequence[Ways], room: int, ticks: int, max_changes: int | None) -> Found | None:
    """Where there is no limit to the time, bytes are the axis in its place: one path, exact in ticks rounded up."""
    if room <= 0:
        return None
    weighed = [_undominated([replace(way, time_us=Fraction(way.bytes)) for way in ways]) for ways in blocks]
    taken = cheapest_edges(weighed, Fraction(room), ticks, max_changes)
    if taken is None:
        return None
    path = [ways[index] for ways, index in zip(weighed, taken, strict=True)]
    return Found(_mix(path), _cost(path), _cost(path))


def _priced(
    path: Callable[[float], Ways | None], large: Ways, blocks: Sequence[Ways], room: int, room_us: Fraction
) -> Found | None:
    """Between the cheapest path, which is too large, and one that fits. path: the cheapest at a price of a byte."""
    small = path(_dear(blocks))
    if small is None or _bytes(small) > room:
        return None
    bound = -math.inf
    for _ in range(MOST_PRICES):
        price = (_cost(small) - _cost(large)) / (_bytes(large) - _bytes(small))
        between = path(price)
        assert between is not None, "prices change no path's time"
        value = _cost(between) + price * _bytes(between)
        bound = max(bound, value - price * room)
        if value >= _cost(large) + price * _bytes(large) - 1e-12 * abs(value):
            break  # no path below the line of the two
        if _bytes(between) <= room:
            small = between
        else:
            large = between
    taken = _filled(small, large, room, room_us)
    return Found(_mix(taken), _cost(taken), min(bound, _cost(taken)))


def _filled(small: Ways, large: Ways, room: int, room_us: Fraction) -> Ways:
    """The path that fits, with ways of the other one as far as these fit too: what gains most for a byte first."""
    taken = list(small)
    gains = [(one.cost - other.cost, other.bytes - one.bytes, place) for place, (one, other) in _unlike(small, large)]
    gains.sort(key=lambda gain: (gain[1] > 0, -gain[0] / max(gain[1], 1), gain[2]))
    for gain, _, place in gains:
        tried = [*taken[:place], large[place], *taken[place + 1 :]]
        quick = sum((way.time_us for way in tried), Fraction(0)) <= room_us
        if gain > 0 and quick and _bytes(tried) <= room:
            taken = tried
    return taken


def _unlike(one: Sequence[Way], other: Sequence[Way]) -> list[tuple[int, tuple[Way, Way]]]:
    return [(place, both) for place, both in enumerate(zip(one, other, strict=True)) if both[0] != both[1]]


def _dear(blocks: Sequence[Ways]) -> float:
    """A price of a byte at which no difference in cost is worth one."""
    costs = [way.cost for ways in blocks for way in ways]
    return 2 * len(blocks) * (max(costs) - min(costs) + 1e-12)


def _undominated(ways: Ways) -> Ways:
    """Without ways that another one is no worse than in anything; of equal ones the first."""
    kept: Ways = []
    order = sorted(ways, key=lambda way: (way.cost, way.time_us, way.bytes, way.changes, len(way.dropped)))
    for way in order:
        if not any(_no_worse(other, way) for other in kept):
            kept.append(way)
    return kept


def _no_worse(one: Way, other: Way) -> bool:
    return (
        one.cost <= other.cost
        and one.time_us <= other.time_us
        and one.bytes <= other.bytes
        and one.changes <= other.changes
        and len(one.dropped) <= len(other.dropped)
    )


def _room_us(mixes: Mixes, budget: Budget, blocks: Sequence[Ways]) -> Fraction:
    """Time for links and a head; without a limit, as much as the slowest ways take, and some."""
    if budget.time_us is not None:
        return Fraction(budget.time_us) - Fraction(mixes.formats.fixed_us)
    return 2 * sum((max(way.time_us for way in ways) for ways in blocks), Fraction(1))


def _mix(path: Collection[Way]) -> dict[str, str]:
    return {name: choice for way in path for name, choice in way.parts}


def _cost(path: Collection[Way]) -> float:
    return math.fsum(way.cost for way in path)


def _bytes(path: Collection[Way]) -> int:
    return sum(way.bytes for way in path)


def mix_with(mixes: Mixes, dropped: Collection[str], budget: Budget, *, ticks: int = TICKS) -> Found | None:
    """The cheapest formats for what is left when these links are dropped; None where no formats keep within the
    budgets."""
    costs: dict[tuple[str, str], float] = {}
    for name in mixes.names:
        if name in dropped:
            costs[name, DROP] = 0.0
        else:
            costs |= {(name, entry.format): entry.cost for entry in mixes.formats.options(name)}
    found = cheapest_mix(mixes, mixes.blocks(costs), budget, ticks=ticks)
    return None if found is None else replace(found, cost=mixes.cost(found.mix))


def too_little(mixes: Mixes, budget: Budget, ticks: int = TICKS) -> str:
    """Why no mix keeps within a budget: what the least of each is, or of bytes within the time."""
    blocks = mixes.blocks()
    least_us = mixes.formats.fixed_us + float(sum(min(way.time_us for way in ways) for ways in blocks))
    if budget.time_us is not None and budget.time_us < least_us:
        most = math.floor(100 * mixes.formats.total_us / least_us) / 100
        return (
            f"budget {budget.time_us:.6g} us is below the least time to be had, {least_us:.6g} us; "
            f"ask for a speed-up of at most {most:.2f}x"
        )
    if budget.bytes is not None and budget.bytes < mixes.least_bytes:
        return (
            f"budget {budget.bytes / 1e6:.6g} MB is below the least to be had, {mixes.least_bytes / 1e6:.6g} MB with "
            "all links dropped; pass more --memory"
        )
    return f"both budgets cannot be met together in {ticks} ticks, rounded up; pass more --memory or a lower --speedup"
