"""Windows become padded batches of about equal cost.

Rows of like length go together, so that hardly anything is padding, and a batch holds as many rows as a token budget
allows, so that every step costs the same. With a seed, which rows meet changes from epoch to epoch: lengths are shaken
a little before sorting, and the batches come in random order. Padding stands on the right.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import overload

import torch
from torch import Tensor

from chinchilla_lm.data.encoded import IGNORED, Encoded
from chinchilla_lm.errors import InputError
from chinchilla_lm.models.batch import Batch

# Lengths are shaken by up to this share. Measured on CoNLL-2003 train at 1,024 tokens a batch: see
# tests/data/test_batches.py.
JITTER = 0.05


@dataclass(frozen=True, slots=True)
class Share:
    """What a part of a batch has of the whole batch's targets and of its real tokens, in [0, 1]."""

    targets: float = 1.0
    tokens: float = 1.0


WHOLE = Share()


@dataclass(frozen=True, slots=True)
class EncodedBatch:
    """A batch with what it should predict.

    batch: ids int64 [B, T], mask bool [B, T] or None without padding, segments int64 [B, T] or None.
    targets: int64 [B, T] with -100 where there is none, int64 or (ranking) float32 [B], or None.
    rows: the index of each row's window.
    share: of the batch that it is a part of, by which its losses are weighted.
    """

    batch: Batch
    targets: Tensor | None
    rows: list[int]
    share: Share = WHOLE

    def to(self, device: torch.device | str) -> EncodedBatch:
        """The same batch on another device."""
        targets = None if self.targets is None else self.targets.to(device)
        return replace(self, batch=self.batch.to(device), targets=targets)


class Batches(Sequence[EncodedBatch]):
    """Batches built when they are asked for. `plan` has the rows of each."""

    def __init__(self, encoded: Sequence[Encoded], plan: list[list[int]], pad_id: int) -> None:
        self.encoded = encoded
        self.plan = plan
        self.pad_id = pad_id

    def __len__(self) -> int:
        return len(self.plan)

    @overload
    def __getitem__(self, index: int) -> EncodedBatch: ...
    @overload
    def __getitem__(self, index: slice) -> Batches: ...
    def __getitem__(self, index: int | slice) -> EncodedBatch | Batches:
        if isinstance(index, slice):
            return Batches(self.encoded, self.plan[index], self.pad_id)
        rows = self.plan[index]
        return collate([self.encoded[row] for row in rows], rows, self.pad_id)

    def __iter__(self) -> Iterator[EncodedBatch]:
        return (self[i] for i in range(len(self)))


def batches(
    encoded: Sequence[Encoded],
    *,
    max_tokens: int | None = None,
    max_rows: int | None = None,
    shuffle_seed: int | None = None,
    pad_id: int = 0,
) -> Batches:
    """Every window in exactly one batch, of at most `max_tokens` tokens, padding included, and at most `max_rows` rows.

    A window longer than `max_tokens` is a batch of its own. Without a seed the batches come from the shortest to the
    longest; with one, in a random order that the seed fixes.

    Raises:
        InputError: no limit, or a limit below 1.
    """
    limits = [limit for limit in (max_tokens, max_rows) if limit is not None]
    if not limits or min(limits) < 1:
        raise InputError(f"max_tokens {max_tokens} and max_rows {max_rows} are no limits; pass one of at least 1")
    lengths = [len(window.ids) for window in encoded]
    plan = plan_batches(lengths, max_tokens=max_tokens, max_rows=max_rows, shuffle_seed=shuffle_seed)
    return Batches(encoded, plan, pad_id)


def plan_batches(
    lengths: Sequence[int], *, max_tokens: int | None, max_rows: int | None, shuffle_seed: int | None
) -> list[list[int]]:
    """The rows of each batch, from the rows' lengths alone."""
    order = list(range(len(lengths)))
    source = None if shuffle_seed is None else random.Random(shuffle_seed)
    if source is None:
        order.sort(key=lambda row: lengths[row])
    else:
        shaken = [length * (1 + JITTER * source.random()) + source.random() for length in lengths]
        order.sort(key=lambda row: shaken[row])
    plan: list[list[int]] = []
    longest = 0
    for row in order:
        longest = max(longest, lengths[row])
        rows = len(plan[-1]) + 1 if plan else 0
        too_long = max_tokens is not None and rows * longest > max_tokens
        if not plan or too_long or (max_rows is not None and rows > max_rows):
            plan.append([])
            longest = lengths[row]
        plan[-1].append(row)
    if source is not None:
        source.shuffle(plan)
    return plan


def collate(windows: Sequence[Encoded], rows: list[int], pad_id: int) -> EncodedBatch:
    """The windows as one batch, padded on the right to the longest."""
    lengths = [len(window.ids) for window in windows]
    width = max(lengths)
    ids = _padded([window.ids for window in windows], width, pad_id)
    mask = None
    if min(lengths) < width:
        mask = torch.arange(width)[None, :] < torch.tensor(lengths)[:, None]
    segments = None
    if any(window.segments is not None for window in windows):
        segments = _padded([window.segments or [0] * len(window.ids) for window in windows], width, 0)
    return EncodedBatch(Batch(ids, mask, segments), _targets(windows, width), rows)


def _targets(windows: Sequence[Encoded], width: int) -> Tensor | None:
    per_token = [window.targets for window in windows if isinstance(window.targets, list)]
    per_window = [window.targets for window in windows if isinstance(window.targets, int | float)]
    if per_token:
        assert len(per_token) == len(windows), "windows with and without token targets in one batch"
        return _padded(per_token, width, IGNORED)
    if per_window:
        assert len(per_window) == len(windows), "windows with and without a target in one batch"
        numbers = any(isinstance(target, float) for target in per_window)
        return torch.tensor(per_window, dtype=torch.float32 if numbers else torch.int64)
    return None


def _padded(rows: Sequence[list[int]], width: int, value: int) -> Tensor:
    return torch.tensor([row + [value] * (width - len(row)) for row in rows], dtype=torch.int64)


def padding_share(batched: Sequence[EncodedBatch]) -> float:
    """The share of all positions, in [0, 1), that is padding; 0 where there are no batches."""
    total = sum(item.batch.ids.numel() for item in batched)
    return 1 - sum(item.batch.tokens for item in batched) / total if total else 0.0
