"""The contract: a plan counts only when the model it makes is as fast as was asked, timed end to end on this machine.

A cost table predicts; a clock decides. The search is given a time budget, the model is assembled and timed against the
original in turn, and the search repeats with a tighter budget until the promise holds, or it is known what can be had.
It holds at the bad end: the lower bound of the speed-up's interval reaches the target (of a latency, the upper bound).
Where the interval straddles the target, more rounds are timed before it is decided.

A plan that holds need not be the best that does: predictions are wrong in both directions, and the plan with one link
more was never timed. So the neighbours on the other side of the predicted boundary are timed too, nearest first to
where the target lies by the clock, and the plan that costs least of those that hold is kept. On a noisy machine many
straddle, so that they are timed longer only while they could change the choice, out of one account for all of them;
what stays undecided is said.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Generic, Protocol, TypeVar

from chinchilla_lm.console import Console
from chinchilla_lm.errors import ContractError
from chinchilla_lm.plan import Plan
from chinchilla_lm.runtime.measuring.clock import Median, Ratio

# Searches at most: each miss tightens the budget by what was missed, so three are usual.
MAX_ROUNDS = 8
# The bound must reach the target and this share more. The interval knows the noise of its own rounds, not what changes
# until the last timing: where the weights lie in memory, and what else runs. With half of it, two last timings of the
# demo missed 1.01 by a hair, at 1.03 and 1.02 where the search had seen 1.04.
HEADROOM = 0.02
# A miss tightens the budget by the miss and by this much more; without it, noise can stall the loop.
EXTRA = 0.01
# A timing that straddles the target goes on up to so many times its first stretch. It is looked at after 1, 2 and 4:
# three looks in place of one let a plan that just misses pass in about 5 % of cases instead of 2.5 %.
LONGEST = 4
# Neighbours that are searched for at most, and how far beyond the line that the clock draws: a table that is right on
# the whole may still be off by so much for a single plan (assumption). With half of it, 4 of 300 simulated clocks that
# are off by up to a tenth hid the best plan; the whole finds it in all, for a tenth of a plan more to be timed.
NEIGHBOURS = 4
SCATTER = 0.1
# What neighbours that straddle the target may take beyond one stretch each, all together: as much as one of them, the
# nearest, takes for its longest. On a quiet machine one straddles at most.
SHARED_STRETCHES = LONGEST - 1
# What is proposed instead of the impossible: this share of the way to a model without links (assumption).
PROPOSED = 0.6


@dataclass(frozen=True, slots=True)
class Timed:
    """How fast a model is against the original, and how long it takes, in milliseconds."""

    speedup: Ratio
    latency_ms: Median


class Race(Protocol):
    """A model and the original, to be timed in turn."""

    def run(self, stretches: int) -> Timed:
        """Time for so many stretches more; what all rounds so far say."""


class Predictions(Protocol):
    """What is predicted of plans: a cost table of drops, or one of drops and formats."""

    @property
    def total_us(self) -> float:
        """Of the original."""

    def plan_us(self, plan: Plan) -> float:
        """Of a plan."""

    def plan_cost(self, plan: Plan) -> float:
        """What the choices of a plan cost, added up."""

    def steps(self, plan: Plan) -> tuple[float, int]:
        """Microseconds by which another plan is slower at least, and up to how many such steps there are."""

    def fastest(self) -> Plan:
        """The plan that is predicted to take least."""


P = TypeVar("P", bound=Predictions)
StartRace = Callable[[Plan], Race]
CostOf = Callable[[Plan], float]
Allow = Callable[[int], bool]


@dataclass(frozen=True, slots=True)
class Target:
    """At most one of the two: a speed-up over the original, or a latency in milliseconds, both at the asked shape."""

    speedup: float | None = None
    latency_ms: float | None = None

    @property
    def given(self) -> bool:
        """Whether there is one at all."""
        return self.speedup is not None or self.latency_ms is not None

    def budget_us(self, total_us: float) -> float:
        """Time that the timed work may take, in microseconds."""
        if self.speedup is not None:
            return total_us / self.speedup
        assert self.latency_ms is not None
        return self.latency_ms * 1000

    def reached(self, timed: Timed) -> Ratio:
        """How many times the promise is kept, with its interval: it holds where the lower bound is 1.0 or more."""
        if self.speedup is not None:
            ratio = timed.speedup
            return Ratio(ratio.value / self.speedup, ratio.low / self.speedup, ratio.high / self.speedup)
        assert self.latency_ms is not None
        latency = timed.latency_ms
        return Ratio(self.latency_ms / latency.value, self.latency_ms / latency.high, self.latency_ms / latency.low)

    def holds(self, timed: Timed, headroom: float = 0.0) -> bool:
        """Whether the bad end of the interval reaches the target, where there is one."""
        return not self.given or self.reached(timed).low >= 1 + headroom

    def straddled(self, timed: Timed, headroom: float = 0.0) -> bool:
        """Whether the interval has the target in it, so that more rounds could decide either way."""
        return self.reached(timed).low < 1 + headroom <= self.reached(timed).high

    def settle(self, race: Race, headroom: float = 0.0, allow: Allow | None = None) -> Timed:
        """Time until the interval lies on one side of the target, or for as long as it may take; twice the shortest
        where there is no target. allow: asked before so many stretches more."""
        if not self.given:
            return race.run(2)
        timed, stretches = race.run(1), 1
        while stretches < LONGEST and self.straddled(timed, headroom) and (allow is None or allow(stretches)):
            timed, stretches = race.run(stretches), 2 * stretches
        return timed

    def words(self) -> str:
        """`speed-up 2` or `latency 5 ms`."""
        return f"speed-up {self.speedup:g}" if self.speedup is not None else f"latency {self.latency_ms:g} ms"


@dataclass(frozen=True, slots=True)
class Try:
    """One plan that was assembled and timed."""

    plan: Plan
    budget_us: float
    predicted_us: float
    speedup: Ratio
    latency_ms: Median
    holds: bool

    @property
    def timed(self) -> Timed:
        """What the clock said of it."""
        return Timed(self.speedup, self.latency_ms)

    def facts(self) -> dict[str, float]:
        """As a plan's origin keeps it."""
        return {
            "links": len(self.plan.kept),
            "budget_us": self.budget_us,
            "predicted_us": self.predicted_us,
            "speedup": self.speedup.value,
            "speedup_low": self.speedup.low,
            "latency_ms": self.latency_ms.value,
            "holds": self.holds,
        }


