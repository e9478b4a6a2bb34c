"""A task that a tiny model learns in a second: each token decides the next."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from chinchilla_lm.data.batches import EncodedBatch, batches
from chinchilla_lm.data.encoded import IGNORED, Encoded
from chinchilla_lm.train.loop import FitSettings

VOCAB = 97
SETTINGS = FitSettings(epochs=3, learning_rate=1e-2, head_learning_rate=1e-2)


def windows(rows: int = 12, seed: int = 0) -> list[Encoded]:
    """Windows of 4 to 9 tokens; the next token is three times the last, plus one."""
    random = torch.Generator().manual_seed(seed)
    made = []
    for row in range(rows):
        ids = [int(torch.randint(VOCAB, (1,), generator=random))]
        while len(ids) < 4 + row % 6:
            ids.append((3 * ids[-1] + 1) % VOCAB)
        made.append(Encoded(ids, None, [*ids[1:], IGNORED], [(row, 0)]))
    return made


def epochs(rows: int = 12, max_tokens: int = 20) -> Callable[[int], Sequence[EncodedBatch]]:
    """The batches of each epoch, in an order of its own."""
    encoded = windows(rows)
    return lambda epoch: list(batches(encoded, max_tokens=max_tokens, shuffle_seed=epoch))
