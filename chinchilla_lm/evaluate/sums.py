"""Every metric is a function of sums over documents, so that one bootstrap serves all of them.

F1 is a function of three counts, perplexity of a sum of nats and a count of tokens, accuracy of two counts. Each
document contributes one row of such sums; the metric of a set of documents is `statistic(rows.sum(axis=0))`. Drawing
documents with replacement is then a matrix product: a resample is a row of integer weights (how often each document was
drawn, a multinomial), and `weights @ per_document` gives the sums of every resample at once.

Documents are drawn, not tokens or sentences: the tokens of one text share their author and topic, and treating them as
independent gives intervals that are too narrow. For a comparison, the same draws go through both models, so what makes
a document hard for both cancels (Koehn, "Statistical significance tests for machine translation evaluation", EMNLP
2004). Where documents are consecutive pieces of one text, blocks of them are drawn (`evaluate.blocks`).

The interval is the percentile one (Efron & Tibshirani, "An introduction to the bootstrap", 1993, chapter 13), expanded
for small samples (Hesterberg, "What teachers should know about the bootstrap", The American Statistician 2015): a
bootstrap knows the spread of n documents by a variance divided by n, not n - 1, and takes quantiles of a normal
where Student's t would be due. Without the expansion, a "95 %" interval over 6 documents held the truth in 86 % of
simulated data sets, over 20 in 91 %; tests/evaluate/test_sums.py measures what it does with it.

A few long documents weigh as much as many short ones, so the expansion counts effective documents, by the kurtosis of
what each of them does to the metric. And percentiles follow the skew of a sample, which that of the next one does not
share: the interval is made to hold the jackknife's too, a symmetric one with Student's t. benchmarks/false_pass.py has
what both are worth: of 40 documents of unlike length, 4.2 % of the certificates that should fail passed without.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from chinchilla_lm.errors import InputError
from chinchilla_lm.evaluate.blocks import block_draws, mean_block_length
from chinchilla_lm.resampling import LEVEL, Floats, expanded_tail, students_t
from chinchilla_lm.results import Interval

Unit = Literal["points", "percent"]

RESAMPLES = 2000
"""Draws per interval. A share of 2.5 % beyond a bound is then known to within sqrt(.025 * .975 / 2000) = 0.35 %."""

DRAWN = 0.965
"""Confidence at which the interval of a difference is drawn, so that it keeps the 95 % it promises: drawn at 95 %, it
let 2.5 % of simulated models pass on average that are as bad as the margin forbids, but up to 3.4 % on single kinds of
test set (benchmarks/false_pass.py, docs/benchmarks.md)."""

CHUNK_CELLS = 1 << 22
"""Cells of one chunk of the weights matrix: 32 MiB of float64, however many documents there are."""


@dataclass(frozen=True, eq=False)
class Sums:
    """A metric, as per-document sums and the function that turns sums into its value.

    `unit` says how two models are compared: "points" (100 * difference, for values between 0 and 1) or "percent"
    (relative change). Raises InputError if there is no document or a sum is not finite.
    """

    name: str
    unit: Unit
    higher_is_better: bool
    per_document: Floats
    """float64 [documents, columns]; rows in the same order for every model that is compared."""
    statistic: Callable[[Floats], Floats]
    """float64 [..., columns] -> float64 [...]"""
    consecutive: bool = False
    """Whether the documents are pieces of running text in its order, so that neighbours are alike."""
    ids: tuple[str, ...] = ()
    """Which document each row is, where not every model need be measured on all."""
    unfinished: frozenset[str] = frozenset()
    """Those of them that may not have been read to their end."""

    def __post_init__(self) -> None:
        assert self.per_document.ndim == 2, self.per_document.shape
        if len(self.per_document) == 0:
            raise InputError(f"{self.name} has 0 documents; a metric needs at least 1; pass a split that is not empty")
        bad = np.flatnonzero(~np.isfinite(self.per_document).all(axis=1))
        if len(bad):
            raise InputError(
                f"{self.name} has sums that are not finite in {len(bad)} of {len(self.per_document)} documents (first: "
                f"number {bad[0]}); every sum must be a number; look for NaN or overflow in the model's outputs"
            )

    @property
    def documents(self) -> int:
        return len(self.per_document)

    @property
    def value(self) -> float:
        """The metric over all documents."""
        return float(self.statistic(self.per_document.sum(axis=0)))

    @property
    def score(self) -> float:
        """The value with the sign that makes more of it better."""
        return self.value if self.higher_is_better else -self.value


@dataclass(frozen=True)
class Estimate:
    """A metric and its 95 % interval, in the metric's own scale (F1 between 0 and 1). NaN bounds: one document only."""

    value: float
    low: float
    high: float

    def to_dict(self) -> Interval:
        return {"value": finite_or_none(self.value), "low": finite_or_none(self.low), "high": finite_or_none(self.high)}


@dataclass(frozen=True)
class Difference:
    """Changed model minus original, in points or percent, and its 95 % interval. NaN bounds: one document only."""

    value: float
    low: float
    high: float
    units: int = 1
    """How many documents, or blocks of consecutive ones, the interval takes as independent."""


