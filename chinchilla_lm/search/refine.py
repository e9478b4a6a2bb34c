"""Repair of the shortest path where costs do not add up.

Near the whole model the KL of dropping a set S is about ½‖Σ u_j‖²: the costs of single links plus a term for every
pair. Dropped links write correlated content, so the pairs matter, and a plan that is optimal for the sum need not be
good. Three rungs of a ladder, each accepted only where the *true* cost of dropping everything together falls:

1. The one-shot path: `dp.solve` on the table.
2. A trust region around the incumbent S. Every link is turned over alone, cost(S ± j) - cost(S) (`measure_around`),
   and the shortest path is sought on these costs with at most m links changed, m from a quarter of the chain. If its
   true cost is no better, m is halved.
3. A polish by mutation in the manner of EvoPress (arXiv 2410.14649): n = min(U{1..3}, U{1..3}) swaps of one kept link
   with one dropped, best of a few children. Ours need no equal counts of attention and MLP: a child drops until it
   fits the time budget, and half the time what is left of it restores links at random.

Measuring is what costs, so `max_measures` limits the whole, and a set is measured once. `origin` tells the ladder, with
the Lagrangian bound of the additive problem: how far the first rung can be from the best *additive* plan.
"""

import random
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from fractions import Fraction

from chinchilla_lm.plan import CostTable, Plan, pair
from chinchilla_lm.plan.strict import check_whole
from chinchilla_lm.search.budget import fits, make_plan
from chinchilla_lm.search.dp import TICKS, Edge, cheapest_path, lagrangian_bound, solve, time_kept, ways
from chinchilla_lm.search.memo import Allowance, Measure, Memo

MAX_MEASURES = 400  # about six rounds of all links of a 30-block model (assumption)
TRUST_SHARE = 0.75  # of max_measures that rung 2 may use, so that some are left for rung 3 (assumption)
OFFSPRING = 8  # children a generation; EvoPress "super-fast" has 16, with cheaper first looks (assumption)
BARREN = 50  # children in a row that were all measured before: the neighbourhood is used up (assumption)


@dataclass(frozen=True)
class Progress:
    """Told after every new measurement: `measures` of at most `max_measures`, and the true cost of the incumbent."""

    stage: str
    measures: int
    max_measures: int
    best_cost: float


@dataclass(frozen=True)
class Rung:
    """The best plan after a stage, and the measurements made up to there."""

    stage: str
    true_cost: float
    additive_cost: float
    predicted_us: float
    measures: int
    dropped: list[str]


def measure_around(measure: Measure, dropped: frozenset[str], candidates: Collection[str]) -> dict[str, float]:
    """Change of true cost when each candidate alone is turned over: dropped if kept, restored if dropped."""
    here = measure(dropped)
    return {name: measure(dropped ^ {name}) - here for name in candidates}


def refine(
    table: CostTable,
    budget_us: float,
    measure: Measure,
    *,
    max_measures: int = MAX_MEASURES,
    seed: int = 0,
    protected: Collection[str] = frozenset(),
    ticks: int = TICKS,
    on_progress: Callable[[Progress], None] | None = None,
) -> Plan:
    """The best plan found within the budget, never worse than `dp.solve` under `measure`.

    The same seed gives the same plan and trace. `origin["ladder"]` has the rungs `dp`, `trust-region` and `polish`.

    Args:
        budget_us: microseconds per forward pass for the whole model.
        measure: true cost of dropping a set of links together.
        max_measures: limit on new measurements; 1 is the one-shot path with its true cost.
        seed: of the polish.
        protected: links that must be kept.
        ticks: resolution of the shortest path.
        on_progress: called after each new measurement.

    Raises:
        InputError, ContractError: as `dp.solve`; ContractError also if a measured cost is not finite.
    """
    check_whole(max_measures, "max_measures", 1)
    check_whole(seed, "seed", 0)
    start = frozenset(solve(table, budget_us, ticks=ticks, protected=protected).dropped)
    climb = _Climb(
        table, budget_us, Allowance(Memo.of(measure), max_measures), frozenset(protected), on_progress, start
    )
    climb.rung("dp")
    # A full model that fits is the plan whatever it costs: no budget, no change.
    if start:
        _trust_region(climb, ticks)
        climb.rung("trust-region")
        _polish(climb, random.Random(seed))
        climb.rung("polish")
    origin = {
        "true_cost": climb.best_cost,
        "lagrangian_bound": lagrangian_bound(table, budget_us, protected=protected),
        "protected": sorted(protected),
        "seed": seed,
        "max_measures": max_measures,
        "measures": climb.allowed.used,
        "ladder": [asdict(rung) for rung in climb.ladder],
    }
    return make_plan(table, climb.best, "refine", budget_us, origin)


