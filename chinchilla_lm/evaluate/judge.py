"""One split, encoded once, on which any number of models is judged in the same way.

What comes out of a model is reduced to one answer an example (tags, a label, a number, nats), and from there on the
metrics know nothing of models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from chinchilla_lm.data.batches import EncodedBatch
from chinchilla_lm.data.encode import IGNORED, Encoded
from chinchilla_lm.data.records import Labelled, Tagged
from chinchilla_lm.data.tag_path import TagPath, unseen
from chinchilla_lm.errors import InputError
from chinchilla_lm.evaluate.classification import measure_labels
from chinchilla_lm.evaluate.language import measure_text
from chinchilla_lm.evaluate.nats import Forward, checked, nats_of
from chinchilla_lm.evaluate.predictions import Prediction
from chinchilla_lm.evaluate.ranking import measure_scores
from chinchilla_lm.evaluate.sums import Sums
from chinchilla_lm.evaluate.tables import Measurement
from chinchilla_lm.evaluate.tagging import measure_tags


@dataclass(frozen=True, slots=True)
class Judged:
    """What one model did: metrics as sums, tables, and its answer to every example."""

    measurement: Measurement
    predictions: list[Prediction]

    @property
    def primary(self) -> Sums:
        """The metric that the certificate is about: the first one."""
        return next(iter(self.measurement.sums.values()))


class Judge:
    """Judges models on one split.

    records: what the split holds; encoded: its windows, with owners that point into records; labels: the model's labels
    in the order of its outputs; batches: the windows in batches, `rows` pointing into encoded. legal_tags:
    the model was trained on BIO, so its answer is the most probable sequence that is legal BIO.
    """

    def __init__(
        self,
        task: str,
        records: Sequence[Any],
        encoded: Sequence[Encoded],
        batches: Sequence[EncodedBatch],
        labels: Sequence[str],
        *,
        legal_tags: bool = False,
    ) -> None:
        if not records or not encoded:
            raise InputError(
                f"the split has {len(records)} records and {len(encoded)} windows; pass one that is not empty"
            )
        self.task, self.records, self.encoded = task, records, encoded
        self.batches, self.labels = batches, list(labels)
        self.path = TagPath(self.labels, legal=legal_tags)

    def __call__(self, forward: Forward) -> Judged:
        """Run the whole split through a model and measure its answers."""
        with torch.inference_mode():
            if self.task == "token-classification":
                return self._tags(forward)
            if self.task == "language-modeling":
                return self._text(forward)
            return self._sequences(forward)

    def _tags(self, forward: Forward) -> Judged:
        records: Sequence[Tagged] = self.records
        said = [unseen(len(record.words), self.labels) for record in records]
        for batch in self.batches:
            log_probabilities = F.log_softmax(checked(forward(batch.batch)), dim=-1).cpu()
            assert batch.targets is not None
            for row, window in enumerate(batch.rows):
                places = (batch.targets[row] != IGNORED).nonzero().squeeze(1).cpu()
                chosen = log_probabilities[row, places].numpy()
                for (record, word), one in zip(self.encoded[window].owners, chosen, strict=True):
                    said[record][word] = one
        paths = [self.path(one) for one in said]
        answers = [[self.labels[label] for label in path] for path in paths]
        scores = [np.exp(one[range(len(path)), path]).tolist() for one, path in zip(said, paths, strict=True)]
        gold = [list(record.tags) for record in records]
        measurement = measure_tags(gold, answers, [record.document for record in records])
        predictions = [
            Prediction(record.id, tags, answer, score)
            for record, tags, answer, score in zip(records, gold, answers, scores, strict=True)
        ]
        return Judged(measurement, predictions)

    def _sequences(self, forward: Forward) -> Judged:
        records: Sequence[Labelled] = self.records
        outputs: list[Tensor | None] = [None] * len(records)
        for batch in self.batches:
            logits = checked(forward(batch.batch)).cpu()
            for row, window in enumerate(batch.rows):
                outputs[self.encoded[window].owners[0][0]] = logits[row]
        stacked = torch.stack([output for output in outputs if output is not None])
        documents = [record.document for record in records]
        gold = [record.label for record in records]
        if self.task == "ranking":
            values = stacked.squeeze(-1).tolist()
            pairs = zip(records, values, strict=True)
            made = [Prediction(record.id, float(record.label), value, value) for record, value in pairs]
            return Judged(measure_scores([float(label) for label in gold], values, documents), made)
        best, index = F.softmax(stacked, dim=-1).max(-1)
        answers = [self.labels[label] for label in index.tolist()]
        rows = zip(records, answers, best.tolist(), strict=True)
        predictions = [Prediction(record.id, record.label, answer, score) for record, answer, score in rows]
        return Judged(measure_labels(gold, answers, documents), predictions)

    def _text(self, forward: Forward) -> Judged:
        nats = np.zeros(len(self.encoded))
        counts = np.zeros(len(self.encoded), dtype=np.int64)
        for batch in self.batches:
            assert batch.targets is not None
            found = nats_of(forward, batch.batch, batch.targets).double()
            nats[list(batch.rows)] = found.sum(1).numpy()
            counts[list(batch.rows)] = (batch.targets != IGNORED).sum(1).cpu().numpy()
        documents = [self.records[encoded.owners[0][0]].document for encoded in self.encoded]
        measurement = measure_text(nats.tolist(), counts.tolist(), [e.bytes for e in self.encoded], documents)
        predictions = [
            Prediction(f"window-{i}", None, None, float(nats[i] / max(1, counts[i]))) for i in range(len(self.encoded))
        ]
        return Judged(measurement, predictions)
