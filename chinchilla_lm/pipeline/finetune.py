"""Train a pretrained model for a task and keep the weights that are best on dev."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from chinchilla_lm.console import Console
from chinchilla_lm.data.encode import Encoded
from chinchilla_lm.data.labels import require_classes
from chinchilla_lm.data.records import records_sha256
from chinchilla_lm.errors import InputError
from chinchilla_lm.files import json_text, sha256_text
from chinchilla_lm.models.checkpoint import save
from chinchilla_lm.models.meta import adapted
from chinchilla_lm.pipeline.folder import RunFolder
from chinchilla_lm.pipeline.job import Job
from chinchilla_lm.pipeline.recovery import layout_of
from chinchilla_lm.pipeline.teachers import Teachers
from chinchilla_lm.recipe import Recipe
from chinchilla_lm.recipe.fields import FinetuneSettings
from chinchilla_lm.results import FinetuneResult
from chinchilla_lm.runtime.processes import processes, sharing_cores
from chinchilla_lm.train.compiled import compiled
from chinchilla_lm.train.loop import FitSettings, fit, make_optimizer
from chinchilla_lm.train.rates import peak_rate
from chinchilla_lm.train.recover import Answers, fine_tuning_loss

# Peak rate of a model of base size.
RATE = 5e-5
# The fields of a recipe that decide what is trained.
DECIDES = (
    "task", "data", "train", "dev", "test", "text_column", "label_column", "group_column", "time_column", "split_by",
    "encoding", "dtype", "context", "bidirectional", "max_tokens", "seed", "finetune",
)  # fmt: skip


def finetune(recipe: Recipe, console: Console) -> FinetuneResult:
    """Train by a recipe; the model is in `<output>/model` afterwards. Returns the metrics on dev and, where there is
    one, test."""

    begun = time.monotonic()
    folder = RunFolder.of(recipe, console)
    job = Job(recipe, console, new_head=True)
    require_classes(job.dataset)
    inputs: dict[str, Any] = {
        "model": job.checkpoint.sha256,
        "data": job.data_sha256,
        "recipe": recipe.model_dump(include=set(DECIDES)),
        "rate": _rate(job),
    }
    _check_teaching(recipe.finetune, console)
    teachers = Teachers(job) if recipe.finetune.teachers else None
    if teachers is not None:
        inputs["teachers"] = teachers.sha256
        inputs["unlabelled"] = records_sha256(teachers.unlabelled)
    folder.stage(
        "finetune", inputs, ["model/model.safetensors"], lambda: _train(job, folder, inputs, teachers), lambda: None
    )
    trained = Job(recipe, console, model=str(folder.file("model")))
    result: FinetuneResult = {"model": str(folder.file("model")), "task": recipe.task, "splits": {}, "seconds": 0.0}
    for split in ("dev", "test"):
        if split in trained.dataset.splits:
            judged = trained.judge(split)(trained.ready(trained.checkpoint.model))
            result["splits"][split] = trained.show(judged, split)
    result["seconds"] = round(time.monotonic() - begun, 1)
    folder.log({"finetune": result["splits"], "seconds": result["seconds"]})
    console.show(f"{folder.file('model')}: done in {result['seconds']:.0f} s")
    return result


def _rate(job: Job) -> float:
    return peak_rate(job.recipe.finetune.learning_rate, RATE, job.checkpoint.model.config.hidden_size)


def _check_teaching(settings: FinetuneSettings, console: Console) -> None:
    """Raises InputError where nobody is named to label a text; warns of what has no effect."""
    if settings.teachers is None:
        if settings.unlabelled is not None:
            raise InputError("finetune.unlabelled has nobody to label it; name models by --finetune-teachers as well")
        for name in ("teacher_weight", "teacher_temperature"):
            if getattr(settings, name) != type(settings).model_fields[name].default:
                console.warn(f"finetune.{name} has no effect without --finetune-teachers")
    elif settings.teacher_weight == 1 and settings.label_smoothing > 0:
        console.warn("finetune.label_smoothing has no effect where the teachers' answers are all that is learnt")


class Finetuning:
    """The training of one job's model, by all processes that are there."""

    def __init__(self, job: Job, teachers: Teachers | None = None) -> None:
        self.job, self.teachers = job, teachers

    @property
    def facts(self) -> dict[str, str]:
        """What all processes that train together must have alike."""
        return {"model": self.job.checkpoint.sha256, "data": self.job.data_sha256}

    def start(self, state: Path, identity: str) -> None:
        """Train, with the others that are there."""
        layout_of(self.job.recipe)  # before the others are asked
        how = {"recipe": self.job.recipe.model_dump(), "state": state, "identity": identity}
        with processes().leading("finetune", self.facts, **how):
            self.train_here(state, identity)

    def train_here(self, state: Path, identity: str) -> None:
        """This process's part. The first one asks the teachers, and tells the others what they said."""
        job, settings, here = self.job, self.job.recipe.finetune, processes()
        model = job.checkpoint.model
        model.dropout, model.token_dropout = settings.dropout, settings.token_dropout
        encoded = job.encode(job.dataset.records("train"))
        answers = None
        if settings.teachers:
            unlabelled, answers = here.agreed(self._taught(encoded) if here.first else ([], None))
            encoded += unlabelled
        judge = job.judge("dev") if here.first else None
        rate = _rate(job)
        job.console.say(f"finetune: peak rate {rate:.2g}, for the head {settings.head_learning_rate:.2g}")
        how = FitSettings(
            epochs=settings.epochs,
            learning_rate=rate,
            head_learning_rate=settings.head_learning_rate,
            weight_decay=settings.weight_decay,
            warmup=settings.warmup,
            seed=job.recipe.seed,
            dtype=job.dtype,
            most_tokens=settings.micro_tokens,
        )

        def evaluate() -> float:
            assert judge is not None, "the first process judges"
            return judge(job.ready(model)).primary.score

        with sharing_cores(), compiled(model):
            fit(
                model,
                lambda epoch: job.batches(encoded, settings.batch_tokens, seed=job.recipe.seed + epoch),
                fine_tuning_loss(settings.label_smoothing, answers),
                how,
                job.console,
                label="finetune",
                evaluate=evaluate,
                optimizer=lambda trained: make_optimizer(trained, how, job.checkpoint.fresh),
                state=state,
                identity=identity,
                layout=layout_of(job.recipe),
            )

    def _taught(self, encoded: Sequence[Encoded]) -> tuple[list[Encoded], Answers]:
        """The windows of text without labels, and what the teachers say of these and of the training data."""
        assert self.teachers is not None
        unlabelled = self.job.encode(self.teachers.unlabelled) if self.teachers.unlabelled else []
        return unlabelled, self.teachers.answers(encoded, unlabelled)


def _train(job: Job, folder: RunFolder, inputs: dict[str, Any], teachers: Teachers | None) -> None:
    state = folder.file("finetune.state")
    Finetuning(job, teachers).start(state, sha256_text(json_text(inputs)))
    meta: dict[str, Any] = {"window": {"context": job.context, "max_tokens": job.window}}
    taught_by = [] if teachers is None else teachers.metas
    meta |= adapted(job.checkpoint.meta, records_sha256(job.dataset.records("train")), taught_by)
    if job.recipe.task == "token-classification":
        meta["tags"] = "BIO"
    save(job.checkpoint, folder.file("model"), meta)
    state.unlink(missing_ok=True)
