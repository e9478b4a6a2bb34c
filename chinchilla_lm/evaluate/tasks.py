"""What each task has of its own, in one object: metrics, windows, answers and how these are measured.

What is above asks the task and does not know which it is. A further task is one more class and a line of TASKS.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from chinchilla_lm.data.batches import EncodedBatch
from chinchilla_lm.data.encode import IGNORED, Encoded, encode_labelled, encode_tagged
from chinchilla_lm.data.records import Labelled, Tagged, Text
from chinchilla_lm.data.tag_path import TagPath, unseen
from chinchilla_lm.data.windows import begins_with_bos, encode_text
from chinchilla_lm.data.words import words_of
from chinchilla_lm.evaluate.agreement import Agreement, agreement, of_answers, of_text
from chinchilla_lm.evaluate.classification import measure_labels
from chinchilla_lm.evaluate.judged import Judged
from chinchilla_lm.evaluate.language import measure_text
from chinchilla_lm.evaluate.nats import Forward, checked, nats_of
from chinchilla_lm.evaluate.predictions import Prediction
from chinchilla_lm.evaluate.ranking import measure_scores
from chinchilla_lm.evaluate.tagging import measure_tags


@dataclass(frozen=True, slots=True)
class Split:
    """A split ready to be run: its records, its windows with owners that point into them, the windows in batches whose
    `rows` point into these, the model's labels, and how tags are chosen."""

    records: Sequence[Any]
    encoded: Sequence[Encoded]
    batches: Sequence[EncodedBatch]
    labels: list[str]
    path: TagPath

    @property
    def consecutive(self) -> bool:
        """Whether the records are pieces of running text, as in `Sums`."""
        return any(getattr(record, "follows", False) for record in self.records)

    @property
    def unfinished(self) -> frozenset[str]:
        """Documents of running text that stand, with all or with part of their records, where the last window ends or
        behind it."""
        last, _ = self.encoded[-1].owners[-1]
        return frozenset(record.document for record in self.records[last:])


@dataclass(frozen=True, slots=True)
class Reading:
    """How a model reads records: its tokenizer and labels, its longest window in tokens, and what it sees at a time."""

    tokenizer: Any
    labels: Sequence[str]
    window: int
    context: Literal["sentence", "document"]

    @property
    def label_ids(self) -> dict[str, int]:
        """The place of each label among the model's outputs."""
        return {label: index for index, label in enumerate(self.labels)}


class Task(ABC):
    """One task. All methods are pure: they keep nothing."""

    metrics: Mapping[str, str]
    """Name → what people call it; the first is certified unless another is asked for."""
    labelled = False
    """Whether its data have labels from a closed set, which the model has to know."""
    whole_passes = False
    """Whether it reads running text, so that a pass is counted in tokens and a test in windows."""
    per_token: Mapping[str, str] = {}
    """Metrics that count tokens, which models of other tokenizers do not share → in what these can be compared."""
    sentences = False
    """Whether its records are sentences, read each alone or with their document."""
    batch = 32
    """Sequences a timed batch where none is asked for: a small batch of short texts."""

    @abstractmethod
    def encode(self, records: Sequence[Any], reading: Reading) -> list[Encoded]:
        """Windows of the records with their targets. Raises InputError for what cannot be encoded."""

    @abstractmethod
    def judge(self, split: Split, forward: Forward) -> Judged:
        """Run the whole split through a model and measure its answers."""

    def compare(
        self, split: Split, original: Forward, changed: Forward, before: Judged, after: Judged
    ) -> Agreement | None:
        """How far the answers agree that `judge` found; None where there are no answers to agree on."""
        rows = of_answers(before.predictions, after.predictions, before.log_probabilities, after.log_probabilities)
        return agreement(rows, [record.document for record in split.records])


class LabelledTask(Task):
    """A task whose answers are labels from a closed set, so that what others answer can take a label's place."""

    labelled = True

    @abstractmethod
    def unlabelled(self, texts: Sequence[Text], labels: Sequence[str]) -> list[Any]:
        """Records of texts that nobody labelled, one a line, under a label that says nothing."""


