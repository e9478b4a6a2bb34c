"""Recovery: the shortened model learns from the original what the dropped links did.

The loss is a weighted sum: KL of the outputs from the original's, the hidden states at shared boundaries, the squared
error of the outputs, and the task's own loss (Hinton et al. 2015; hidden states as in TinyBERT, Jiao et al. 2020). A
boundary is shared where both models have the link in front of it: links keep their names, so no map has to be invented.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from chinchilla_lm.data.batches import EncodedBatch
from chinchilla_lm.data.encode import IGNORED
from chinchilla_lm.errors import InputError
from chinchilla_lm.models.head import pool
from chinchilla_lm.models.transformer import Transformer
from chinchilla_lm.train.compiled import compiled_function
from chinchilla_lm.train.losses import hidden_error, logit_kl, squared_error, task_loss
from chinchilla_lm.train.pieces import mean_over_positions


@dataclass(frozen=True, slots=True)
class Weights:
    """Weight of each part of the recovery loss; a part with weight 0 is not computed."""

    kl: float = 1.0
    hidden: float = 0.0
    squared: float = 0.0
    task: float = 0.0
    temperature: float = 1.0


@dataclass(frozen=True, slots=True)
class Answers:
    """What others answer where a model is fine-tuned, to learn beside the gold labels, or where there are none.

    windows: log-probabilities of each window's targets, float32 [targets, labels], in the windows' order. labelled: how
    many of the windows, the first, have gold labels. weight: the answers' share of the loss there. temperature: as in
    `logit_kl`.
    """

    windows: Sequence[Tensor]
    labelled: int
    weight: float
    temperature: float

    def of(self, batch: EncodedBatch) -> tuple[Tensor, Tensor]:
        """Those of a batch, [N, labels], and whether there is a gold label as well, bool [N]; on its device."""
        rows = [self.windows[row] for row in batch.rows]
        gold = [torch.full((len(targets),), row < self.labelled) for row, targets in zip(batch.rows, rows, strict=True)]
        device = batch.batch.ids.device
        return torch.cat(rows).to(device), torch.cat(gold).to(device)


def fine_tuning_loss(smoothing: float, answers: Answers | None = None) -> Callable[[Transformer, EncodedBatch], Tensor]:
    """The task's own loss at the positions that have a target, mixed with the divergence from others' answers there."""

    def loss(model: Transformer, batch: EncodedBatch) -> Tensor:
        targets = _targets(batch)
        theirs = None if answers is None else answers.of(batch)
        hidden, _ = _walk(model, batch, ())

        def compare(logits: Tensor, part: slice) -> Tensor:
            if answers is None or theirs is None:
                return task_loss(logits, targets[part], smoothing)
            taught, gold = theirs[0][part], theirs[1][part]
            total = logits.new_zeros((), dtype=torch.float32)
            for here, weight in ((gold, answers.weight), (~gold, 1.0)):
                if here.any():
                    mixed = weight * logit_kl(logits[here], taught[here], answers.temperature)
                    if weight < 1:
                        mixed = mixed + (1 - weight) * task_loss(logits[here], targets[part][here], smoothing)
                    total = total + here.float().mean() * mixed
            return total

        return mean_over_positions(model.head, picked(model, batch, hidden), compare)

    return loss


class Teacher:
    """The original at work on one list of windows, run without gradients in its own dtype.

    What a head of a few labels says of a window is kept, so that the original runs once, not once an epoch, where no
    hidden states are compared: those, and logits over a vocabulary, are too many to keep.
    """

    def __init__(self, model: Transformer) -> None:
        self.model = model
        self._keeps = model.config.head.kind != "language-modeling"
        self._said: dict[int, Tensor] = {}

    @torch.no_grad()
    def look(self, batch: EncodedBatch, boundaries: tuple[int, ...]) -> tuple[Callable[[slice], Tensor], list[Tensor]]:
        """What gives the outputs of some of the batch's positions, and the streams at some boundaries."""
        if not boundaries and all(row in self._said for row in batch.rows):
            known = torch.cat([self._said[row] for row in batch.rows])
            return lambda part: known[part], []
        hidden, streams = _walk(self.model, batch, boundaries)
        hidden = picked(self.model, batch, hidden)
        if not self._keeps:
            return lambda part: self._classify(hidden[part]), streams
        said = self._classify(hidden)
        if not boundaries:
            self._said.update(zip(batch.rows, said.split(_targets_a_row(batch)), strict=True))
        return lambda part: said[part], streams

    @torch.no_grad()
    def _classify(self, hidden: Tensor) -> Tensor:
        assert self.model.head.output is not None
        with torch.autocast(hidden.device.type, enabled=False):
            # CUDA's autocast computes norms in float32, and the head is in the teacher's dtype.
            return self.model.head.classify(hidden.to(self.model.head.output.weight.dtype))


