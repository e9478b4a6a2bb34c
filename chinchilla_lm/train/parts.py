"""A batch parted among processes, and on each into pieces that fit its memory.

A loss is the mean over the targets of the whole batch. Each part's mean is weighted by the share of the targets that it
has, so that the sum over all parts, on all processes, is that mean, however rows and padding fall.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from chinchilla_lm.data.batches import EncodedBatch, Share
from chinchilla_lm.data.encoded import IGNORED
from chinchilla_lm.models.batch import Batch
from chinchilla_lm.models.dropout import keys_of


def parts_of(batch: EncodedBatch, rank: int = 0, size: int = 1, most_tokens: int | None = None) -> list[EncodedBatch]:
    """What one of `size` processes has of a batch, in pieces of at most `most_tokens` positions (of one row, where that
    is longer). Every process has as many pieces as the others: one without rows left has a row of share 0.

    Each part is cut to its longest row.
    """
    rows, width = batch.batch.ids.shape
    each = -(-rows // size)  # of the process that has most
    at_once = each if most_tokens is None else max(1, min(each, most_tokens // width))
    mine = list(range(rank, rows, size))
    pieces = [mine[start : start + at_once] for start in range(0, each, at_once)]
    targets, tokens = _counts(batch)
    return [_part(batch, piece, targets, tokens) for piece in pieces]


def with_keys(batch: EncodedBatch, seed: int, step: int) -> EncodedBatch:
    """The batch with the keys of its rows at a step, which decide what dropout hits."""
    keys = keys_of(batch.rows, seed, step).to(batch.batch.ids.device)
    return replace(batch, batch=replace(batch.batch, keys=keys))


def _counts(batch: EncodedBatch) -> tuple[Tensor, Tensor]:
    """Targets and real tokens of each row, [B], on the CPU."""
    assert batch.targets is not None
    rows = batch.batch.ids.shape[0]
    targets = torch.ones(rows) if batch.targets.ndim == 1 else (batch.targets != IGNORED).sum(1).float().cpu()
    return targets, batch.batch.lengths().float().cpu()


def _part(batch: EncodedBatch, rows: list[int], targets_B: Tensor, tokens_B: Tensor) -> EncodedBatch:
    if not rows:
        return replace(_cut(batch, [0]), share=Share(0.0, 0.0))
    targets, tokens = targets_B.sum(), tokens_B.sum()
    share = Share(float(targets_B[rows].sum() / targets.clamp_min(1)), float(tokens_B[rows].sum() / tokens))
    if len(rows) == len(targets_B):
        return batch
    return replace(_cut(batch, rows), share=share)


def _cut(batch: EncodedBatch, rows: list[int]) -> EncodedBatch:
    """Some of the rows, cut to the longest of them."""
    inner = batch.batch
    width = int(inner.lengths()[rows].max())
    mask = None if inner.mask is None else inner.mask[rows, :width]
    if mask is not None and bool(mask.all()):
        mask = None
    segments = None if inner.segments is None else inner.segments[rows, :width]
    keys = None if inner.keys is None else inner.keys[rows]
    targets = batch.targets
    if targets is not None:
        targets = targets[rows] if targets.ndim == 1 else targets[rows, :width]
    cut = Batch(inner.ids[rows, :width], mask, segments, keys)
    return EncodedBatch(cut, targets, [batch.rows[row] for row in rows])
