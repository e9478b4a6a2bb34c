"""Entities given as character spans, made into words and tags.

    CLUENER   {"text": "…", "label": {type: {surface: [[start, end], …]}}}              end inclusive
    generic   {"text": "…", "entities": [{"start": 0, "end": 6, "label": "PER"}, …]}    end exclusive

Texts are parted by `words`, in training as in use. A span that cuts a word in two cannot be spelt in tags: cutting the
word there would tell the model where the entity ends. Where it cuts at a hyphen or the like (`Paris` in `Paris-based`)
it is widened to the word, which is all that a tagger can mark in use either; anywhere else the record is refused.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping

from chinchilla_lm.data.records import BadRecord
from chinchilla_lm.data.tags import tags_of
from chinchilla_lm.data.words import JOINTS, words_of

Span = tuple[int, int, str]  # first character, character after the last, type


def tag_spans(text: str, spans: list[Span]) -> tuple[tuple[str, ...], tuple[str, ...], int]:
    """Words and BIO tags of a text with entity spans, and how many spans were widened to whole words.

    Raises:
        BadRecord: no words, a span outside the text, off the word boundaries, or overlapping another.
    """
    bounds = words_of(text)
    if not bounds:
        raise BadRecord("the text has no words")
    entities: list[tuple[int, int, str]] = []
    free_from = widened = 0
    for start, stop, kind in sorted(set(spans)):
        if not 0 <= start < stop <= len(text):
            raise BadRecord(f"span [{start}, {stop}) is not inside the text of {len(text)} characters")
        found = _words_under(text, bounds, start, stop)
        if found is None:
            raise BadRecord(f"span [{start}, {stop}) {text[start:stop]!r} does not fit word boundaries")
        if found[0] < free_from:
            raise BadRecord(f"span [{start}, {stop}) {text[start:stop]!r} overlaps another")
        entities.append((*found, kind))
        free_from = found[1]
        widened += len(text[start:stop].strip()) < bounds[found[1] - 1][1] - bounds[found[0]][0]
    return tuple(text[start:stop] for start, stop in bounds), tags_of(entities, len(bounds)), widened


def _words_under(text: str, bounds: list[tuple[int, int]], start: int, stop: int) -> tuple[int, int] | None:
    """(first word, word after the last) of a span, white space at its ends aside; None where it cuts a word."""
    surface = text[start:stop]
    start, stop = stop - len(surface.lstrip()), start + len(surface.rstrip())
    if start >= stop:
        return None
    first = bisect_right(bounds, start, key=lambda word: word[0]) - 1
    last = bisect_right(bounds, stop - 1, key=lambda word: word[0]) - 1
    fits = all(at in bounds[word] or _is_joint(text, at) for at, word in ((start, first), (stop, last)))
    return (first, last + 1) if fits else None


def _is_joint(text: str, at: int) -> bool:
    """Whether a mark that joins two parts of one word stands at either side of a place."""
    return text[at - 1] in JOINTS or text[at] in JOINTS


def spans_of(row: Mapping[str, object]) -> list[Span]:
    """The spans of a row in one of the two layouts.

    Raises:
        BadRecord: the row has neither, or its values are not as they should be.
    """
    if "entities" in row:
        return _generic_spans(row["entities"])
    if isinstance(row.get("label"), Mapping):
        return _cluener_spans(row["label"], str(row.get("text", "")))
    raise BadRecord("neither tokens and tags, nor text and entities")


def _generic_spans(entities: object) -> list[Span]:
    if not isinstance(entities, list):
        raise BadRecord(f"entities is {type(entities).__name__}, not a list")
    spans = []
    for entity in entities:
        if not isinstance(entity, Mapping):
            raise BadRecord(f"entity {entity!r} is not an object with start, end and label")
        start, end, kind = entity.get("start"), entity.get("end"), entity.get("label")
        if type(start) is not int or type(end) is not int or not isinstance(kind, str) or not kind:
            raise BadRecord(f"entity {dict(entity)!r} needs whole numbers start and end, and a label")
        spans.append((start, end, kind))
    return spans


def _cluener_spans(label: object, text: str) -> list[Span]:
    spans: list[Span] = []
    try:
        for kind, surfaces in label.items():  # type: ignore[attr-defined]  # shape checked by the except below
            for surface, places in surfaces.items():
                spans.extend((int(first), int(last) + 1, str(kind)) for first, last in places)
                wrong = [place for place in places if text[place[0] : place[1] + 1] != surface]
                if wrong:
                    raise BadRecord(f"span {wrong[0]} is not {surface!r} in the text")
    except (AttributeError, TypeError) as error:
        raise BadRecord("label is not {type: {surface: [[start, end], …]}}") from error
    return spans
