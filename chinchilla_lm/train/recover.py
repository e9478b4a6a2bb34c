"""Recovery: the shortened model learns from the original what the dropped links did.

The loss is a weighted sum: KL of the outputs from the original's, the hidden states at shared boundaries, the squared
error of the outputs, and the task's own loss (Hinton et al. 2015; hidden states as in TinyBERT, Jiao et al. 2020). A
boundary is shared where both models have the link in front of it: links keep their names, so no map has to be invented.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from chinchilla_lm.data.batches import EncodedBatch
from chinchilla_lm.data.encode import IGNORED
from chinchilla_lm.errors import InputError
from chinchilla_lm.models.head import pool
from chinchilla_lm.models.transformer import Transformer, key
from chinchilla_lm.train.compiled import compiled_function
from chinchilla_lm.train.losses import hidden_error, logit_kl, spread_of, squared_error, task_loss
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


# A transformer, or what wraps it for training by several processes.
Call = nn.Module


def transformer_in(model: Call) -> Transformer:
    """The transformer that a wrapper holds, or the model itself."""
    found = model if isinstance(model, Transformer) else model.get_submodule("module")
    assert isinstance(found, Transformer)
    return found


def fine_tuning_loss(smoothing: float, answers: Answers | None = None) -> Callable[[Call, EncodedBatch], Tensor]:
    """The task's own loss at the positions that have a target, mixed with the divergence from others' answers there."""

    def loss(model: Call, batch: EncodedBatch) -> Tensor:
        targets = _targets(batch)
        theirs = None if answers is None else answers.of(batch)

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

        def then(hidden: Tensor, _: list[Tensor]) -> Tensor:
            inner = transformer_in(model)
            return batch.share.targets * mean_over_positions(inner.head, picked(inner, batch, hidden), compare)

        found: Tensor = model(batch.batch, then=then)
        return found

    return loss


class Teacher:
    """The original at work on one list of windows, run without gradients in its own dtype.

    What a head of a few labels says of a window is kept, so that the original runs once, not once an epoch, where no
    hidden states are compared: those, and logits over a vocabulary, are too many to keep.

    sample: gives the batch on which the spread of hidden states is measured, where those are compared.
    """

    def __init__(self, model: Transformer, sample: Callable[[], EncodedBatch] | None = None) -> None:
        self.model, self._sample = model, sample
        self._spreads: dict[int, float] = {}
        self._keeps = model.config.head.kind != "language-modeling"
        self._said: dict[int, Tensor] = {}

    @torch.no_grad()
    def look(self, batch: EncodedBatch, boundaries: tuple[int, ...]) -> tuple[Callable[[slice], Tensor], list[Tensor]]:
        """What gives the outputs of some of the batch's positions, and the streams at some boundaries."""
        if not boundaries and all(row in self._said for row in batch.rows):
            known = torch.cat([self._said[row] for row in batch.rows])
            return lambda part: known[part], []
        hidden, streams = self.model(batch.batch, boundaries=boundaries, then=lambda *found: found)
        hidden = picked(self.model, batch, hidden)
        if not self._keeps:
            return lambda part: self._classify(hidden[part]), streams
        said = self._classify(hidden)
        if not boundaries:
            self._said.update(zip(batch.rows, said.split(_targets_a_row(batch)), strict=True))
        return lambda part: said[part], streams

    @torch.no_grad()
    def spreads(self, boundaries: tuple[int, ...]) -> list[float]:
        """The variance of the streams at boundaries, on the sample."""
        if missing := [one for one in boundaries if one not in self._spreads]:
            assert self._sample is not None, "a teacher whose hidden states are compared has a sample"
            batch = self._sample().batch
            streams = self.model(batch, boundaries=missing, then=lambda _, streams: streams)
            self._spreads.update(zip(missing, (spread_of(one, batch.mask) for one in streams), strict=True))
        return [self._spreads[one] for one in boundaries]

    @torch.no_grad()
    def _classify(self, hidden: Tensor) -> Tensor:
        assert self.model.head.output is not None
        with torch.autocast(hidden.device.type, enabled=False):
            # CUDA's autocast computes norms in float32, and the head is in the teacher's dtype.
            return self.model.head.classify(hidden.to(self.model.head.output.weight.dtype))


def recovery_loss(teacher: Teacher, weights: Weights) -> Callable[[Call, EncodedBatch], Tensor]:
    """The loss of a student that learns from `teacher`. Its batches must come from the windows that the teacher knows.

    Raises InputError where every weight is 0.
    """
    if not (weights.kl or weights.hidden or weights.squared or weights.task):
        raise InputError("all weights of the recovery loss are 0, so it teaches nothing; pass --recover-weights-kl 1")

    def loss(model: Call, batch: EncodedBatch) -> Tensor:
        student = transformer_in(model)
        boundaries = _shared_boundaries(student) if weights.hidden else ()
        theirs, their_streams = teacher.look(batch, boundaries)
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

        def then(hidden: Tensor, our_streams: list[Tensor]) -> Tensor:
            total = hidden.new_zeros((), dtype=torch.float32)
            if weights.kl or weights.squared or weights.task:
                mean = mean_over_positions(student.head, picked(student, batch, hidden), compare)
                total = total + batch.share.targets * mean
            if weights.hidden:
                spreads = teacher.spreads(boundaries)
                error = hidden_error(our_streams, their_streams, batch.batch.mask, spreads)
                total = total + batch.share.tokens * weights.hidden * error
            return total

        found: Tensor = model(batch.batch, boundaries=boundaries, then=then)
        return found

    return loss


def freeze_unseen(student: Transformer, weights: Weights) -> None:
    """Do not train what no part of the loss sees: with hidden states alone, all that lies behind the last boundary.

    Processes that train together wait for the gradient of each weight that is trained.
    """
    if weights.kl or weights.squared or weights.task:
        return
    last = _shared_boundaries(student)[-1]
    behind = [student.links[key(name)] for name in student.names[last:] if key(name) in student.links]
    for module in (*behind, student.norm, student.head):
        if module is not None:
            module.requires_grad_(False)


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


def _shared_boundaries(student: Transformer) -> tuple[int, ...]:
    """Boundaries behind each MLP that is left, the ends of blocks: there the student has to have caught up. The end of
    the chain where no MLP is left.

    Behind a gap the next kept link sees the wrong input, so its own output, not its input, is compared.
    """
    kept = set(student.link_names)
    names = student.names
    return tuple(i + 1 for i, name in enumerate(names) if name in kept and i % 2 == 1) or (len(names),)
