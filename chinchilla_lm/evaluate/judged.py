"""What one model did on one split."""

from __future__ import annotations

from dataclasses import dataclass

from chinchilla_lm.evaluate.predictions import Prediction
from chinchilla_lm.evaluate.sums import Floats, Sums
from chinchilla_lm.evaluate.tables import Measurement


@dataclass(frozen=True, slots=True)
class Judged:
    """Metrics as sums, tables, the answer to every example, and how probable the model held the others.

    log_probabilities: float64 [words, labels] of each sentence or [1, labels] of each text; empty where there is no
    label to choose.
    """

    measurement: Measurement
    predictions: list[Prediction]
    log_probabilities: list[Floats]

    @property
    def primary(self) -> Sums:
        """The metric that the certificate is about: the first one."""
        return next(iter(self.measurement.sums.values()))
