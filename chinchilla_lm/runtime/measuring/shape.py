"""The shape of the work in a race, and prompts of that shape.

Without torch, since a process that shows the engine's own memory must not import it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Ids below this stand for padding and the like in most vocabularies; RoBERTa's positions depend on where padding is.
_FIRST_WORD = 5

Ids = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Shape:
    """Texts a batch, tokens a text, and tokens to write: 0 for a model that only reads."""

    batch: int
    tokens: int
    new_tokens: int

    def to_dict(self) -> dict[str, int]:
        """As tables and reports have it: without new tokens for a model that only reads."""
        written = {"new_tokens": self.new_tokens} if self.new_tokens else {}
        return {"batch": self.batch, "tokens": self.tokens, **written}

    @property
    def measures(self) -> tuple[str, ...]:
        """What is timed, the names of one engine's timings."""
        if self.new_tokens == 0:
            return ("batch", "single")
        return ("prefill", "decode", "request") if self.new_tokens > 1 else ("prefill", "request")


def prompt(number: int, batch: int, tokens: int, vocabulary: int) -> Ids:
    """Random token ids, int64 [B, T]; the same number gives the same ids."""
    return np.random.default_rng(number).integers(min(_FIRST_WORD, vocabulary - 1), vocabulary, (batch, tokens))
