"""Names in running text: words found in it, a tag for each, and spans of characters made of the tags.

A tagger was trained on words that somebody had parted, and it reads best what is parted in the same way: `words_of` is
the rule that the training data of running texts are read by too.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from chinchilla_lm.data.words import words_of

__all__ = ["Entity", "entities_of", "words_of"]

_PREFIXED = re.compile(r"([BIES])(?:-(.*))?", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Entity:
    """A span of a text: characters start ≤ i < end. score: mean probability, in [0, 1], of its words' tags."""

    label: str
    start: int
    end: int
    text: str
    score: float


def entities_of(
    text: str, words: Sequence[tuple[int, int]], tags: Sequence[str], probabilities: Sequence[float]
) -> list[Entity]:
    """Entities from one tag and its probability a word.

    B-, I-, E- and S- tags are read as conlleval reads them: a tag that breaks the rules starts an entity. A tag without
    such a prefix (a part of speech, say) makes its word an entity by itself; `O` makes none.
    """
    found = []
    for label, first, last in _runs(tags):
        start, end = words[first][0], words[last][1]
        score = sum(probabilities[first : last + 1]) / (last + 1 - first)
        found.append(Entity(label, start, end, text[start:end], score))
    return found


def _runs(tags: Sequence[str]) -> Iterator[tuple[str, int, int]]:
    """(label, first word, last word)."""
    first, kind, ended = -1, "", True
    for index, tag in enumerate([*tags, "O"]):
        match = _PREFIXED.fullmatch(tag)
        prefix, label = (match[1], match[2] or "") if match else ("S" if tag != "O" else "O", tag)
        goes_on = first >= 0 and not ended and prefix in "IE" and label == kind
        if goes_on:
            ended = prefix == "E"
            continue
        if first >= 0:
            yield kind, first, index - 1
        first = index if prefix != "O" else -1
        kind, ended = label, prefix in "ES"
