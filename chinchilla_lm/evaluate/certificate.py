"""Is the changed model still as good? A non-inferiority test on paired data, with a margin that a person chose.

The changed model passes when the whole 95 % interval of the difference lies on the good side of the margin: the data
then rule out, at 2.5 % one-sided, a loss as large as the margin (Piaggio et al., "Reporting of noninferiority and
equivalence randomized trials", JAMA 2012). "No significant difference" would be the wrong question: with few examples
the answer is always yes.

Three outcomes: passed; failed, the estimate itself lies beyond the margin; undecided, the estimate is within the margin
but the interval is not, so that more examples could still decide. The half-width of an interval shrinks with the square
root of the number of examples, which says how many more it would take if the estimate stays where it is.
"""

import math
from dataclasses import dataclass, replace
from statistics import NormalDist

import numpy as np

from chinchilla_lm.errors import InputError
from chinchilla_lm.evaluate.sums import Difference, Sums, Unit, finite_or_none, paired
from chinchilla_lm.resampling import LEVEL, Floats
from chinchilla_lm.results import Decision, Verdict

MAX_MARGIN = 50.0
"""Points or percent. A loss of half the quality is not "still as good" by any reading; such a margin is a slip."""

MIN_DOCUMENTS = 6
"""A bootstrap interval lies between the smallest and the largest document. The range of k symmetric observations holds
their centre with probability 1 - 2 * 2**-k, and 6 is the first k where that reaches 95 %."""


@dataclass(frozen=True)
class Certificate:
    """The verdict on one metric. Difference, bounds and margin are in `unit`; a bound is NaN with one document only."""

    metric: str
    difference: float
    low: float
    high: float
    margin: float
    n: int
    unit: Unit
    passed: bool
    decided: bool
    more_examples: int | None
    """How many examples beyond `n` would decide; None when the data do decide."""
    verdict: str
    """One sentence for a person."""

    def to_dict(self) -> Verdict:
        return {**self.decision(), "passed": self.passed, "more_examples": self.more_examples}

    def decision(self) -> Decision:
        """Without the verdict."""
        return {
            "metric": self.metric,
            "difference": finite_or_none(self.difference),
            "low": finite_or_none(self.low),
            "high": finite_or_none(self.high),
            "margin": self.margin,
            "n": self.n,
            "unit": self.unit,
        }


def certify(original: Sums, changed: Sums, margin: float, n: int, *, identical: bool = False) -> Certificate:
    """Non-inferior within `margin` (points or percent, as the metric's unit says) at 95 %, from `n` examples.

    Higher is better: passes if low > -margin. Lower is better: passes if high < margin. identical: the models' outputs
    are the same to the last bit, which passes however few documents there are; otherwise fewer than MIN_DOCUMENTS
    decide nothing. Raises InputError for a margin outside (0, 50], n below 1, or sums that cannot be compared.
    """
    check_margin(margin, original.name, original.unit)
    if n < 1:
        raise InputError(f"n = {n} examples; a certificate needs at least 1; pass a split that is not empty")
    difference = paired(original, changed)
    equal = np.array_equal(original.per_document, changed.per_document)
    # Equal likelihoods come from equal models; equal counts of right answers say little where there are few.
    if equal and (identical or original.unit == "percent"):
        difference = Difference(0.0, 0.0, 0.0, original.documents)
        more = None
    else:
        if original.unit == "points" and original.higher_is_better:
            difference = _with_unseen_losses(original, changed, difference, n)
        more = _more_examples(difference, original.higher_is_better, margin, n)
    passed = more is None and _loss(difference, original.higher_is_better)[1] < margin
    return Certificate(
        metric=original.name,
        difference=difference.value,
        low=difference.low,
        high=difference.high,
        margin=margin,
        n=n,
        unit=original.unit,
        passed=passed,
        decided=more is None,
        more_examples=more,
        verdict=_verdict(original, difference, margin, n, passed, more),
    )


