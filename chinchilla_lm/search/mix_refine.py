"""Repair of the cheapest mix where costs do not add up, by true measurements of whole mixes.

As in `refine.py`, three rungs, each accepted only where the *true* cost of the whole mix falls:

1. The one-shot path over the tables.
2. A trust region. Around the incumbent S every link that might be worth it is turned over, dropped if kept, restored in
   its finest format if dropped, and the change of true cost measured. What one format costs more than another stays as
   the table has it: rounding errors hardly interact. On these costs the cheapest mix with at most m links turned over
   is sought, m from a quarter of the chain; where it is no better, m is halved.
3. A polish by mutation of the set of dropped links; the formats of what is left are the cheapest for each set, exactly.

No link is dropped whose own cost is twice that of the whole incumbent: formats cost nothing less than nothing. Where
formats alone meet the budgets cheaply, little is left to measure.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field

from chinchilla_lm.plan import Plan
from chinchilla_lm.plan.strict import check_whole
from chinchilla_lm.search.memo import Allowance, Memo
from chinchilla_lm.search.mixes import DROP, Budget, Found, Mix, Mixes, cheapest_mix, mix_with, solve_mix, split
from chinchilla_lm.search.refine import BARREN, OFFSPRING, TRUST_SHARE, Progress

# Of the incumbent's true cost, what a link may cost by itself to be thought of as dropped (assumption).
PROMISING = 2.0


def key_of(mix: Mix) -> frozenset[str]:
    """A mix as a set of words, `3.attn=int4`, which a `Memo` remembers it by."""
    return frozenset(f"{name}={choice}" for name, choice in mix.items())


def mix_of(key: frozenset[str]) -> dict[str, str]:
    """The inverse of `key_of`."""
    return {name: choice for name, _, choice in (word.partition("=") for word in key)}


@dataclass(frozen=True)
class MixRung:
    """The best mix after a stage, and the measurements made up to there."""

    stage: str
    true_cost: float
    additive_cost: float
    predicted_us: float
    predicted_bytes: int
    measures: int
    dropped: list[str]


def refine_mix(
    mixes: Mixes,
    budget: Budget,
    measure: Memo,
    *,
    max_measures: int,
    seed: int = 0,
    on_progress: Callable[[Progress], None] | None = None,
) -> Plan:
    """The best mix found within the budgets, never worse than that of `solve_mix` by true cost.

    measure: true cost of a mix, by its `key_of`. The same seed gives the same plan.

    Raises:
        ContractError: no mix keeps within the budgets, or a measured cost is not finite.
    """
    check_whole(max_measures, "max_measures", 1)
    start = solve_mix(mixes, budget)
    climb = _Climb(mixes, budget, Allowance(measure, max_measures), on_progress, start.mix)
    climb.rung("dp")
    _trust_region(climb)
    climb.rung("trust-region")
    _polish(climb, random.Random(seed))
    climb.rung("polish")
    origin = {
        "budget_us": budget.time_us,
        "budget_bytes": budget.bytes,
        "true_cost": climb.best_cost,
        "lower_bound": start.bound,
        "seed": seed,
        "max_measures": max_measures,
        "measures": climb.allowed.used,
        "ladder": [asdict(rung) for rung in climb.ladder],
    }
    return mixes.plan(climb.best, "mix", origin)


@dataclass
class _Climb:
    """The incumbent on its way up, and the measurements it may still make."""

    mixes: Mixes
    budget: Budget
    allowed: Allowance
    on_progress: Callable[[Progress], None] | None
    best: dict[str, str]
    stage: str = "dp"
    ladder: list[MixRung] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.best_cost = self.allowed.memo(key_of(self.best))
        self._report()

    def known(self, mix: Mix) -> bool:
        return key_of(mix) in self.allowed.memo

    def measure(self, mix: Mix) -> float:
        new = not self.known(mix)
        cost = self.allowed.memo(key_of(mix))
        if new:
            self._report()
        return cost

    def accept(self, mix: dict[str, str]) -> bool:
        """Measure, and make it the incumbent if it is truly better."""
        cost = self.measure(mix)
        if cost >= self.best_cost:
            return False
        self.best, self.best_cost = mix, cost
        return True

    def promising(self) -> list[str]:
        """Kept links that may be worth dropping, the cheapest for their time first."""
        drops, formats = self.mixes.drops, self.mixes.formats
        kept = [name for name in split(self.best)[1] if name in drops.links]
        some = [name for name in kept if drops.cost(name) <= PROMISING * self.best_cost]
        return sorted(some, key=lambda name: drops.cost(name) / max(formats.entry(name, self.best[name]).time_us, 1e-9))

    def turned(self, name: str) -> dict[str, str]:
        """The incumbent with one link dropped, or restored in its finest format."""
        restored = self.mixes.formats.finest(name).format
        return self.best | {name: restored if self.best[name] == DROP else DROP}

    def rung(self, stage: str) -> None:
        mixes, mix = self.mixes, self.best
        dropped = [name for name in mixes.drops.links if mix[name] == DROP]
        figures = (mixes.cost(mix), mixes.time(mix), mixes.bytes(mix), self.allowed.used)
        self.ladder.append(MixRung(stage, self.best_cost, *figures, dropped))

    def _report(self) -> None:
        if self.on_progress is not None:
            self.on_progress(Progress(self.stage, self.allowed.used, self.allowed.most, self.best_cost))


def _trust_region(climb: _Climb) -> None:
    """Rung 2. Ends when no change, however small, is truly better, or when its share of measurements is used."""
    climb.stage = "trust-region"
    max_changes = max(1, len(climb.mixes.drops.links) // 4)
    while max_changes >= 1:
        turned: dict[str, float] = {}
        for name in [*split(climb.best)[0], *climb.promising()]:
            # One measurement is kept for the mix that these costs lead to.
            if climb.known(climb.turned(name)) or climb.allowed.left(TRUST_SHARE) > 1:
                turned[name] = climb.measure(climb.turned(name)) - climb.best_cost
        if not turned:
            return
        blocks = climb.mixes.blocks(_costs_around(climb, turned), climb.best)
        found = cheapest_mix(climb.mixes, blocks, climb.budget, max_changes=max_changes)
        if found is None or found.mix == climb.best:
            return  # fewer changes allow no more than these did
        if not climb.known(found.mix) and climb.allowed.left(TRUST_SHARE) < 1:
            return
        if not climb.accept(found.mix):
            max_changes //= 2


def _costs_around(climb: _Climb, turned: Mapping[str, float]) -> dict[tuple[str, str], float]:
    """The change of cost by each choice; a link that was not turned over stays dropped, or kept in some format."""
    costs: dict[tuple[str, str], float] = {}
    formats = climb.mixes.formats
    for name, choice in climb.best.items():
        options = formats.options(name)
        if choice == DROP:
            costs[name, DROP] = 0.0
            finest = formats.finest(name).cost
            if name in turned:
                costs |= {(name, entry.format): turned[name] + entry.cost - finest for entry in options}
            continue
        here = formats.entry(name, choice).cost
        costs |= {(name, entry.format): entry.cost - here for entry in options}
        if name in turned:
            costs[name, DROP] = turned[name]
    return costs


def _polish(climb: _Climb, rng: random.Random) -> None:
    """Rung 3. Ends when all measurements are used, or when mutation finds nothing new."""
    climb.stage = "polish"
    while climb.allowed.left() > 0:
        children: list[dict[str, str]] = []
        for child in _new_children(climb, rng):
            children.append(child)
            if len(children) == min(OFFSPRING, climb.allowed.left()):
                break
        if not children:
            return
        costs = [climb.measure(child) for child in children]
        climb.accept(children[costs.index(min(costs))])


def _new_children(climb: _Climb, rng: random.Random) -> Iterator[dict[str, str]]:
    """Mixes never measured before, until `BARREN` in a row were known or kept no budget."""
    seen: set[frozenset[str]] = set()
    tried: set[frozenset[str]] = set()
    barren = 0
    while barren < BARREN:
        dropped = _mutate(climb, rng)
        found: Found | None = None
        if dropped not in tried:
            tried.add(dropped)
            found = mix_with(climb.mixes, dropped, climb.budget)
        if found is None or climb.known(found.mix) or key_of(found.mix) in seen:
            barren += 1
            continue
        barren = 0
        seen.add(key_of(found.mix))
        yield found.mix


def _mutate(climb: _Climb, rng: random.Random) -> frozenset[str]:
    """The incumbent's set of dropped links with up to three restored, and up to as many others dropped."""
    gone, live = split(climb.best)[0], climb.promising()
    swaps = min(rng.randint(1, 3), rng.randint(1, 3))
    restored = rng.sample(gone, min(swaps, len(gone), rng.randint(0, swaps)))
    fresh = rng.sample(live, min(len(live), rng.randint(0, swaps)))
    return frozenset(gone).difference(restored) | frozenset(fresh)