def bootstrap(sums: Sums, resamples: int = RESAMPLES, seed: int = 0) -> Estimate:
    """The metric with its 95 % percentile interval over resampled documents.

    One document says nothing about the spread between documents: the bounds are then NaN (null in JSON).
    """
    if sums.documents == 1:
        return Estimate(sums.value, math.nan, math.nan)
    without_each = sums.statistic(_less_each(sums.per_document))
    length = _block_length(sums, without_each)
    draws = _draws(sums.documents, length, resamples, seed)
    chunks = [sums.statistic(weights @ sums.per_document) for weights in draws]
    if sums.consecutive:
        return Estimate(sums.value, *_interval_of_blocks(chunks, sums.documents // length, LEVEL))
    return Estimate(sums.value, *_interval(chunks, sums.value, without_each, LEVEL))


def paired(original: Sums, changed: Sums, resamples: int = RESAMPLES, seed: int = 0) -> Difference:
    """The change from one model to another, with its 95 % interval; both see the same resampled documents.

    "points": 100 * (changed - original). "percent": 100 * (changed / original - 1).
    Raises InputError if the two are not the same metric over the same number of documents.
    """
    _check_comparable(original, changed)
    value = float(_change(original.unit, np.float64(original.value), np.float64(changed.value)))
    if original.documents == 1:
        return Difference(value, math.nan, math.nan)
    theirs, ours = _less_each(original.per_document), _less_each(changed.per_document)
    without_each = _change(original.unit, original.statistic(theirs), changed.statistic(ours))
    length = _block_length(original, without_each)
    # Two products rather than one over stacked columns: equal models get equal rounding, and differ by exactly 0.
    chunks = [
        _change(
            original.unit,
            original.statistic(weights @ original.per_document),
            changed.statistic(weights @ changed.per_document),
        )
        for weights in _draws(original.documents, length, resamples, seed)
    ]
    units = original.documents // length
    interval = (
        _interval_of_blocks(chunks, units, DRAWN)
        if original.consecutive
        else _interval(chunks, value, without_each, DRAWN)
    )
    return Difference(value, *interval, units)


def ratio(numerator: Floats, denominator: Floats) -> Floats:
    """numerator / denominator, 0 where the denominator is 0 (scikit-learn's `zero_division=0`). Shapes broadcast."""
    shape = np.broadcast_shapes(np.shape(numerator), np.shape(denominator))
    return np.divide(numerator, denominator, out=np.zeros(shape), where=np.not_equal(denominator, 0))


def document_rows(documents: Sequence[str]) -> tuple[NDArray[np.int64], int]:
    """int64 [examples], the row of each example's document (in order of first appearance), and the number of rows."""
    rows: dict[str, int] = {}
    index = np.fromiter((rows.setdefault(name, len(rows)) for name in documents), dtype=np.int64, count=len(documents))
    return index, len(rows)


def finite_or_none(number: float) -> float | None:
    """NaN and infinity have no place in JSON; null says "not known"."""
    return number if math.isfinite(number) else None


def _less_each(rows: Floats) -> Floats:
    """The sums without each document in turn, float64 [documents, columns]."""
    return rows.sum(axis=0) - rows


def _block_length(sums: Sums, without_each: Floats) -> int:
    """Documents a block, from what leaving out each of them does to a statistic: float64 [documents]."""
    return mean_block_length(without_each) if sums.consecutive else 1


def _draws(documents: int, length: int, resamples: int, seed: int) -> Iterator[Floats]:
    """Chunks float64 [resamples in chunk, documents]: how often each document was drawn; rows sum to `documents`."""
    assert resamples > 0, resamples
    rng = np.random.default_rng(seed)
    rows = max(1, CHUNK_CELLS // documents)
    for start in range(0, resamples, rows):
        yield block_draws(documents, length, min(rows, resamples - start), rng)


def effective_documents(without_each: Floats) -> float:
    """How many documents of one length tell the spread of a metric as well as these: 3 (sum x^2)^2 / sum x^4 of what
    leaving out each of them does to it, as many as there are where that is normal; at least 2."""
    change = without_each - without_each.mean()
    fourth = float((change**4).sum())
    return len(change) if fourth == 0 else min(len(change), max(2.0, 3 * float(change @ change) ** 2 / fourth))


def _interval(chunks: list[Floats], value: float, without_each: Floats, level: float) -> tuple[float, float]:
    """Bounds from all draws of independent documents, and from the metric without each of them, at `level`."""
    documents, effective = len(without_each), effective_documents(without_each)
    tail = expanded_tail(effective, level)
    low, high = np.quantile(np.concatenate(chunks), [tail, 1 - tail])
    change = without_each - without_each.mean()
    half = students_t(effective - 1, level) * math.sqrt((documents - 1) / documents * float(change @ change))
    return min(float(low), value - half), max(float(high), value + half)


def _interval_of_blocks(chunks: list[Floats], blocks: int, level: float) -> tuple[float, float]:
    """Bounds from all draws of blocks, at `level`; two are given for their length, which the same data estimated."""
    tail = expanded_tail(max(2, blocks - 2), level)
    low, high = np.quantile(np.concatenate(chunks), [tail, 1 - tail])
    return float(low), float(high)


def _change(unit: Unit, old: Floats | np.float64, new: Floats | np.float64) -> Floats:
    return np.asarray(100.0 * (new - old) if unit == "points" else 100.0 * (new / old - 1.0))


def _check_comparable(original: Sums, changed: Sums) -> None:
    for what, old, new in (("metric", original.name, changed.name), ("unit", original.unit, changed.unit)):
        if old != new:
            raise InputError(f"{what} {new} is compared with {old}; both must be the same; measure both models alike")
    if original.documents != changed.documents:
        raise InputError(
            f"{changed.documents} documents are compared with {original.documents}; a paired comparison needs the same "
            "ones; evaluate both models on one split"
        )
    if original.ids != changed.ids:
        raise InputError(
            f"{changed.name} was measured on other documents than {original.name} of the original; a paired comparison "
            "needs the same ones; evaluate both models on one split"
        )
    if original.unit == "percent" and original.value <= 0:
        raise InputError(
            f"{original.name} of the original is {original.value}; a change in percent needs a value above 0; "
            "compare in another metric"
        )