class Tagging(LabelledTask):
    """A label for each word of a sentence."""

    metrics: Mapping[str, str] = {
        "entity_f1": "entity F1",
        "token_micro": "token micro F1",
        "token_macro": "token macro F1",
        "token_weighted": "token weighted F1",
    }
    sentences = True

    def encode(self, records: Sequence[Any], reading: Reading) -> list[Encoded]:
        return encode_tagged(records, reading.tokenizer, reading.label_ids, reading.window, reading.context)

    def unlabelled(self, texts: Sequence[Text], labels: Sequence[str]) -> list[Any]:
        cut = [
            (name, text.document, tuple(line[start:end] for start, end in words_of(line)))
            for text in texts
            for name, line in _lines(text)
        ]
        return [Tagged(name, document, words, (labels[0],) * len(words)) for name, document, words in cut]

    def judge(self, split: Split, forward: Forward) -> Judged:
        records: Sequence[Tagged] = split.records
        said = [unseen(len(record.words), split.labels) for record in records]
        for batch in split.batches:
            log_probabilities = F.log_softmax(checked(forward(batch.batch)), dim=-1).cpu()
            assert batch.targets is not None
            for row, window in enumerate(batch.rows):
                places = (batch.targets[row] != IGNORED).nonzero().squeeze(1).cpu()
                chosen = log_probabilities[row, places].numpy()
                for (record, word), one in zip(split.encoded[window].owners, chosen, strict=True):
                    said[record][word] = one
        paths = [split.path(one) for one in said]
        answers = [[split.labels[label] for label in path] for path in paths]
        scores = [np.exp(one[range(len(path)), path]).tolist() for one, path in zip(said, paths, strict=True)]
        gold = [list(record.tags) for record in records]
        measurement = measure_tags(gold, answers, [record.document for record in records])
        predictions = [
            Prediction(record.id, tags, answer, score)
            for record, tags, answer, score in zip(records, gold, answers, scores, strict=True)
        ]
        return Judged(measurement, predictions, said)


class _Sequences(Task):
    """One answer a text or pair of texts."""

    @staticmethod
    def _outputs(split: Split, forward: Forward) -> Tensor:
        """float32 [records, outputs], in the records' order."""
        outputs: list[Tensor | None] = [None] * len(split.records)
        for batch in split.batches:
            logits = checked(forward(batch.batch)).cpu()
            for row, window in enumerate(batch.rows):
                outputs[split.encoded[window].owners[0][0]] = logits[row]
        return torch.stack([output for output in outputs if output is not None])


class Classification(_Sequences, LabelledTask):
    """One label a text."""

    metrics: Mapping[str, str] = {"accuracy": "accuracy", "macro_f1": "macro F1", "weighted_f1": "weighted F1"}

    def encode(self, records: Sequence[Any], reading: Reading) -> list[Encoded]:
        return encode_labelled(records, reading.tokenizer, reading.label_ids, reading.window)

    def unlabelled(self, texts: Sequence[Text], labels: Sequence[str]) -> list[Any]:
        lines = [(name, text.document, line) for text in texts for name, line in _lines(text)]
        return [Labelled(name, document, None, line, None, labels[0]) for name, document, line in lines]

    def judge(self, split: Split, forward: Forward) -> Judged:
        records: Sequence[Labelled] = split.records
        log_probabilities = F.log_softmax(self._outputs(split, forward).double(), dim=-1)
        best, index = log_probabilities.exp().max(-1)
        answers = [split.labels[label] for label in index.tolist()]
        rows = zip(records, answers, best.tolist(), strict=True)
        predictions = [Prediction(record.id, record.label, answer, score) for record, answer, score in rows]
        each = [row[None] for row in log_probabilities.numpy()]
        gold = [record.label for record in records]
        return Judged(measure_labels(gold, answers, [record.document for record in records]), predictions, each)