def fulfil(
    table: P,
    target: Target,
    search: Callable[[P, float], Plan],
    start: StartRace,
    console: Console,
    *,
    cost: CostOf | None = None,
    neighbours: int = NEIGHBOURS,
) -> tuple[Try, list[Try]]:
    """The plan that costs least of those that keep the promise when timed, and all that were timed.

    start: gives the race of a plan's model. cost: true cost of a plan; without it, what the table adds up. neighbours:
    searches beyond the plan that holds, at most; with 0 the first that holds is taken.
    Raises ContractError, with what can be had, when no plan keeps it.
    """
    contract = _Contract(table, target, search, start, console, cost or table.plan_cost)
    best = contract.climb(contract.descend(), neighbours)
    origin = {**best.plan.origin, "measured": [attempt.facts() for attempt in contract.tries]}
    return replace(best, plan=replace(best.plan, origin=origin)), contract.tries


@dataclass
class _Contract(Generic[P]):
    """What is asked, and the plans that were timed so far."""

    table: P
    target: Target
    search: Callable[[P, float], Plan]
    start: StartRace
    console: Console
    cost: CostOf
    tries: list[Try] = field(default_factory=list)
    shared_stretches: int = SHARED_STRETCHES

    def time(self, plan: Plan, budget_us: float, allow: Allow | None = None) -> Try:
        """Time a plan until it is decided, for as long as is allowed, and tell it."""
        timed = self.target.settle(self.start(plan), HEADROOM, allow)
        holds = self.target.holds(timed, HEADROOM)
        predicted_us = self.table.plan_us(plan)
        self.tries.append(Try(plan, budget_us, predicted_us, timed.speedup, timed.latency_ms, holds))
        ratio, latency = timed.speedup, timed.latency_ms
        straddles = self.target.straddled(timed, HEADROOM)
        self.console.say(
            f"contract: {len(plan.kept)} of {2 * plan.num_blocks} links kept{_formats(plan)}: "
            f"predicted {self.table.total_us / max(predicted_us, 1e-9):.2f}× and {predicted_us / 1000:.2f} ms, "
            f"measured {ratio.value:.2f}× [{ratio.low:.2f}, {ratio.high:.2f}] and {latency.value:.2f} ms "
            f"[{latency.low:.2f}, {latency.high:.2f}] "
            f"({'holds' if holds else 'misses, for the bad end decides' if straddles else 'misses'})"
        )
        return self.tries[-1]

    def descend(self) -> Try:
        """Tighten the budget until a plan holds."""
        budget = self.target.budget_us(self.table.total_us) / (1 + HEADROOM)
        for _ in range(MAX_ROUNDS):
            try:
                plan = self.search(self.table, budget)
            except ContractError as error:
                raise ContractError(self.what_can_be_had()) from error
            attempt = self.time(plan, budget)
            if attempt.holds:
                return attempt
            reached = self.target.reached(attempt.timed)
            kept = _known(reached.low, reached.value) / (1 + HEADROOM)
            # The next plan must differ: at least one more link has to go.
            budget = min(budget, attempt.predicted_us) * min(kept, 1 - EXTRA) * (1 - EXTRA)
        raise ContractError(self.what_can_be_had())

    def climb(self, best: Try, neighbours: int) -> Try:
        """Time plans with a larger budget than the one that holds, and keep the best that holds."""
        asked: list[float] = []
        last = best
        while len(asked) < neighbours:
            budget = self._rung(best, self._line(last), asked)
            if budget is None:
                break
            asked.append(budget)
            plan = self.search(self.table, budget)
            if any(_same(plan, attempt.plan) for attempt in self.tries):
                continue
            last = self.time(plan, budget, partial(self._allow, plan, best))
            if last.holds and self._rank(last) < self._rank(best):
                best = last
        if asked:
            self._say_what_is_kept(best)
        return best

    def _allow(self, plan: Plan, best: Try, stretches: int) -> bool:
        """Whether a neighbour that straddles the target is timed longer: while it would be kept if it held, and out of
        what is left for all neighbours."""
        if not self._preferred(plan, best) or stretches > self.shared_stretches:
            return False
        self.shared_stretches -= stretches
        return True

    def _preferred(self, plan: Plan, best: Try) -> bool:
        """Whether a plan would be kept in place of the best so far, if it held."""
        return (self.cost(plan), -len(plan.kept)) <= (self.cost(best.plan), -len(best.plan.kept))

    def _say_what_is_kept(self, best: Try) -> None:
        links = f"{len(best.plan.kept)} of {2 * best.plan.num_blocks} links"
        self.console.say(f"contract: {links} are the best of {len(self.tries)} plans timed around the target")
        undecided = [
            f"{len(attempt.plan.kept)} links at {attempt.speedup.value:.2f}× [{attempt.speedup.low:.2f}, "
            f"{attempt.speedup.high:.2f}]"
            for attempt in self.tries
            if self.target.straddled(attempt.timed, HEADROOM) and self._preferred(attempt.plan, best)
        ]
        if undecided:
            self.console.say(
                f"contract: {', '.join(undecided)} would be kept instead, but the timing leaves undecided whether "
                f"{self.target.words()} holds; search again on a quieter machine"
            )

    def _line(self, attempt: Try) -> float:
        """The predicted time at which the promise would just hold, were all plans as fast as this one is."""
        reached = self.target.reached(attempt.timed)
        return attempt.predicted_us * _known(reached.low, reached.value) / (1 + HEADROOM)

    def _rung(self, best: Try, line: float, asked: list[float]) -> float | None:
        """The budget nearest to the line that was not asked for, of those that give the best plan links back."""
        step, steps = self.table.steps(best.plan)
        if step == 0:
            return None
        most = math.floor((line * (1 + SCATTER) - best.predicted_us) / step)
        most = min(max(most, 1), steps)
        # Half a link more than the sum, as searches round times up.
        rungs = [best.predicted_us + (number + 0.5) * step for number in range(1, most + 1)]
        new = [rung for rung in rungs if all(abs(rung - earlier) > step / 2 for earlier in asked)]
        return min(new, key=lambda rung: abs(rung - step / 2 - line), default=None)

    def _rank(self, attempt: Try) -> tuple[float, int, float]:
        """Least cost first; of equal ones most links, then least time."""
        return self.cost(attempt.plan), -len(attempt.plan.kept), attempt.latency_ms.value

    def what_can_be_had(self) -> str:
        """The limit, measured: with every link dropped, nothing of the chain is left to drop. And a target within it,
        as the table predicts it too, that is no more than what was reached."""
        table, fastest = self.table, self.table.fastest()
        timed = self.start(fastest).run(1)
        ratio, latency = timed.speedup, timed.latency_ms
        most = f"without any link the model is {ratio.value:.2f}× as fast ({latency.value:.2f} ms)"
        proposed = 1 + PROPOSED * (min(ratio.value, table.total_us / table.plan_us(fastest)) - 1)
        spare = (1 + HEADROOM) ** 2
        if self.target.speedup is not None:
            bounds = [_known(tried.speedup.low, tried.speedup.value) / spare for tried in self.tries]
            # Below 1 the clock was disturbed.
            less = f"--speedup {max(1.01, min(proposed, max(bounds, default=proposed))):.2f}"
        else:
            bounds = [_known(tried.latency_ms.high, tried.latency_ms.value) * spare for tried in self.tries]
            less = f"--latency {max(latency.value * ratio.value / proposed, min(bounds, default=0.0)):.3g}"
        return f"{self.target.words()} cannot be had: {most}; ask for less, such as {less}"


def _known(bound: float, value: float) -> float:
    """The bound, or the value where one round gave none."""
    return bound if math.isfinite(bound) else value


def _same(one: Plan, other: Plan) -> bool:
    """Whether two plans make the same model."""
    return (one.choices, one.head) == (other.choices, other.head)


def _formats(plan: Plan) -> str:
    """` in int4 7, int8 5`, where the plan has formats."""
    counts = Counter([*plan.formats.values(), *([] if plan.head is None else [plan.head])])
    return " in " + ", ".join(f"{form} {count}" for form, count in sorted(counts.items())) if counts else ""
