"""Tag schemes: what the letters before a type mean, and the way from each to BIO.

    scheme   an entity of two words, then one of one word, touching it, of the same type
    BIO      B-X I-X B-X          every entity begins with B (IOB2)
    IOB1     I-X I-X B-X          B only where an entity touches an earlier one of the same type (Ramshaw & Marcus 1995)
    BIOES    B-X E-X S-X          E ends, S stands alone
    BILOU    B-X L-X U-X          BIOES with L for E and U for S; BMES has M for I
    plain    X X X                no prefixes (parts of speech): kept as they are

A file does not say which it uses, so the scheme is the one under which the fewest of its sentences are illegal. Once
it is known, IOB1 is read as conlleval reads it, B beginning an entity anywhere: CoNLL-2003 train has two such in
14,041 sentences.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Literal

from chinchilla_lm.data.records import BadRecord

Scheme = Literal["BIO", "IOB1", "BIOES", "plain"]
Entity = tuple[int, int, str]  # first word, word after the last, type

_PREFIXED = re.compile(r"([BIESLUM])-(.+)", re.DOTALL)
_AS_BIOES = {"L": "E", "U": "S", "M": "I"}


def detect_scheme(sentences: Sequence[tuple[str, ...]]) -> Scheme:
    """The scheme under which the fewest sentences are illegal; BIO before IOB1 before BIOES where they tie."""
    distinct = set(sentences)
    names = {tag for tags in distinct for tag in tags} - {"O"}
    if names and not any(_PREFIXED.fullmatch(tag) for tag in names):
        return "plain"
    best: Scheme = "BIO"
    fewest = len(sentences) + 1
    schemes: tuple[Scheme, ...] = ("BIO", "IOB1", "BIOES")
    for scheme in schemes:
        bad = {tags for tags in distinct if not _is_legal(tags, scheme)}
        count = sum(tags in bad for tags in sentences) if bad else 0
        if count < fewest:
            best, fewest = scheme, count
        if not count:
            break
    return best


def _is_legal(tags: tuple[str, ...], scheme: Scheme) -> bool:
    try:
        entities_of(tags, scheme, strict=True)
    except BadRecord:
        return False
    return True


def entities_of(tags: Sequence[str], scheme: Scheme = "BIO", *, strict: bool = False) -> list[Entity]:
    """The entities that a tag sequence spells, in order, as (first word, word after the last, type).

    `strict` refuses a B of IOB1 that touches no entity of its type.

    Raises:
        BadRecord: a tag is unknown or illegal where it stands.
    """
    if scheme == "BIOES":
        return _entities_with_ends(tags)
    entities: list[Entity] = []
    start, kind = 0, ""
    for i, tag in enumerate(tags):
        prefix, new = _parts(tag)
        if prefix not in "OBI":
            raise BadRecord(f"tag {tag!r} is not in {scheme}")
        goes_on = prefix == "I" and new == kind
        # BIO: I only goes on. IOB1: I may begin, and B has a reason only after its own type.
        illegal = prefix == "I" and not goes_on if scheme == "BIO" else strict and prefix == "B" and new != kind
        if illegal:
            raise BadRecord(f"tag {tag!r} after {tags[i - 1] if i else 'the start'!r} is illegal in {scheme}")
        if goes_on:
            continue
        if kind:
            entities.append((start, i, kind))
        start, kind = i, new
    if kind:
        entities.append((start, len(tags), kind))
    return entities


def _entities_with_ends(tags: Sequence[str]) -> list[Entity]:
    """Entities of a BIOES, BILOU or BMES sequence."""
    entities: list[Entity] = []
    start, kind = 0, ""
    for i, tag in enumerate(tags):
        prefix, new = _parts(tag)
        prefix = _AS_BIOES.get(prefix, prefix)
        inside = prefix in "IE"
        if inside != bool(kind) or (inside and new != kind):
            raise BadRecord(f"tag {tag!r} after {tags[i - 1] if i else 'the start'!r} is illegal in BIOES")
        if prefix in "BS":
            start, kind = i, new
        if prefix in "ES":
            entities.append((start, i + 1, kind))
            kind = ""
    if kind:
        raise BadRecord(f"the entity that ends with tag {tags[-1]!r} is not closed as BIOES asks")
    return entities


def _parts(tag: str) -> tuple[str, str]:
    """("O", "") or (prefix, type)."""
    if tag == "O":
        return "O", ""
    match = _PREFIXED.fullmatch(tag)
    if match is None:
        raise BadRecord(f"tag {tag!r} is neither O nor PREFIX-TYPE")
    return match[1], match[2]


def tags_of(
    entities: Iterable[Entity], length: int, scheme: Literal["BIO", "IOB1", "BIOES"] = "BIO"
) -> tuple[str, ...]:
    """The tag sequence of `length` words that spells these entities; they must not overlap."""
    tags = ["O"] * length
    for start, stop, kind in sorted(entities):
        touches = start > 0 and tags[start - 1][2:] == kind
        first = "B" if scheme != "IOB1" or touches else "I"
        tags[start:stop] = [f"{first}-{kind}", *[f"I-{kind}"] * (stop - start - 1)]
        if scheme == "BIOES":
            tags[stop - 1] = f"E-{kind}" if stop - start > 1 else f"S-{kind}"
    return tuple(tags)


def to_bio(tags: tuple[str, ...], scheme: Scheme) -> tuple[str, ...]:
    """The same entities in BIO; plain tags stay as they are.

    Raises:
        BadRecord: the sequence is illegal in its scheme.
    """
    if scheme == "plain":
        return tags
    entities = entities_of(tags, scheme)
    return tags if scheme == "BIO" else tags_of(entities, len(tags))