def recovery_loss(teacher: Teacher, weights: Weights) -> Callable[[Transformer, EncodedBatch], Tensor]:
    """The loss of a student that learns from `teacher`. Its batches must come from the windows that the teacher knows.

    Raises InputError where every weight is 0.
    """
    if not (weights.kl or weights.hidden or weights.squared or weights.task):
        raise InputError("all weights of the recovery loss are 0, so it teaches nothing; pass --recover-weights-kl 1")

    def loss(student: Transformer, batch: EncodedBatch) -> Tensor:
        boundaries = _shared_boundaries(student) if weights.hidden else ()
        theirs, their_streams = teacher.look(batch, boundaries)
        hidden, our_streams = _walk(student, batch, boundaries)
        targets = _targets(batch)

        def compare(ours: Tensor, part: slice) -> Tensor:
            total = ours.new_zeros((), dtype=torch.float32)
            if weights.kl:
                divergence = compiled_function(logit_kl) if ours.is_cuda else logit_kl
                total = total + weights.kl * divergence(ours, theirs(part), weights.temperature)
            if weights.squared:
                total = total + weights.squared * squared_error(ours, theirs(part))
            if weights.task:
                total = total + weights.task * task_loss(ours, targets[part])
            return total

        total = hidden.new_zeros((), dtype=torch.float32)
        if weights.kl or weights.squared or weights.task:
            total = mean_over_positions(student.head, picked(student, batch, hidden), compare)
        if weights.hidden:
            total = total + weights.hidden * hidden_error(our_streams, their_streams, batch.batch.mask)
        return total

    return loss


def picked(model: Transformer, batch: EncodedBatch, hidden_BTD: Tensor) -> Tensor:
    """What the head classifies: the hidden states that have a target, [N, D], or one vector a sequence, [B, D]."""
    assert batch.targets is not None
    if batch.targets.ndim == 1:
        return pool(hidden_BTD, batch.batch, model.config.head.pooling)
    return hidden_BTD[batch.targets != IGNORED]


def _targets(batch: EncodedBatch) -> Tensor:
    """The targets that `picked` goes with, [N] or [B]."""
    assert batch.targets is not None
    return batch.targets if batch.targets.ndim == 1 else batch.targets[batch.targets != IGNORED]


def _targets_a_row(batch: EncodedBatch) -> list[int]:
    """How many of the picked positions belong to each row."""
    assert batch.targets is not None
    if batch.targets.ndim == 1:
        return [1] * len(batch.rows)
    return [int(count) for count in (batch.targets != IGNORED).sum(1)]


def _walk(model: Transformer, batch: EncodedBatch, boundaries: tuple[int, ...]) -> tuple[Tensor, list[Tensor]]:
    """The last hidden state, and the streams at some boundaries on the way."""
    x, context = model.embed(batch.batch)
    streams: list[Tensor] = []
    start = 0
    for boundary in boundaries:
        x = model.run(x, context, start, boundary)
        streams.append(x)
        start = boundary
    return model.finish(model.run(x, context, start)), streams


def _shared_boundaries(student: Transformer) -> tuple[int, ...]:
    """Boundaries behind each MLP that is left, the ends of blocks: there the student has to have caught up. The end of
    the chain where no MLP is left.

    Behind a gap the next kept link sees the wrong input, so its own output, not its input, is compared.
    """
    kept = set(student.link_names)
    names = student.names
    return tuple(i + 1 for i, name in enumerate(names) if name in kept and i % 2 == 1) or (len(names),)
