"""Calibration batches for tiny models of every task, and the cost of a removal computed without any cache."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from chinchilla_lm.data.batches import EncodedBatch
from chinchilla_lm.data.encoded import IGNORED
from chinchilla_lm.models.batch import Batch
from chinchilla_lm.models.config import HeadConfig
from chinchilla_lm.models.transformer import NormFate, Transformer
from chinchilla_lm.shorten.surgery import without

TAGS = HeadConfig("token-classification", labels=("O", "B-X", "I-X"))
CLASSES = HeadConfig("text-classification", labels=("a", "b", "c"), pooling="mean")
POST = {"norm": "layernorm", "placement": "post", "causal": False, "gated": False, "final_norm": False}
BODIES: dict[str, dict[str, Any]] = {
    "pre": {},
    "sandwich": {"placement": "sandwich", "norm_unit_offset": True, "qk_norm": True, "windows": (4, None, 4)},
    "post": POST,
}
HEADS: dict[str, dict[str, Any]] = {
    "text": {},
    "tags": {"head": TAGS},
    "classes": {"head": CLASSES},
    "scores": {"head": HeadConfig("ranking", labels=("score",), pooling="last")},
}
OUTPUTS = {"text": 97, "tags": 3, "classes": 3}


def calibration(head: str = "text", seed: int = 0) -> list[EncodedBatch]:
    """Two batches, the first with padding and with positions that have no target."""
    random = torch.Generator().manual_seed(seed)
    made = []
    for rows, length in ((3, 7), (2, 10)):
        ids = torch.randint(97, (rows, length), generator=random)
        mask = torch.arange(length)[None] < torch.tensor([length, 5, 2][:rows])[:, None]
        if head == "scores":
            targets = torch.randn(rows, generator=random)
        elif head == "classes":
            targets = torch.randint(3, (rows,), generator=random)
        else:
            targets = torch.randint(OUTPUTS[head], (rows, length), generator=random)
            targets[:, 0] = IGNORED
            targets = targets.masked_fill(~mask, IGNORED)
        made.append(EncodedBatch(Batch(ids, mask if rows == 3 else None), targets, list(range(rows))))
    if head in ("text", "tags"):
        made[1].targets[1, 3:] = IGNORED  # type: ignore[index]
    return made


def compared(model: Transformer, batch: EncodedBatch) -> list[Tensor]:
    """Logits at the targets of every row, [n, V] each, by a plain pass."""
    assert batch.targets is not None
    logits = model(batch.batch).float()
    if batch.targets.ndim == 1:
        return [row[None] for row in logits]
    return [row[targets != IGNORED] for row, targets in zip(logits, batch.targets, strict=True)]


@torch.no_grad()
def naive(
    model: Transformer, batches: Sequence[EncodedBatch], fates: Mapping[str, NormFate], loss: str
) -> list[list[float]]:
    """The cost of really removing links at every compared position, by window."""
    short = without(model, fates, share=True)
    found = []
    for batch in batches:
        assert batch.targets is not None
        for old, new, targets in zip(compared(model, batch), compared(short, batch), batch.targets, strict=True):
            gold = targets[targets != IGNORED] if targets.ndim else targets[None]
            if old.shape[-1] == 1:
                whole, changed = (0.5 * (x[:, 0] - gold).square() for x in (old, new))
                divergence = 0.5 * (old - new).square()[:, 0]
            else:
                whole, changed = (F.cross_entropy(x, gold.long(), reduction="none") for x in (old, new))
                p, q = old.log_softmax(-1), new.log_softmax(-1)
                divergence = (p.exp() * (p - q)).sum(-1)
            found.append((divergence if loss == "kl" else changed - whole).tolist())
    return found


def mean(windows: Sequence[Sequence[float]]) -> float:
    """Over all positions alike."""
    return sum(sum(window) for window in windows) / sum(len(window) for window in windows)
