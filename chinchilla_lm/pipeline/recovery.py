"""The training of a shortened model on the original's outputs, for the recover stage and for the race of plans."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

from chinchilla_lm.data.batches import EncodedBatch
from chinchilla_lm.data.encode import Encoded
from chinchilla_lm.evaluate.judge import Judge
from chinchilla_lm.evaluate.sums import paired
from chinchilla_lm.evaluate.tables import Measurement, metric_among
from chinchilla_lm.models.transformer import Transformer
from chinchilla_lm.pipeline.job import Job
from chinchilla_lm.recipe import Recipe
from chinchilla_lm.runtime.processes import processes, sharing_cores
from chinchilla_lm.train.compiled import compiled
from chinchilla_lm.train.loop import FitSettings, fit
from chinchilla_lm.train.parallel import Layout
from chinchilla_lm.train.rates import peak_rate
from chinchilla_lm.train.recover import Teacher, Weights, freeze_unseen, recovery_loss

# Tokens of dev text that a language model is judged on while it recovers: two minutes less an epoch than all of it.
MAX_DEV_TOKENS = 16_384
# Tokens on which the spread of the original's hidden states is measured.
SAMPLE_TOKENS = 2048
# Peak rate of a model of base size.
RATE = 1e-4


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a short model stands on dev: the metric, more of it better, and the loss against the original, in points or
    percent, with its 95 % interval; a loss below 0 is a gain."""

    dev: float
    loss: float
    low: float
    high: float

    @property
    def half(self) -> float:
        """Half of the interval."""
        return (self.high - self.low) / 2

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Standing:
        """As it was written; a bound that is not known, null in JSON, is NaN."""
        return cls(*(math.nan if values[name] is None else float(values[name]) for name in cls.__slots__))


def layout_of(recipe: Recipe) -> Layout:
    """How training is parted among the processes that are there. Raises InputError where it does not fit them."""
    return Layout.parse(recipe.parallel, processes().count)


def recovery_rate(job: Job) -> float:
    """The peak step size; a short model is as wide as its original."""
    return peak_rate(job.recipe.recover.learning_rate, RATE, job.checkpoint.model.config.hidden_size)


class Recovery:
    """Trains short models of one job on the outputs of `original`, which is prepared to run."""

    def __init__(self, job: Job, original: Transformer) -> None:
        self.job, self.teacher = job, Teacher(original, self._sample)
        self.base = original
        """What short models are held against on dev: the original, or the control, prepared to run."""

    @cached_property
    def encoded(self) -> list[Encoded]:
        """The training data in windows."""
        return self.job.encode(self.job.training_records)

    def _sample(self) -> EncodedBatch:
        """Some of the training data, on which the original's hidden states are measured."""
        ends = accumulate(len(window.ids) for window in self.encoded)
        count = next((place for place, end in enumerate(ends, 1) if end >= SAMPLE_TOKENS), len(self.encoded))
        return self.job.batches(self.encoded[:count], max_tokens=count * max(len(one.ids) for one in self.encoded))[0]

    @cached_property
    def _judge(self) -> Judge:
        return self.job.judge("dev", MAX_DEV_TOKENS)

    @cached_property
    def _base_judged(self) -> tuple[Measurement, float]:
        """What `base` does on dev, and the seconds that it takes."""
        judge, begun = self._judge, time.monotonic()
        return judge(self.base).measurement, time.monotonic() - begun

    @property
    def _base_dev(self) -> Measurement:
        return self._base_judged[0]

    @property
    def dev_tokens(self) -> int:
        """How many tokens a model is judged on."""
        return sum(len(window.ids) for window in self._judge.split.encoded)

    @property
    def token_seconds(self) -> float:
        """How long one of these takes."""
        return self._base_judged[1] / self.dev_tokens

    def tokens(self, most: int | None = None) -> int:
        """How many tokens `train` learns from, of `most`."""
        return round(self._epochs(most) * self._available) if self.job.recipe.recover.epochs > 0 else 0

    def dev_readings(self, most: int | None = None) -> int:
        """How often a model is judged that is trained so: at the start, after each epoch, and as it is at last."""
        return 2 + math.ceil(self._epochs(most)) if self.tokens(most) else 1

    @cached_property
    def _available(self) -> int:
        return max(1, sum(len(one.ids) for one in self.encoded))

    def _epochs(self, tokens: int | None) -> float:
        settings = self.job.recipe.recover
        limit = settings.tokens if tokens is None else min(tokens, settings.tokens or tokens)
        return settings.epochs if limit is None else min(settings.epochs, limit / self._available)

    def dev(self, short: Transformer) -> float:
        """The dev metric with the sign that makes more of it better."""
        return self._judge(self.job.ready(short)).primary.score

    def standing(self, short: Transformer) -> Standing:
        """The same, and how far from `base` on dev, in the metric that is certified.

        Raises InputError for a metric that the task does not have.
        """
        judged = self._judge(self.job.ready(short))
        known = self._base_dev.sums
        name = metric_among(known, self.job.recipe.metric)
        difference = paired(known[name], judged.measurement.sums[name])
        sign = 1.0 if known[name].higher_is_better else -1.0
        losses = sorted(-sign * bound for bound in (difference.low, difference.high))
        return Standing(judged.primary.score, -sign * difference.value, losses[0], losses[1])

    def train(
        self,
        short: Transformer,
        label: str,
        *,
        tokens: int | None = None,
        state: Path | None = None,
        identity: str = "",
    ) -> None:
        """Train in place, for `tokens` at most where given, else as the recipe says, by all processes that are there.
        The weights that are best on dev are kept, be it those of the start: a link that matters little may cost less
        than a short training does."""
        options: dict[str, Any] = {"label": label, "tokens": tokens, "state": state, "identity": identity}
        layout_of(self.job.recipe)  # before the others are asked
        how = {"recipe": self.job.recipe.model_dump(), "dropped": dict(short.dropped), "options": options}
        with processes().leading("recover", self.facts, **how):
            self.train_here(short, **options)

    @property
    def facts(self) -> dict[str, str]:
        """What all processes that train together must have alike."""
        return {"model": self.job.checkpoint.sha256, "data": self.job.data_sha256}

    def train_here(self, short: Transformer, label: str, tokens: int | None, state: Path | None, identity: str) -> None:
        """This process's part of `train`."""
        job, settings = self.job, self.job.recipe.recover
        weights, rate = settings.weights, recovery_rate(job)
        parts = Weights(weights.kl, weights.hidden, weights.squared, weights.task, settings.temperature)
        if tokens is None:
            job.console.say(f"{label}: peak rate {rate:.2g}")
        # The embedding stays the original's: what feeds the kept links is right already, and a fifth of a small
        # model's gradient, and the dear one of a tied head, need not be computed.
        short.embedding.requires_grad_(False)
        freeze_unseen(short, parts)
        with sharing_cores(), compiled(short, self.teacher.model):
            fit(
                short,
                lambda epoch: job.batches(self.encoded, settings.batch_tokens, seed=job.recipe.seed + epoch),
                recovery_loss(self.teacher, parts),
                FitSettings(
                    epochs=self._epochs(tokens),
                    learning_rate=rate,
                    head_learning_rate=rate,
                    warmup=settings.warmup,
                    seed=job.recipe.seed,
                    dtype=job.dtype,
                    most_tokens=settings.micro_tokens,
                ),
                job.console,
                label=label,
                evaluate=lambda: self.dev(short),
                state=state,
                identity=identity,
                layout=layout_of(job.recipe),
            )