class Ranking(_Sequences):
    """One number a text or pair of texts."""

    metrics: Mapping[str, str] = {"mean_squared_error": "mean squared error"}

    def encode(self, records: Sequence[Any], reading: Reading) -> list[Encoded]:
        windows = encode_labelled(records, reading.tokenizer, None, reading.window)
        scored = zip(windows, records, strict=True)
        return [replace(window, targets=float(record.label)) for window, record in scored]

    def judge(self, split: Split, forward: Forward) -> Judged:
        records: Sequence[Labelled] = split.records
        values = self._outputs(split, forward).squeeze(-1).tolist()
        gold = [float(record.label) for record in records]
        made = zip(records, gold, values, strict=True)
        predictions = [Prediction(record.id, label, value, value) for record, label, value in made]
        return Judged(measure_scores(gold, values, [record.document for record in records]), predictions, [])

    def compare(
        self, split: Split, original: Forward, changed: Forward, before: Judged, after: Judged
    ) -> Agreement | None:
        return None


class LanguageModelling(Task):
    """The next token of running text."""

    metrics: Mapping[str, str] = {"perplexity": "perplexity", "bits_per_byte": "bits per byte"}
    per_token: Mapping[str, str] = {"perplexity": "bits_per_byte"}
    whole_passes = True
    batch = 1  # one prompt

    def encode(self, records: Sequence[Any], reading: Reading) -> list[Encoded]:
        windows = encode_text(records, reading.tokenizer, reading.window, bos=begins_with_bos(reading.tokenizer))
        return [replace(window, targets=[*window.ids[1:], IGNORED]) for window in windows]

    def judge(self, split: Split, forward: Forward) -> Judged:
        windows = len(split.encoded)
        means = np.zeros(windows)
        parts: list[list[float]] = [[] for _ in range(windows)]  # nats of what predicts each owner's tokens
        for batch in split.batches:
            assert batch.targets is not None
            found = nats_of(forward, batch.batch, batch.targets).double().numpy()
            predicted = (batch.targets != IGNORED).cpu().numpy()
            for row, window in enumerate(batch.rows):
                counts = [tokens for _, tokens in split.encoded[window].owners]
                nats = found[row][predicted[row]]
                parts[window] = np.add.reduceat(nats, np.cumsum([0, *counts[:-1]])).tolist()
                means[window] = nats.mean()
        owners = [owner for window in split.encoded for owner in window.owners]
        measurement = measure_text(
            [nats for window in parts for nats in window],
            [tokens for _, tokens in owners],
            [size for window in split.encoded for size in window.bytes],
            [split.records[record].document for record, _ in owners],
            windows=windows,
            consecutive=split.consecutive,
            unfinished=split.unfinished,
        )
        predictions = [Prediction(f"window-{i}", None, None, float(mean)) for i, mean in enumerate(means)]
        return Judged(measurement, predictions, [])

    def compare(
        self, split: Split, original: Forward, changed: Forward, before: Judged, after: Judged
    ) -> Agreement | None:
        with torch.inference_mode():
            rows, owners = of_text(original, changed, split.encoded, split.batches)
        documents = [split.records[owner].document for owner in owners]
        return agreement(rows, documents, consecutive=split.consecutive)


TASKS: Mapping[str, Task] = {
    "token-classification": Tagging(),
    "text-classification": Classification(),
    "language-modeling": LanguageModelling(),
    "ranking": Ranking(),
}


def _lines(text: Text) -> list[tuple[str, str]]:
    """The lines of a text that hold any, each with a name."""
    lines = [line.strip() for line in text.text.splitlines()]
    return [(f"{text.id}, line {number}", line) for number, line in enumerate(lines, start=1) if line]


def metric_label(name: str) -> str:
    """What people call a metric of any task."""
    return next((task.metrics[name] for task in TASKS.values() if name in task.metrics), name)
