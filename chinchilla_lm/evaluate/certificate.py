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
from dataclasses import dataclass

import numpy as np

from chinchilla_lm.errors import InputError
from chinchilla_lm.evaluate.sums import Difference, Sums, Unit, finite_or_none, paired
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


def certify(original: Sums, changed: Sums, margin: float, n: int) -> Certificate:
    """Non-inferior within `margin` (points or percent, as the metric's unit says) at 95 %, from `n` examples.

    Higher is better: passes if low > -margin. Lower is better: passes if high < margin. Equal sums on every document
    pass, however few they are; otherwise fewer than MIN_DOCUMENTS documents decide nothing.
    Raises InputError for a margin outside (0, 50], n below 1, or sums that cannot be compared.
    """
    check_margin(margin, original.name, original.unit)
    if n < 1:
        raise InputError(f"n = {n} examples; a certificate needs at least 1; pass a split that is not empty")
    difference = paired(original, changed)
    if np.array_equal(original.per_document, changed.per_document):
        difference = Difference(0.0, 0.0, 0.0, original.documents)
        more = None
    else:
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