@dataclass
class _Climb:
    """The incumbent on its way up the ladder, and the measurements it may still make."""

    table: CostTable
    budget_us: float
    allowed: Allowance
    protected: frozenset[str]
    on_progress: Callable[[Progress], None] | None
    best: frozenset[str]
    stage: str = "dp"
    ladder: list[Rung] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.best_cost = self.allowed.memo(self.best)
        self._report()

    def measure(self, dropped: frozenset[str]) -> float:
        new = dropped not in self.allowed.memo
        cost = self.allowed.memo(dropped)
        if new:
            self._report()
        return cost

    def accept(self, dropped: frozenset[str]) -> bool:
        """Measure, and make it the incumbent if it is truly better."""
        cost = self.measure(dropped)
        if cost >= self.best_cost:
            return False
        self.best, self.best_cost = dropped, cost
        return True

    def rung(self, stage: str) -> None:
        table, names = self.table, sorted(self.best, key=self.table.links.index)
        additive, predicted = table.cost_of(self.best), table.predict_us(self.best)
        self.ladder.append(Rung(stage, self.best_cost, additive, predicted, self.allowed.used, names))

    def _report(self) -> None:
        if self.on_progress is not None:
            self.on_progress(Progress(self.stage, self.allowed.used, self.allowed.most, self.best_cost))


def _trust_region(climb: _Climb, ticks: int) -> None:
    """Rung 2. Ends when no change, however small, is truly better, or when its share of measurements is used."""
    climb.stage = "trust-region"
    room_us = Fraction(climb.budget_us) - Fraction(climb.table.fixed_us)
    order = _most_promising(climb)
    max_changes = max(1, len(climb.table.links) // 4)
    while max_changes >= 1:
        fresh = [name for name in order if climb.best ^ {name} not in climb.allowed.memo]
        # One measurement is kept for the path that these costs lead to.
        skipped = set(fresh[max(0, climb.allowed.left(TRUST_SHARE) - 1) :])
        changes = measure_around(climb.measure, climb.best, [name for name in order if name not in skipped])
        blocks = [_edges_around(climb, block, changes) for block in range(climb.table.num_blocks)]
        path = cheapest_path(blocks, room_us, ticks, max_changes)
        if path is None or path == climb.best:
            return  # fewer changes allow no more than these did
        if path not in climb.allowed.memo and climb.allowed.left(TRUST_SHARE) < 1:
            return
        if not climb.accept(path):
            max_changes //= 2


def _most_promising(climb: _Climb) -> list[str]:
    """Links that may be turned over, the least sure by the table first: cheap if kept, dear if dropped."""
    table = climb.table
    free = [name for name in table.links if name not in climb.protected and table.time(name) > 0]
    ascending = sorted(free, key=lambda name: table.cost(name) / table.time(name))
    kept = [name for name in ascending if name not in climb.best]
    dropped = [name for name in reversed(ascending) if name in climb.best]
    rank = {name: index for names in (kept, dropped) for index, name in enumerate(names)}
    return sorted(free, key=lambda name: (rank[name], table.links.index(name)))


def _edges_around(climb: _Climb, block: int, changes: dict[str, float]) -> list[Edge]:
    """The edges over a block at their change of true cost; a link without a measured change stays as it is."""
    before = climb.best.intersection(pair(block))
    edges = []
    for way in ways(block):
        turned = before.symmetric_difference(way)
        if turned <= changes.keys():
            cost = sum(changes[name] for name in sorted(turned))
            edges.append(Edge(way, cost, time_kept(climb.table, block, way), len(turned)))
    return edges


def _polish(climb: _Climb, rng: random.Random) -> None:
    """Rung 3. Ends when all measurements are used, or when mutation finds nothing new."""
    climb.stage = "polish"
    while climb.allowed.left() > 0:
        children: list[frozenset[str]] = []
        for child in _new_children(climb, rng):
            children.append(child)
            if len(children) == min(OFFSPRING, climb.allowed.left()):
                break
        if not children:
            return
        costs = {child: climb.measure(child) for child in children}
        climb.accept(min(children, key=lambda child: costs[child]))


def _new_children(climb: _Climb, rng: random.Random) -> Iterator[frozenset[str]]:
    """Children never measured before, until `BARREN` in a row were known."""
    seen: set[frozenset[str]] = set()
    barren = 0
    while barren < BARREN:
        child = _mutate(climb, rng)
        if child in climb.allowed.memo or child in seen:
            barren += 1
            continue
        barren = 0
        seen.add(child)
        yield child


def _mutate(climb: _Climb, rng: random.Random) -> frozenset[str]:
    """The incumbent with one to three links restored, others dropped until it fits, spare time at times refilled.

    Half the time, what went beyond need stays dropped: dropping *more* links can cost less where they cancel.
    """
    table, best = climb.table, climb.best
    gone = [name for name in table.links if name in best]
    live = [name for name in table.links if not (name in best or name in climb.protected or table.time(name) == 0)]
    swaps = min(rng.randint(1, 3), rng.randint(1, 3), len(gone))
    child = best.difference(rng.sample(gone, swaps))
    for name in _shuffled(live, rng):
        if fits(table, child, climb.budget_us):
            break
        child |= {name}
    if not fits(table, child, climb.budget_us):
        return best  # what was restored takes more time than all others can give
    if rng.random() < 0.5:
        for name in _shuffled([name for name in gone if name in child], rng):
            if fits(table, child - {name}, climb.budget_us):
                child -= {name}
    return child


def _shuffled(names: Sequence[str], rng: random.Random) -> list[str]:
    return rng.sample(list(names), len(names))
