"""Metric of a model that scores pairs: the mean squared error of its scores."""

from collections.abc import Sequence

import numpy as np

from chinchilla_lm.errors import InputError
from chinchilla_lm.evaluate.sums import Floats, Sums, document_rows, ratio
from chinchilla_lm.evaluate.tables import Measurement


def measure_scores(gold: Sequence[float], predicted: Sequence[float], documents: Sequence[str]) -> Measurement:
    """`mean_squared_error`, lower is better, compared in percent; all arguments [pairs].

    Raises InputError where the lengths differ, there is no pair, or a score is not finite.
    """
    if not gold or not len(gold) == len(predicted) == len(documents):
        raise InputError(
            f"{len(gold)} gold scores, {len(predicted)} predicted and {len(documents)} document ids; the numbers must "
            "be equal and above 0; pass one of each per pair"
        )
    rows, number = document_rows(documents)
    per_document = np.zeros((number, 2))
    errors = np.square(np.asarray(gold, dtype=np.float64) - np.asarray(predicted, dtype=np.float64))
    np.add.at(per_document, rows, np.column_stack([errors, np.ones(len(errors))]))
    sums = Sums("mean_squared_error", "percent", False, per_document, _mean)
    return Measurement(len(gold), {"mean_squared_error": sums}, {})


def _mean(sums: Floats) -> Floats:
    return np.asarray(ratio(sums[..., 0], sums[..., 1]))
