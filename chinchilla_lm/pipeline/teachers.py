"""Trained models that teach another one: the mean of what they answer on its training data.

The answers belong to words or texts, not to tokens, so the models may differ in tokenizer, window and kind. The mean is
one of probabilities, as of an ensemble (Hinton et al., "Distilling the knowledge in a neural network", 2015).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from chinchilla_lm.data.encode import Encoded
from chinchilla_lm.errors import InputError
from chinchilla_lm.evaluate.sums import Floats
from chinchilla_lm.models.source import locate
from chinchilla_lm.pipeline.job import Job
from chinchilla_lm.runtime.artifact import hashes
from chinchilla_lm.train.recover import Answers


class Teachers:
    """The teachers that a recipe names, for one job; each is in memory only while it answers.

    Raises InputError where the task has no labels, a teacher is not on this machine, or it has other labels.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        if not job.task.labelled:
            raise InputError(
                f"finetune.teachers is for tasks with labels, not {job.recipe.task}; leave out --finetune-teachers"
            )
        self._sources = job.recipe.finetune.teachers or []
        self.sha256 = [hashes(locate(source).folder) for source in self._sources]
        for source in self._sources:
            labels = self._teacher(source).card.labels
            if set(labels) != set(job.labels):
                raise InputError(
                    f"teacher {source} has the labels {', '.join(labels[:12])}, the data {', '.join(job.labels[:12])}; "
                    "pass teachers that were trained on the same labels"
                )

    def answers(self, encoded: Sequence[Encoded]) -> Answers:
        """The mean of their answers on the training data, for its windows. Each teacher reads the data once."""
        each = [self._read(source) for source in self._sources]
        mean = [np.logaddexp.reduce(records) - np.log(len(each)) for records in zip(*each, strict=True)]
        settings = self._job.recipe.finetune
        windows = [_of_window(window, mean) for window in encoded]
        return Answers(windows, settings.teacher_weight, settings.teacher_temperature)

    def _read(self, source: str) -> list[Floats]:
        """Log-probabilities of each training record, [words, labels] or [1, labels], labels in the job's order."""
        teacher = self._teacher(source)
        order = [teacher.labels.index(label) for label in self._job.labels]
        judged = teacher.judge("train")(teacher.served())
        primary = judged.primary
        self._job.console.say(f"teacher {source}: {primary.name} {primary.value:.4f} on the training data")
        return [record[:, order] for record in judged.log_probabilities]

    def _teacher(self, source: str) -> Job:
        """A job of the same data for a model that is only asked. Its window is the one that it was trained with."""
        recipe = self._job.recipe.model_copy(update={"max_tokens": None})
        teacher = Job(recipe, self._job.console, model=source, only_served=True)
        teacher.dataset = self._job.dataset
        return teacher


def _of_window(window: Encoded, records: Sequence[Floats]) -> Tensor:
    return torch.from_numpy(np.stack([records[record][word] for record, word in window.owners])).float()
