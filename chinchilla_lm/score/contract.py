"""The contract: a plan counts only when the model it makes is as fast as was asked, timed end to end on this machine.

A cost table predicts; a clock decides. The search is given a time budget, the model is assembled and timed against the
original in turn, and the search repeats with a tighter budget until the promise holds, or it is known what can be had.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from chinchilla_lm.console import Console
from chinchilla_lm.errors import ContractError
from chinchilla_lm.plan import CostTable, Plan, chain
from chinchilla_lm.runtime.measuring.clock import Ratio

# Searches at most: each miss tightens the budget by what was missed, so three are usual.
MAX_ROUNDS = 8
# A plan must be faster than asked by this share, so that noise in the final timing does not break the promise.
HEADROOM = 0.02
# A miss tightens the budget by the miss and by this much more; without it, noise can stall the loop.
EXTRA = 0.01
# What is proposed instead of the impossible: this share of the way to a model without links (assumption).
PROPOSED = 0.6

Search = Callable[[CostTable, float], Plan]
TimeAgainstOriginal = Callable[[Plan], tuple[Ratio, float]]


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
        """Time that one pass may take, in microseconds."""
        if self.speedup is not None:
            return total_us / self.speedup
        assert self.latency_ms is not None
        return self.latency_ms * 1000

    def reached(self, ratio: Ratio, latency_ms: float) -> float:
        """How many times the promise is kept: 1.0 or more is enough."""
        if self.speedup is not None:
            return ratio.value / self.speedup
        assert self.latency_ms is not None
        return self.latency_ms / latency_ms

    def words(self) -> str:
        """`speed-up 2` or `latency 5 ms`."""
        return f"speed-up {self.speedup:g}" if self.speedup is not None else f"latency {self.latency_ms:g} ms"


@dataclass(frozen=True, slots=True)
class Try:
    """One plan that was assembled and timed."""

    plan: Plan
    budget_us: float
    speedup: Ratio
    latency_ms: float


def fulfil(
    table: CostTable, target: Target, search: Search, clock: TimeAgainstOriginal, console: Console
) -> tuple[Try, list[Try]]:
    """The first plan that keeps the promise, and all that were tried.

    Raises ContractError, with what can be had, when no plan does.
    """
    tries: list[Try] = []
    budget = target.budget_us(table.total_us) / (1 + HEADROOM)
    for _ in range(MAX_ROUNDS):
        try:
            plan = search(table, budget)
        except ContractError as error:
            raise ContractError(_what_can_be_had(table, target, clock, tries)) from error
        ratio, latency_ms = clock(plan)
        tries.append(Try(plan, budget, ratio, latency_ms))
        kept = target.reached(ratio, latency_ms) / (1 + HEADROOM)
        console.say(
            f"contract: {len(plan.kept)} of {2 * plan.num_blocks} links kept, measured {ratio.value:.2f}× "
            f"[{ratio.low:.2f}, {ratio.high:.2f}], {latency_ms:.2f} ms ({'holds' if kept >= 1 else 'misses'})"
        )
        if kept >= 1:
            timed = replace(plan, origin={**plan.origin, "measured": _facts(tries)})
            return Try(timed, budget, ratio, latency_ms), tries
        # The next plan must differ: at least one more link has to go.
        room = table.predict_us(plan.dropped)
        budget = min(budget, room) * min(kept, 1 - EXTRA) * (1 - EXTRA)
    raise ContractError(_what_can_be_had(table, target, clock, tries))


def _facts(tries: list[Try]) -> list[dict[str, float]]:
    return [
        {
            "budget_us": one.budget_us,
            "speedup": one.speedup.value,
            "latency_ms": one.latency_ms,
            "links": len(one.plan.kept),
        }
        for one in tries
    ]


def _what_can_be_had(table: CostTable, target: Target, clock: TimeAgainstOriginal, tries: list[Try]) -> str:
    """The limit, measured: with every link dropped, nothing of the chain is left to drop. And a target within it, as
    the table predicts it too, that is no more than what was reached."""
    names = [link.name for link in chain(table.num_blocks)]
    ratio, latency_ms = clock(Plan.from_dropped(table.num_blocks, names, norms=table.norms))
    most = f"without any link the model is {ratio.value:.2f}× as fast ({latency_ms:.2f} ms)"
    proposed = 1 + PROPOSED * (min(ratio.value, table.total_us / table.predict_us(names)) - 1)
    if target.speedup is not None:
        reached = max((one.speedup.value / (1 + 2 * HEADROOM) for one in tries), default=proposed)
        less = f"--speedup {max(1.01, min(proposed, reached)):.2f}"  # below 1 the clock was disturbed
    else:
        least_ms = min((one.latency_ms * (1 + 2 * HEADROOM) for one in tries), default=0.0)
        less = f"--latency {max(latency_ms * ratio.value / proposed, least_ms):.3g}"
    return f"{target.words()} cannot be had: {most}; ask for less, such as {less}"
