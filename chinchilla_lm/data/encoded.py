"""A window of tokens with what it should predict, and the one way that texts are tokenised here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

IGNORED = -100  # torch.nn.functional.cross_entropy's ignore_index


class DataWarning(UserWarning):
    """Data that had to be cut to fit."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """One window of tokens.

    ids: token ids, special ones included.
    segments: 0 or 1 a token, for pairs of a tokenizer that tells the two apart; else None.
    targets: one label id a token, IGNORED where there is none; one label id, or one number (ranking), for the window;
        or None.
    owners: whose predictions these are, in order. Token labels: (record, word) for each position that has one. A label
        for the window: (record, 0). Language modelling: (record, how many of the predicted tokens stand in it), one
        pair for each record of the window.
    bytes: for language modelling, UTF-8 bytes of the text that the predicted tokens of each owner spell; else empty.
    """

    ids: list[int]
    segments: list[int] | None
    targets: list[int] | int | float | None
    owners: list[tuple[int, int]]
    bytes: tuple[int, ...] = ()


def enough(windows: Sequence[Encoded], tokens: int) -> list[Encoded]:
    """The first windows, as many as have `tokens` together, or all."""
    chosen: list[Encoded] = []
    total = 0
    for window in windows:
        if total >= tokens:
            break
        chosen.append(window)
        total += len(window.ids)
    return chosen


def tokenize(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text, whole and without special tokens, whatever truncation the tokenizer's file asks for."""
    if not texts:
        return []
    found = tokenizer(list(texts), add_special_tokens=False, padding=False, truncation=False, verbose=False)
    return [list(ids) for ids in found["input_ids"]]
