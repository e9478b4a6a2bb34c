"""Which column of a CoNLL file has the words and which the tags.

The word is usually first and the tag last, but not always:

    GermEval 2014        1    Schartau  B-PER  O            number, word, outer and inner tag
    Universal NER        1    Angela    B-PER  -     anna   …, annotator
    CoNLL-U              1-2  zum       _      …            ten columns; ranges of words, and words that are not there
    OntoNotes            nw/x 0   0     In     …            document, part, number, word
    WikiANN              en:Angela      B-PER               the language before each word

A wrong guess trains on numbers without a word of warning, so what is not plain is refused, with what to pass.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from chinchilla_lm.data.records import Unlabelled
from chinchilla_lm.errors import InputError

Rows = list[list[str]]

TAG = re.compile(r"O|[BIESLUM]-.+")
CONLL_U = ("id", "form", "lemma", "upos", "xpos", "feats", "head", "deprel", "deps", "misc")
# A first line of such names only is a header.
_WORD_NAMES = ("word", "words", "token", "tokens", "form", "text")
_TAG_NAMES = ("tag", "tags", "label", "labels", "ner", "ner_tag", "ner_tags", "entity", "iob", "bio")
_OTHER_NAMES = (*CONLL_U, "pos", "pos_tag", "chunk", "chunk_tag", "index", "sentence", "sentence_id", "idx")
_NUMBER = re.compile(r"\d+(?:[-.]\d+)?")
_LANGUAGE = re.compile(r"[a-z]{2,3}(?:-[a-z]+)*:(.+)", re.DOTALL)
_EMPTY = {"_", "-", "", "?"}
# Of a column of chunks, which stands before the entities in CoNLL-2003 (Tjong Kim Sang & Buchholz 2000).
_CHUNKS = {"NP", "VP", "PP", "ADVP", "ADJP", "SBAR", "PRT", "CONJP", "INTJ", "LST", "UCP"}
_NEARLY_ALL = 0.99  # of a column's values; a file may have a few damaged lines
_SHOWN = 3  # values of a column that a message names


@dataclass(frozen=True, slots=True)
class Choice:
    """Columns from 0; `numbered`: the column that counts the words of a sentence, if there is one; `languages`: whether
    one stands before each word."""

    word: int
    tag: int
    numbered: int | None
    languages: bool
    notes: list[str]


def header_of(row: Sequence[str]) -> list[str] | None:
    """The names in lower case where a row is a header, else None."""
    names = [value.lower().replace(" ", "_") for value in row]
    known = all(name in (*_WORD_NAMES, *_TAG_NAMES, *_OTHER_NAMES) for name in names)
    has_both = any(n in _WORD_NAMES for n in names) and any(n in (*_TAG_NAMES, *_OTHER_NAMES) for n in names)
    return names if len(names) > 1 and known and has_both and len(set(names)) == len(names) else None


def choose(
    blocks: Sequence[Rows], width: int, names: Sequence[str] | None, word: str | None, tag: str | None, where: str
) -> Choice:
    """The columns of words and tags: those that the caller names by number (from 1) or name, else what is plain.

    Args:
        blocks: sentences, every row with `width` columns.
        names: the columns' names, where the file says them.

    Raises:
        Unlabelled: there is one column, or nothing in the column of tags.
        InputError: it is not clear which column is which, or a named one is not there.
    """
    sample = blocks[:2000]
    if width == 10 and names is None and _is_numbered(sample, 0):
        names = CONLL_U
    if width < 2:
        raise Unlabelled(f"{where} has 1 column; a word and a tag a line are needed, parted by blanks or a tab")
    asked_word, asked_tag = (_named(value, width, names, where) for value in (word, tag))
    numbered = next((column for column in range(min(width, 4)) if _is_numbered(sample, column)), None)
    if numbered is not None:
        sample = [[row for row in rows if row[numbered].isdecimal()] for rows in sample]
    found_tag = asked_tag if asked_tag is not None else _find_tag(sample, width, names, numbered, where)
    found_word = asked_word
    if found_word is None:
        found_word = _find_word(sample, width, names, found_tag, where)
    if found_word == found_tag:
        raise InputError(f"{where}: column {found_word + 1} cannot be both word and tag; {_remedy(sample, width)}")
    languages = _has_languages(sample, found_word)
    usual = (found_word, found_tag) == (0, width - 1)
    notes = [] if usual else [f"{where}: words are from column {found_word + 1} of {width}, tags from {found_tag + 1}"]
    if languages:
        notes.append(f"{where}: the language before every word, as in {sample[0][0][found_word]!r}, is left out")
    return Choice(found_word, found_tag, numbered, languages, notes)


def _named(asked: str | None, width: int, names: Sequence[str] | None, where: str) -> int | None:
    """The column that the caller means."""
    if asked is None:
        return None
    if names is not None and asked.strip().lower() in names:
        return list(names).index(asked.strip().lower())
    if asked.strip().isdecimal() and 1 <= int(asked) <= width:
        return int(asked) - 1
    have = f"has the columns {', '.join(names)}" if names is not None else "names no columns"
    raise InputError(f"{where} {have}; give the number of one, from 1 to {width}, not {asked!r}")


def _find_tag(sample: Sequence[Rows], width: int, names: Sequence[str] | None, numbered: int | None, where: str) -> int:
    if names is not None:
        fits = [i for i, name in enumerate(names) if name in _TAG_NAMES]
        if len(fits) == 1:
            return fits[0]
    tagged = [column for column in range(width) if _is_tags(sample, column)]
    types = {column: {v[2:] for v in _values(sample, column) if v != "O"} for column in tagged}
    last = width - 1
    entities = [column for column in tagged if not types[column] or not types[column] <= _CHUNKS]
    tagged = entities or tagged
    # Two columns of the same types are outer and inner names, or right ones and a program's; so are, mostly, any two
    # columns of tags where words are numbered.
    if last in tagged and not any(numbered is not None or types[c] & types[last] for c in tagged if c != last):
        return last
    if len(tagged) == 1 and not any(TAG.fullmatch(value) for value in _values(sample, last)):
        return tagged[0]
    if last not in tagged and len(tagged) == 1:
        tagged.append(last)
    if tagged:
        several = " and ".join(str(column + 1) for column in tagged)
        raise InputError(f"{where}: columns {several} could each be the tags; {_remedy(sample, width, names)}")
    values = set(_values(sample, last))
    if values <= _EMPTY and width == 2:
        raise Unlabelled(f"{where} has no tags: column 2 holds nothing but {min(values)!r}")
    if numbered is not None or values <= _EMPTY:
        raise InputError(f"{where}: no column is plainly the tags; {_remedy(sample, width, names)}")
    return last


def _find_word(sample: Sequence[Rows], width: int, names: Sequence[str] | None, tag: int, where: str) -> int:
    if names is not None:
        fits = [i for i, name in enumerate(names) if name in _WORD_NAMES]
        if len(fits) == 1:
            return fits[0]
    for column in range(width):
        if column != tag and not _is_numbered(sample, column) and not _is_constant(sample, column):
            return column
    raise InputError(f"{where}: no column is plainly the words; {_remedy(sample, width, names)}")


def _remedy(sample: Sequence[Rows], width: int, names: Sequence[str] | None = None) -> str:
    """What to pass, with what each column holds."""
    shown = []
    for column in range(width):
        values = list(dict.fromkeys(_values(sample[:50], column)))
        values = sorted(values, key=lambda value: value in (*_EMPTY, "O"))[:_SHOWN]
        name = f" {names[column]}" if names is not None else ""
        shown.append(f"{column + 1}{name} ({' '.join(value[:20] for value in values)})")
    return f"pass --text-column and --label-column with two of {', '.join(shown)}"


def _values(sample: Sequence[Rows], column: int) -> Iterator[str]:
    return (row[column] for rows in sample for row in rows)


def _is_tags(sample: Sequence[Rows], column: int) -> bool:
    """Whether a column has tags with prefixes, or nothing but O."""
    total = fits = 0
    for value in _values(sample, column):
        total += 1
        fits += TAG.fullmatch(value) is not None
    return fits >= _NEARLY_ALL * total > 0


def _is_numbered(sample: Sequence[Rows], column: int) -> bool:
    """Whether a column counts the words of each sentence from 0 or 1, or all lines, or the sentences.

    Ranges and words that are not there (1-2, 1.1) are passed over.
    """
    counts: list[list[int]] = []
    odd = 0
    for rows in sample:
        values = [row[column] for row in rows]
        if all(_NUMBER.fullmatch(value) for value in values):
            counts.append([int(value) for value in values if value.isdecimal()])
        else:
            odd += 1
    counts = [numbers for numbers in counts if numbers]
    whole = [number for numbers in counts for number in numbers]
    if odd > (1 - _NEARLY_ALL) * len(sample) or len(whole) < 2:
        return False
    within = sum(n == list(range(n[0], n[0] + len(n))) and n[0] in (0, 1) for n in counts)
    in_file = whole == list(range(whole[0], whole[0] + len(whole)))
    of_sentence = len(whole) > len(counts) == len({n[0] for n in counts}) and all(len(set(n)) == 1 for n in counts)
    return within >= _NEARLY_ALL * len(counts) or in_file or of_sentence


def _is_constant(sample: Sequence[Rows], column: int) -> bool:
    """Whether a column has one value throughout each sentence, as names of documents do."""
    longer = [rows for rows in sample if len(rows) > 2]
    return len(longer) > 2 and all(len({row[column] for row in rows}) == 1 for rows in longer)


def without_language(word: str) -> str:
    """The word less the `en:` before it, if there is one."""
    match = _LANGUAGE.fullmatch(word)
    return match[1] if match else word


def _has_languages(sample: Sequence[Rows], column: int) -> bool:
    """Whether a language stands before every word."""
    words = list(_values(sample, column))
    return len(words) > 2 and all(_LANGUAGE.fullmatch(word) for word in words)
