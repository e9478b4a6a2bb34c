"""Trained models that teach another one: the mean of what they answer on its training data, and on text without labels.

Of what they were trained on, teachers know the labels nearly by heart; what their mean does better than each of them
shows on other text (Xie et al., "Self-training with noisy student improves ImageNet classification", CVPR 2020). The
answers belong to words or texts, not to tokens, so the models may differ in tokenizer, window and kind. The mean is one
of probabilities, as of an ensemble (Hinton et al., "Distilling the knowledge in a neural network", 2015).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from chinchilla_lm.data.encode import Encoded
from chinchilla_lm.errors import InputError
from chinchilla_lm.evaluate.sums import Floats
from chinchilla_lm.evaluate.tasks import LabelledTask
from chinchilla_lm.models.checkpoint import unread
from chinchilla_lm.models.meta import meta_of
from chinchilla_lm.models.source import locate
from chinchilla_lm.pipeline.job import Job
from chinchilla_lm.runtime.artifact import hashes
from chinchilla_lm.runtime.engine.packed import is_packed, read_packed
from chinchilla_lm.train.recover import Answers


class Teachers:
    """The teachers that a recipe names, for one job; each is in memory only while it answers.

    sha256, metas: of each, the hashes of its files and what its chinchilla.json says, before it is asked.

    Raises InputError where the task has no labels, a teacher is not on this machine, or it has other labels.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        if not isinstance(job.task, LabelledTask):
            raise InputError(
                f"finetune.teachers is for tasks with labels, not {job.recipe.task}; leave out --finetune-teachers"
            )
        self._task = job.task
        self._sources = job.recipe.finetune.teachers or []
        located = [locate(source) for source in self._sources]
        for source, place in zip(self._sources, located, strict=True):
            if place.gguf is not None:
                raise InputError(f"teacher {source} is a GGUF file, which has no labels; pass a folder")
        self.sha256 = [hashes(place.folder) for place in located]
        self.metas = [meta_of(place) for place in located]
        for source in self._sources:
            labels = _labels(source, job.recipe.task)
            if not labels:
                raise InputError(f"teacher {source} has no trained head for {job.recipe.task}; fine-tune it first")
            if set(labels) != set(job.labels):
                raise InputError(
                    f"teacher {source} has the labels {', '.join(labels[:12])}, the data {', '.join(job.labels[:12])}; "
                    "pass teachers that were trained on the same labels"
                )

    @cached_property
    def unlabelled(self) -> list[Any]:
        """Records of the text without labels, less what stands in dev or test too; none where the recipe names none."""
        job, source = self._job, self._job.recipe.finetune.unlabelled
        if source is None:
            return []
        texts = job.read(source, task="language-modeling").all_records()
        records = job.not_held_out(self._task.unlabelled(texts, job.labels))
        if not records:
            raise InputError(f"{source} has 0 lines that do not stand in dev or test; pass other text without labels")
        return records

    def answers(self, encoded: Sequence[Encoded], unlabelled: Sequence[Encoded]) -> Answers:
        """The mean of their answers, for the windows of the training data, then of the text without labels."""
        settings = self._job.recipe.finetune
        windows = _of_windows(
            encoded, [self._read(source, self._job.dataset.records("train")) for source in self._sources]
        )
        if unlabelled:
            windows += _of_windows(unlabelled, [self._read(source, self.unlabelled) for source in self._sources])
        return Answers(windows, len(encoded), settings.teacher_weight, settings.teacher_temperature)

    def _read(self, source: str, records: Sequence[Any]) -> list[Floats]:
        """Log-probabilities of each record, [words, labels] or [1, labels], labels in the job's order."""
        teacher = self._teacher(source)
        order = [teacher.labels.index(label) for label in self._job.labels]
        judged = teacher.judge_on(records, f"teacher {source}")(teacher.served())
        if records is not self.unlabelled:
            primary = judged.primary
            self._job.console.say(f"teacher {source}: {primary.name} {primary.value:.4f} on the training data")
        return [record[:, order] for record in judged.log_probabilities]

    def _teacher(self, source: str) -> Job:
        """A job of the same data for a model that is only asked. Its window is the one that it was trained with."""
        recipe = self._job.recipe.model_copy(update={"max_tokens": None})
        teacher = Job(recipe, self._job.console, model=source, only_served=True)
        teacher.dataset = self._job.dataset
        return teacher


def _of_windows(encoded: Sequence[Encoded], each: Sequence[Sequence[Floats]]) -> list[Tensor]:
    """The mean of several models' answers to the same records, as the windows have their targets."""
    mean = [np.logaddexp.reduce(records) - np.log(len(each)) for records in zip(*each, strict=True)]
    rows = [np.stack([mean[record][word] for record, word in window.owners]) for window in encoded]
    return [torch.from_numpy(row).float() for row in rows]


def _labels(source: str, task: str) -> tuple[str, ...]:
    """The labels of a teacher that was trained for the task, without its weights; none of any other model."""
    if is_packed(source):
        card = read_packed(source)[1]
        return card.labels if card.kind == task else ()
    with unread(source) as (checkpoint, _):
        head = checkpoint.model.config.head
        return head.labels if head.kind == task else ()
