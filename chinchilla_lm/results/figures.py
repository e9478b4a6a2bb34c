"""Figures that several verbs give, with their intervals, and the verdict of a comparison."""

from typing import Any, TypedDict

# What certificate.json holds; `runtime.certified.IssuedCertificate` says what each key means.
IssuedCertificate = dict[str, Any]


class Interval(TypedDict):
    """A value with its 95 % interval; no bounds where there was one document or one round only. F1 and accuracy are
    fractions."""

    value: float | None
    low: float | None
    high: float | None


class MetricInterval(Interval):
    """The same with what a difference of it is counted in: `points` or `percent`."""

    unit: str


class Latency(TypedDict):
    """Median and 95th percentile, in milliseconds."""

    p50: float
    p95: float


class Decision(TypedDict):
    """Changed model minus original, in points or percent (`unit`), with its 95 % interval, against the margin.

    n: examples. Bounds are None where there was one document only.
    """

    metric: str
    difference: float | None
    low: float | None
    high: float | None
    margin: float
    n: int
    unit: str


class Verdict(Decision):
    """more_examples: how many beyond `n` would decide; None where the data do."""

    passed: bool
    more_examples: int | None


class AgreementFound(TypedDict):
    """How many answers changed: the shares that are the same and that flipped from right to wrong or back, and the mean
    KL in nats; `evaluate.agreement` says more."""

    answers: int
    same: Interval
    flipped: Interval
    kl: Interval
