"""The fastest model within the margin, where no speed was asked for.

Speeds are tried on dev, never on test: a plan is searched for each, its model recovered briefly and held against the
original. Which speed is tried next follows from what held so far (bisection in the logarithm of the speed-up), so that
five trials narrow a range of 1× to 8× down to some 7 %. The one chosen is recovered in full; where dev then does not
show it to be within the margin, the next slower one that held is taken. The test set is looked at once, at the end.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from chinchilla_lm.errors import ContractError
from chinchilla_lm.pipeline.recovery import Standing
from chinchilla_lm.plan import Plan

# Speeds that are tried.
TRIALS = 5
# The first is twice as fast as the original, or the middle of what can be had, whichever is less.
FIRST = 2.0


@dataclass(frozen=True, slots=True)
class Trial:
    """A plan, how many times as fast its model is, and where that stands on dev after a brief recovery."""

    plan: Plan
    speedup: float
    standing: Standing

    def holds(self, margin: float) -> bool:
        """Whether the estimated loss lies within the margin: recovered in full, the model does better."""
        return self.standing.loss < margin

    def shows(self, margin: float) -> bool:
        """Whether the whole interval does."""
        return self.standing.high < margin

    def to_dict(self) -> dict[str, Any]:
        return {"plan": self.plan.to_dict(), "speedup": self.speedup, "standing": asdict(self.standing)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Trial:
        return cls(Plan.from_dict(values["plan"]), float(values["speedup"]), Standing.from_dict(values["standing"]))


def bisect(most: float, margin: float, attempt: Callable[[float], Trial | None], trials: int = TRIALS) -> list[Trial]:
    """The trials that were made, in their order. most: the speed-up of a model without links, above 1.

    attempt: tries one speed-up; None where it cannot be had, which counts as one that does not hold.
    """
    low, high = 1.0, most
    made: list[Trial] = []
    for _ in range(trials):
        speed = min(FIRST * low, math.sqrt(low * high))
        trial = attempt(speed)
        if trial is not None:
            made.append(trial)
        if trial is not None and trial.holds(margin):
            low = max(speed, min(trial.speedup, high))
        else:
            high = speed
    return made


def candidates(trials: Sequence[Trial], margin: float) -> list[Trial]:
    """Those that hold, the fastest first, each set of links once.

    Raises ContractError where none does.
    """
    held = sorted((trial for trial in trials if trial.holds(margin)), key=lambda trial: -trial.speedup)
    distinct = {trial.plan.dropped: trial for trial in reversed(held)}
    chosen = [trial for trial in held if distinct[trial.plan.dropped] is trial]
    if not chosen:
        least = min((trial.speedup for trial in trials), default=1.0)
        raise ContractError(
            f"no shortened model holds the margin of {margin:g} on dev, the slowest tried at {least:.2f}×; "
            f"allow a larger loss, such as --margin {2 * margin:g}, or more recovery"
        )
    return chosen
