"""Entities given as character spans, made into words and tags.

    CLUENER   {"text": "…", "label": {type: {surface: [[start, end], …]}}}              end inclusive
    generic   {"text": "…", "entities": [{"start": 0, "end": 6, "label": "PER"}, …]}    end exclusive

Chinese and Japanese write no spaces, so there every character is a word. A span that cuts a word in two cannot be spelt
in tags: cutting the word there would tell the model where the entity ends, so the record is refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from chinchilla_lm.data.records import BadRecord
from chinchilla_lm.data.tags import tags_of

Span = tuple[int, int, str]  # first character, character after the last, type

# Han with extension A and the compatibility block, kana, and Han beyond the basic plane. Hangul writes spaces.
_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_CJK_CHARACTER = re.compile(f"[{_CJK}]")
_WORD = re.compile(rf"[{_CJK}]|[^\W_{_CJK}]+|[^\w\s]|_")
# Next to CJK, Latin letters and digits touch without a space and belong to different words: 星际2无力, 魔兽争霸3.
_WORD_AMONG_CJK = re.compile(rf"[{_CJK}]|[^\W\d_{_CJK}]+|\d+|[^\w\s]|_")


def is_cjk(character: str) -> bool:
    """Whether a character is Han or kana, written without spaces between words."""
    return _CJK_CHARACTER.match(character) is not None


def split_words(text: str) -> list[tuple[int, int]]:
    """Word boundaries of a text as (first character, character after the last).

    A word is a run of letters and digits, one punctuation mark, or one CJK character; letters and digits are parted in
    a text that has CJK characters.
    """
    pattern = _WORD_AMONG_CJK if _CJK_CHARACTER.search(text) else _WORD
    return [match.span() for match in pattern.finditer(text)]


def tag_spans(text: str, spans: list[Span]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Words and BIO tags of a text with entity spans.

    Raises:
        BadRecord: no words, a span outside the text, off the word boundaries, or overlapping another.
    """
    bounds = split_words(text)
    if not bounds:
        raise BadRecord("the text has no words")
    starts = {start: i for i, (start, _) in enumerate(bounds)}
    stops = {stop: i + 1 for i, (_, stop) in enumerate(bounds)}
    entities = []
    free_from = 0
    for start, stop, kind in sorted(set(spans)):
        surface = text[max(start, 0) : stop]
        if not 0 <= start < stop <= len(text):
            raise BadRecord(f"span [{start}, {stop}) is not inside the text of {len(text)} characters")
        if start not in starts or stop not in stops:
            raise BadRecord(f"span [{start}, {stop}) {surface!r} does not fit word boundaries")
        if start < free_from:
            raise BadRecord(f"span [{start}, {stop}) {surface!r} overlaps another")
        entities.append((starts[start], stops[stop], kind))
        free_from = stop
    return tuple(text[start:stop] for start, stop in bounds), tags_of(entities, len(bounds))


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
