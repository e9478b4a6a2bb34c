"""Metrics of a text classifier: one label a text."""

from collections.abc import Sequence

from chinchilla_lm.errors import InputError
from chinchilla_lm.evaluate.sums import document_rows
from chinchilla_lm.evaluate.tables import Measurement, class_counts, class_table, f1_sums


def measure_labels(gold: Sequence[str], predicted: Sequence[str], documents: Sequence[str]) -> Measurement:
    """Metrics of one classifier, all arguments [texts]; `documents` are the ids of what is resampled together.

    Sums `accuracy` (equal to micro F1 where every text has one label), `macro_f1`, `weighted_f1`; table "classes".
    Raises InputError where the lengths differ or there is no text.
    """
    if not len(gold) == len(predicted) == len(documents):
        raise InputError(
            f"{len(gold)} gold labels, {len(predicted)} predicted and {len(documents)} document ids; the numbers must "
            "be equal; pass one of each per text"
        )
    if not gold:
        raise InputError("0 texts; metrics need at least 1; pass a split that is not empty")
    rows, number = document_rows(documents)
    labels, counts = class_counts(rows, number, gold, predicted)
    sums = {
        "accuracy": f1_sums("accuracy", "micro", counts),
        "macro_f1": f1_sums("macro_f1", "macro", counts),
        "weighted_f1": f1_sums("weighted_f1", "weighted", counts),
    }
    return Measurement(len(gold), sums, {"classes": class_table(labels, counts, single_label=True)})
