"""One split, encoded once, on which any number of models is judged in the same way.

What comes out of a model is reduced to one answer an example (tags, a label, a number, nats), and from there on the
metrics know nothing of models.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from chinchilla_lm.data.batches import EncodedBatch
from chinchilla_lm.data.encode import Encoded
from chinchilla_lm.data.tag_path import TagPath
from chinchilla_lm.errors import InputError
from chinchilla_lm.evaluate.agreement import Agreement
from chinchilla_lm.evaluate.blocks import shortest_block
from chinchilla_lm.evaluate.judged import Judged
from chinchilla_lm.evaluate.nats import Forward
from chinchilla_lm.evaluate.tasks import TASKS, Split


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
        self.task = TASKS[task]
        self.split = Split(records, encoded, batches, list(labels), TagPath(labels, legal=legal_tags))

    def __call__(self, forward: Forward) -> Judged:
        """Run the whole split through a model and measure its answers."""
        with torch.inference_mode():
            return self.task.judge(self.split, forward)

    def same_windows(self, other: Judge) -> bool:
        """Whether another judge gives its models the same tokens, so that answers can be compared one by one."""
        mine, theirs = ([window.ids for window in judge.split.encoded] for judge in (self, other))
        return mine == theirs

    def units(self) -> int:
        """How many documents, or blocks of running text, there are at most to draw from."""
        records = self.split.records
        owners = {records[owner].document for window in self.split.encoded for owner, _ in window.owners}
        return len(owners) // shortest_block(len(owners)) if self.split.consecutive else len(owners)

    def finished(self) -> set[str]:
        """Documents of running text that are read to their end."""
        owners = {self.split.records[owner].document for window in self.split.encoded for owner, _ in window.owners}
        return owners - self.split.unfinished

    def compare(self, original: Forward, changed: Forward, before: Judged, after: Judged) -> Agreement | None:
        """How far the answers of two models agree, of which this judge made `before` and `after`; of running text, on
        its first part. None for a regression, which has no answers."""
        return self.task.compare(self.split, original, changed, before, after)