def _with_unseen_losses(original: Sums, changed: Sums, difference: Difference, n: int) -> Difference:
    """The interval, made to hold the losses and gains that so few examples need not show.

    A bootstrap of a sample without a loss knows of none. Where documents got worse, their number is a count, whose
    upper bound at 97.5 % is `most_of`(count): 3.7 where none did. Each is taken to weigh what those that changed weigh,
    or, where none did, what one of n examples does.
    """
    without = 100 * (changed.statistic(_less_each(changed)) - original.statistic(_less_each(original)))
    touched = np.any(original.per_document != changed.per_document, axis=1)
    effects = (difference.value - without)[touched]  # of each document on the difference, in points
    weight = float(np.abs(effects).mean()) if np.any(effects) else 100 / n
    worse, better = (int((sign * effects > weight / 1000).sum()) for sign in (-1, 1))
    low = difference.value - (most_of(worse) - worse) * weight
    high = difference.value + (most_of(better) - better) * weight
    return replace(difference, low=min(difference.low, low), high=max(difference.high, high))


def most_of(count: int) -> float:
    """The upper bound at 97.5 % of what is expected where so many were counted (Poisson; Wilson & Hilferty 1931)."""
    k = count + 1
    return float(k * (1 - 1 / (9 * k) + NormalDist().inv_cdf((1 + LEVEL) / 2) / (3 * math.sqrt(k))) ** 3)


def _less_each(sums: Sums) -> Floats:
    return sums.per_document.sum(axis=0) - sums.per_document


def check_margin(margin: float, metric: str, unit: Unit) -> None:
    """Raises InputError unless 0 < margin <= 50; a verb calls this before it spends hours."""
    if not 0 < margin <= MAX_MARGIN:
        title = _title(metric)
        scale = f"{title} points" if unit == "points" else f"percent of {title}"
        raise InputError(f"margin {margin} is not in (0, {MAX_MARGIN:g}] {scale}; pass --margin 1.0")


def _loss(difference: Difference, higher_is_better: bool) -> tuple[float, float]:
    """The estimated loss and the largest that the data allow; positive is worse, whichever way the metric points."""
    if higher_is_better:
        return -difference.value, -difference.low
    return difference.value, difference.high


def _more_examples(difference: Difference, higher: bool, margin: float, n: int) -> int | None:
    """Examples still needed, None if the data decide."""
    if difference.units < MIN_DOCUMENTS:
        return math.ceil(n * MIN_DOCUMENTS / difference.units) - n
    loss, worst = _loss(difference, higher)
    if loss >= margin or worst < margin:
        return None
    if not math.isfinite(worst):
        return n
    needed = n * ((worst - loss) / (margin - loss)) ** 2
    return max(1, math.ceil(needed) - n)


def _verdict(original: Sums, difference: Difference, margin: float, n: int, passed: bool, more: int | None) -> str:
    unit = "points" if original.unit == "points" else "%"
    interval = (
        f"95 % interval {difference.low:+.2f} to {difference.high:+.2f}" if original.documents > 1 else "no interval"
    )
    among = f"{original.documents} documents"
    if original.consecutive:
        among = f"{original.documents} pieces of running text, taken as {difference.units} blocks"
    change = f"{_title(original.name)} {difference.value:+.2f} {unit}"
    facts = f"{change} ({interval}; margin {margin:g}; {n} examples in {among})"
    if passed:
        return f"passed: {facts}"
    if more is None:
        return f"failed: {facts}, a loss beyond the margin"
    if difference.units < MIN_DOCUMENTS:
        what = "blocks" if original.consecutive else "documents"
        return f"undecided: {facts}; at least {MIN_DOCUMENTS} {what} are needed, about {more} more examples"
    return f"undecided: {facts}; about {more} more examples would decide"


def _title(metric: str) -> str:
    return metric.replace("_", " ").replace("f1", "F1")
