"""The fastest model within the margin, where no speed was asked for.

Speeds are tried on dev, never on test: a plan is searched for each, its model recovered briefly and held against the
original. Which speed is tried next follows from what held so far (bisection in the logarithm of the speed-up), so that
five trials narrow a range of 1× to 8× down to some 7 %. A short recovery shows less than a full one (MiniLM's tagger
with 7 of 12 links gained another 0.7 points of F1), so the first to be recovered in full is one that missed the margin
by no more than its interval, where there is one. Where dev then does not show a model to be within the margin, the next
slower one that held is taken; where none held, the next slower one that is undecided. The test set is looked at once,
at the end.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from chinchilla_lm.console import duration
from chinchilla_lm.errors import ContractError
from chinchilla_lm.pipeline.recovery import Standing
from chinchilla_lm.plan import Plan

# Speeds that are tried.
TRIALS = 5
# The first is twice as fast as the original, or the middle of what can be had, whichever is less.
FIRST = 2.0
# Forward passes that a token of recovery takes as long as: the teacher's, the student's, and twice that backwards.
TRAINING_PASSES = 4


@dataclass(frozen=True, slots=True)
class Trial:
    """A plan, how many times as fast its model is, and where that stands on dev after a brief recovery."""

    plan: Plan
    speedup: float
    standing: Standing

    def holds(self, margin: float) -> bool:
        """Whether the estimated loss lies within the margin: recovered in full, the model does better."""
        return self.standing.loss < margin

    def undecided(self, margin: float) -> bool:
        """Whether it does not hold, and yet its interval does not rule out that it does."""
        return not self.holds(margin) and self.standing.low < margin

    def shows(self, margin: float) -> bool:
        """Whether the whole interval does."""
        return self.standing.high < margin

    def to_dict(self) -> dict[str, Any]:
        return {"plan": self.plan.to_dict(), "speedup": self.speedup, "standing": asdict(self.standing)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Trial:
        return cls(Plan.from_dict(values["plan"]), float(values["speedup"]), Standing.from_dict(values["standing"]))


@dataclass(frozen=True, slots=True)
class Effort:
    """What trials take, at most, from how long the original takes for a token of dev."""

    speeds: int
    models: int
    """that are recovered and judged: one a speed, and of the first speed one a method"""
    tokens: int
    """that each is recovered on; 0 without recovery"""
    dev_tokens: int
    """that each is judged on"""
    measures: int
    """that a search may make; 0 where they have no limit, or there are none"""
    calibration_tokens: int
    """that are read for each"""
    token_seconds: float
    dev_readings: int = 1
    """of the latter, a model: before, in and after its recovery"""
    recovery_tokens: int = 0
    """of a full recovery, where one follows that is longer than the trials'"""
    advice: bool = False
    """whether this is for a next run, the test data having been looked at"""

    @property
    def model_seconds(self) -> float:
        """For one model."""
        return (TRAINING_PASSES * self.tokens + self.dev_readings * self.dev_tokens) * self.token_seconds

    @property
    def search_seconds(self) -> float:
        """For the measurements of one search, were none of them made before."""
        return self.measures * self.calibration_tokens * self.token_seconds

    def words(self) -> str:
        """What is done, how long it takes, and what is not counted."""
        how = f"recovered on {self.tokens:,} tokens and judged" if self.tokens else "judged without recovery"
        each, whole = duration(self.model_seconds), duration(self.models * self.model_seconds)
        searches = "not counted are the searches and the timing of what they find"
        if self.measures:
            searches = (
                f"on top come the searches, of {self.measures} measurements or {duration(self.search_seconds)} each at "
                "most, and, not counted, the timing of what they find"
            )
        full = ""
        if self.recovery_tokens > self.tokens and not self.advice:
            took = duration(TRAINING_PASSES * self.recovery_tokens * self.token_seconds)
            full = (
                f"; then one is recovered in full, on {self.recovery_tokens:,} tokens, about {took}, and another each "
                "time that dev does not show it to be within the margin"
            )
        test = "" if self.advice else "; the test data are looked at once, at the end"
        return (
            f"{self.speeds} speeds are tried on dev: up to {self.models} models are {how}, about {each} each, {whole} "
            f"in all, by how fast the original reads dev; {searches}{full}{test}"
        )


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


def candidates(trials: Sequence[Trial], margin: float, *, further: bool) -> list[Trial]:
    """What to recover in full, in this order, each set of links once: of the undecided trials that are faster than all
    that hold, the one of least loss; then those that hold, the fastest first. Where none holds, the undecided ones that
    are slower than the first.

    further: whether a full recovery teaches more than a trial's; where it does not, what is undecided stays so.
    Raises ContractError where there is nothing to recover.
    """
    held = sorted((trial for trial in trials if trial.holds(margin)), key=lambda trial: -trial.speedup)
    fastest = held[0].speedup if held else 0.0
    faster = [trial for trial in trials if further and trial.undecided(margin) and trial.speedup > fastest]
    first = min(faster, key=lambda trial: trial.standing.loss, default=None)
    slower = held
    if first is not None and not held:
        slower = sorted((one for one in faster if one.speedup < first.speedup), key=lambda trial: -trial.speedup)
    ordered = [*([first] if first is not None else []), *slower]
    distinct = {trial.plan.dropped: trial for trial in reversed(ordered)}
    chosen = [trial for trial in ordered if distinct[trial.plan.dropped] is trial]
    if not chosen:
        slowest = min(trials, key=lambda trial: trial.speedup, default=None)
        if slowest is None:
            raise ContractError(nothing_holds(margin, 1.0, 0.0))
        raise ContractError(nothing_holds(margin, slowest.speedup, slowest.standing.half))
    return chosen


def nothing_holds(margin: float, slowest: float, within: float) -> str:
    """What is said where no trial comes to a model. slowest: its speed-up. within: half of the interval of its loss."""
    coarse = ""
    if within > margin:
        coarse = f"; dev tells a loss to ±{within:.2g} only, so pass more dev data too"
    return (
        f"no shortened model holds the margin of {margin:g} on dev, the slowest tried at {slowest:.2f}×; "
        f"allow a larger loss, such as --margin {2 * margin:g}, or more recovery{coarse}"
    )
