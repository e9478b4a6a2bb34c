"""How many answers changed, beside how good they are: two models can be equally good and disagree.

Compression that keeps accuracy to a tenth of a point can change every tenth answer, right ones to wrong and as many
wrong ones to right (Dutta et al., "Accuracy is not all you need", NeurIPS 2024). Three numbers say so:

    same     the share of answers that are the same: labels, tags, or the most probable next token
    flipped  the share that went from right to wrong, or from wrong to right
    kl       the mean divergence of the changed model's probabilities from the original's, KL(original || changed), in
             nats an answer; of tags before they are decoded as a sequence

An answer is a text's label, a word's tag, or a position of a text. A regression has no answers to agree on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from chinchilla_lm.data.batches import EncodedBatch
from chinchilla_lm.data.encode import IGNORED, Encoded
from chinchilla_lm.evaluate.nats import Forward, checked
from chinchilla_lm.evaluate.predictions import Prediction
from chinchilla_lm.evaluate.sums import Estimate, Floats, Sums, bootstrap, document_rows, ratio
from chinchilla_lm.models.batch import Batch
from chinchilla_lm.results import AgreementFound

# Positions of running text that two models' logits are compared at, from the beginning: 16 windows of 512.
TEXT_POSITIONS = 8192
# Positions whose probabilities are in memory at once.
POSITIONS_AT_ONCE = 64

SAME, FLIPPED, KL, ANSWERS = range(4)


@dataclass(frozen=True, slots=True)
class Agreement:
    """Each share, and the divergence in nats, with its 95 % interval."""

    answers: int
    same: Estimate
    flipped: Estimate
    kl: Estimate

    def words(self) -> str:
        """In one line, for a person."""
        return (
            f"{self.same.value:.2%} of {self.answers:,} answers are the same, {self.flipped.value:.2%} flipped from "
            f"right to wrong or back; mean KL {self.kl.value:.4f} nats"
        )

    def to_dict(self) -> AgreementFound:
        same, flipped, kl = (estimate.to_dict() for estimate in (self.same, self.flipped, self.kl))
        return {"answers": self.answers, "same": same, "flipped": flipped, "kl": kl}


def agreement(rows: Floats, documents: Sequence[str], *, consecutive: bool = False) -> Agreement:
    """From float64 [examples, 4]: how many answers are the same, how many flipped, the sum of their divergences, and
    how many there are. `documents` and `consecutive` as for the metrics."""
    index, number = document_rows(documents)
    per_document = np.zeros((number, 4))
    np.add.at(per_document, index, rows)

    def share(column: int) -> Estimate:
        def statistic(sums: Floats) -> Floats:
            return ratio(sums[..., column], sums[..., ANSWERS])

        return bootstrap(Sums("agreement", "points", True, per_document, statistic, consecutive))

    return Agreement(int(rows[:, ANSWERS].sum()), share(SAME), share(FLIPPED), share(KL))


def of_answers(
    before: Sequence[Prediction],
    after: Sequence[Prediction],
    their_log_probabilities: Sequence[Floats],
    our_log_probabilities: Sequence[Floats],
) -> Floats:
    """The rows for `agreement` of labels or tags: an example's answers, and log probabilities [answers, classes]."""
    rows = np.zeros((len(before), 4))
    compared = zip(before, after, their_log_probabilities, our_log_probabilities, strict=True)
    for row, (old, new, theirs, ours) in zip(rows, compared, strict=True):
        gold, was, is_now = (np.atleast_1d(np.array(answer)) for answer in (old.gold, old.predicted, new.predicted))
        row[SAME] = (was == is_now).sum()
        row[FLIPPED] = ((was == gold) != (is_now == gold)).sum()
        row[KL] = (np.exp(theirs) * (theirs - ours)).sum()
        row[ANSWERS] = len(was)
    return rows


def of_text(
    original: Forward, changed: Forward, encoded: Sequence[Encoded], batches: Sequence[EncodedBatch]
) -> tuple[Floats, list[int]]:
    """The rows for `agreement` of running text, one for each owner of a window, and the records that own them.

    Windows in their order, up to TEXT_POSITIONS. Raises InputError where outputs are not finite numbers.
    """
    places = {window: (batch, row) for batch in batches for row, window in enumerate(batch.rows)}
    rows: list[Floats] = []
    owners: list[int] = []
    compared = 0
    for window in range(len(encoded)):
        if compared >= TEXT_POSITIONS:
            break
        batch, row = places[window]
        assert batch.targets is not None
        kept = batch.targets[row] != IGNORED
        targets = batch.targets[row][kept]
        one = Batch(batch.batch.ids[row : row + 1])
        theirs, ours = (checked(forward(one))[0][kept.to("cpu")] for forward in (original, changed))
        per_position = _per_position(theirs, ours, targets)
        start = 0
        for record, tokens in encoded[window].owners:
            rows.append(per_position[start : start + tokens].sum(axis=0))
            owners.append(record)
            start += tokens
        compared += len(targets)
    return np.stack(rows), owners


def _per_position(theirs_NV: Tensor, ours_NV: Tensor, targets_N: Tensor) -> Floats:
    """float64 [N, 4], the columns of `agreement`, from logits."""
    parts = []
    for theirs, ours, targets in zip(
        theirs_NV.split(POSITIONS_AT_ONCE),
        ours_NV.split(POSITIONS_AT_ONCE),
        targets_N.split(POSITIONS_AT_ONCE),
        strict=True,
    ):
        old, new = F.log_softmax(theirs.double(), -1), F.log_softmax(ours.double(), -1)
        was, is_now = theirs.argmax(-1), ours.argmax(-1)
        gold = targets.to(was.device)
        flipped = (was == gold) != (is_now == gold)
        divergence = (old.exp() * (old - new)).sum(-1)
        parts.append(torch.stack([was == is_now, flipped, divergence, torch.ones_like(divergence)], -1))
    return torch.cat(parts).cpu().numpy()
