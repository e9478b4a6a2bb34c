"""Per-class counts, the table made of them, and its text in the layout of scikit-learn's `classification_report`.

Counts are kept per document as [documents, labels, 3] with the three columns TP, PREDICTED, GOLD: precision, recall and
F1 of a class, and their micro, macro and weighted averages, are all functions of the sums of these over documents.
Labels are sorted, as scikit-learn and conlleval sort them. Divisions by zero give 0.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from chinchilla_lm.errors import InputError
from chinchilla_lm.evaluate.sums import Estimate, Floats, Sums, bootstrap, ratio
from chinchilla_lm.results import ClassRow

TP, PREDICTED, GOLD = range(3)
DIGITS = 4


@dataclass(frozen=True)
class Table:
    classes: list[ClassRow]
    averages: list[ClassRow]

    @property
    def rows(self) -> list[ClassRow]:
        return self.classes + self.averages

    def text(self) -> str:
        """Line by line what `sklearn.metrics.classification_report(..., digits=4)` prints, final newline included.

        Tables of single-label decisions have a `micro avg` row below `accuracy`; scikit-learn prints only the latter.
        """
        width = max([len(row["label"]) for row in self.classes] + [len("weighted avg")])
        head = " ".join([" " * width, ""] + [f"{name:>9}" for name in ("precision", "recall", "f1-score", "support")])
        blocks = ["".join(_line(row, width) for row in rows) for rows in (self.classes, self.averages)]
        return "\n\n".join([head, blocks[0]]) + "\n" + blocks[1]


@dataclass(frozen=True)
class Measurement:
    """What one model did on one split: its metrics as sums, the main one first, and its tables."""

    n: int
    """Examples: sentences, texts or windows."""
    sums: dict[str, Sums]
    tables: dict[str, Table]

    def estimates(self) -> dict[str, Estimate]:
        """Every metric with its interval."""
        return {name: bootstrap(sums) for name, sums in self.sums.items()}


def metric_among(known: Iterable[str], asked: str | None) -> str:
    """The metric to certify: what was asked for, else the first that is known. Raises InputError for an unknown one."""
    names = list(known)
    if asked is not None and asked not in names:
        raise InputError(f"metric {asked!r} is not one of {', '.join(names)}; pass --metric {names[0]}")
    return asked or names[0]


def class_counts(
    documents: NDArray[np.int64], number: int, gold: Sequence[str], predicted: Sequence[str]
) -> tuple[list[str], Floats]:
    """The labels that occur in gold or predicted, sorted, and their counts, float64 [documents, labels, 3].

    `documents` int64 [decisions]: the row of each decision, below `number`.
    """
    labels = sorted({*gold, *predicted})
    position = {label: i for i, label in enumerate(labels)}
    wanted = np.fromiter((position[label] for label in gold), dtype=np.int64, count=len(gold))
    given = np.fromiter((position[label] for label in predicted), dtype=np.int64, count=len(predicted))
    hit = wanted == given
    counts = np.empty((number, len(labels), 3))
    for column, rows, ids in (
        (TP, documents[hit], wanted[hit]),
        (PREDICTED, documents, given),
        (GOLD, documents, wanted),
    ):
        flat = np.bincount(rows * len(labels) + ids, minlength=number * len(labels))
        counts[..., column] = flat.reshape(number, len(labels))
    return labels, counts


def class_table(labels: Sequence[str], counts: Floats, single_label: bool) -> Table:
    """The table of `counts`, float64 [documents, labels, 3].

    `single_label`: every decision has one gold and one predicted label, so that accuracy exists and equals micro F1.
    """
    totals = counts.sum(axis=0)
    support = totals[:, GOLD]
    scores = np.stack(_scores(totals))
    classes = [_row(label, scores[:, i], support[i]) for i, label in enumerate(labels)]
    micro = _row("micro avg", np.array(_scores(totals.sum(axis=0))), support.sum())
    averages = [
        micro,
        _row("macro avg", scores.mean(axis=1) if len(labels) else np.zeros(3), support.sum()),
        _row("weighted avg", ratio((scores * support).sum(axis=1), support.sum()), support.sum()),
    ]
    if single_label:
        averages.insert(0, {**micro, "label": "accuracy", "precision": None, "recall": None})
    return Table(classes, averages)


def f1_sums(name: str, average: str, counts: Floats) -> Sums:
    """The "micro", "macro" or "weighted" F1 of `counts`, float64 [documents, labels, 3], as Sums in points."""
    flat = counts.sum(axis=1) if average == "micro" else counts.reshape(len(counts), -1)
    return Sums(name, "points", True, flat, _F1_STATISTICS[average])


def _micro(sums: Floats) -> Floats:
    return _f1(sums)


def _macro(sums: Floats) -> Floats:
    """The mean over the labels that occur. A resample without a rare label is averaged over the others, as scikit-learn
    would do for that resample; counting the missing label as 0 would give a faultless model an interval below 1."""
    classes = sums.reshape(*sums.shape[:-1], -1, 3)
    present = (classes[..., PREDICTED] + classes[..., GOLD] > 0).sum(axis=-1)
    return ratio(_f1(classes).sum(axis=-1), present)


def _weighted(sums: Floats) -> Floats:
    classes = sums.reshape(*sums.shape[:-1], -1, 3)
    support = classes[..., GOLD]
    return ratio((_f1(classes) * support).sum(axis=-1), support.sum(axis=-1))


_F1_STATISTICS: dict[str, Callable[[Floats], Floats]] = {"micro": _micro, "macro": _macro, "weighted": _weighted}


def _f1(counts: Floats) -> Floats:
    """[..., 3] -> [...]; 2 TP / (predicted + gold), the form without the intermediate precision and recall."""
    return ratio(2 * counts[..., TP], counts[..., PREDICTED] + counts[..., GOLD])


def _scores(counts: Floats) -> tuple[Floats, Floats, Floats]:
    """[..., 3] -> precision, recall, F1, each [...]."""
    precision = ratio(counts[..., TP], counts[..., PREDICTED])
    recall = ratio(counts[..., TP], counts[..., GOLD])
    return precision, recall, _f1(counts)


def _row(label: str, scores: Floats, support: float) -> ClassRow:
    precision, recall, f1 = (float(score) for score in scores)
    return {"label": label, "precision": precision, "recall": recall, "f1": f1, "support": int(support)}


def _line(row: ClassRow, width: int) -> str:
    scores = [row["precision"], row["recall"], row["f1"]]
    cells = ["" if score is None else f"{score:.{DIGITS}f}" for score in scores] + [str(row["support"])]
    return f"{row['label']:>{width}s} " + "".join(f" {cell:>9}" for cell in cells) + "\n"
