"""CoNLL files: a word a line in columns, a blank line between sentences; the columns are found in `columns`.

`-DOCSTART-` lines, `# newdoc` and `#begin document` separate documents. Tags are detected over the whole file (see
`tags`) and become BIO.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from chinchilla_lm.data.columns import TAG, Choice, choose, header_of, without_language
from chinchilla_lm.data.decode import read_string
from chinchilla_lm.data.records import BadRecord, Reading, Skipped, Tagged
from chinchilla_lm.data.tags import detect_scheme, to_bio

_DOCUMENT_START = "-DOCSTART-"
_DOCUMENT_COMMENT = re.compile(r"#\s*(?:newdoc\b|begin document\b)")
_NAMES = re.compile(r"#\s*global\.columns\s*=\s*(.+)")
_COMMENT = re.compile(r"#(?:\s|end document\b|begin document\b)")
_GAP = re.compile(r"[ \t]+")  # not every white space: a word may hold a no-break space
_WHOLE_WORD = re.compile(r"\d+")


@dataclass(frozen=True, slots=True)
class _Block:
    """Lines of one sentence: number of each (from 1), number of its document, columns line by line."""

    document: int
    lines: list[int]
    rows: list[list[str]]


@dataclass(frozen=True, slots=True)
class _Parted:
    """A file in sentences; the number of document separators; the names of the columns, where the file says them."""

    blocks: list[_Block]
    documents: int
    names: list[str] | None


def read_conll(
    path: Path, word_column: str | None = None, tag_column: str | None = None, encoding: str | None = None
) -> Reading:
    """The sentences of a CoNLL file as Tagged records.

    A sentence with a line of too few or too many columns, or with an illegal tag, is skipped whole and recorded.

    Args:
        word_column, tag_column: number (from 1) or name of a column; else found by what the columns hold.

    Raises:
        InputError: the file is missing or empty, or it is not clear which columns have the words and the tags.
    """
    text, notes = read_string(path, encoding)
    parted = _parted(text)
    width = _usual_width(parted.blocks)
    reading = Reading(path.name, notes=notes, has_documents=parted.documents > 0)
    usable: list[_Block] = []
    for block in parted.blocks:
        block = _without_comments(block, width)
        wrong = next((i for i, row in enumerate(block.rows) if len(row) != width), None)
        if wrong is not None:
            why = f"line {block.lines[wrong]} has {len(block.rows[wrong])} columns where the file has {width}"
            reading.skipped.append(Skipped(f"{path.name}:{block.lines[0]}", why))
        elif block.rows:
            usable.append(block)
    if usable:
        names = parted.names if parted.names is not None and len(parted.names) == width else None
        choice = choose([block.rows for block in usable], width, names, word_column, tag_column, path.name)
        notes.extend(choice.notes)
        _read_sentences(usable, choice, reading)
    return reading


def _read_sentences(blocks: list[_Block], choice: Choice, reading: Reading) -> None:
    """Adds the records of sound blocks to the reading."""
    found: list[tuple[_Block, tuple[str, ...], tuple[str, ...]]] = []
    left_out = 0
    for block in blocks:
        rows = [row for row in block.rows if _is_word(row, choice.numbered)]
        left_out += len(block.rows) - len(rows)
        words = tuple(without_language(row[choice.word]) if choice.languages else row[choice.word] for row in rows)
        if rows and all(words):
            found.append((block, words, tuple(row[choice.tag] for row in rows)))
        else:
            reading.skipped.append(Skipped(f"{reading.source}:{block.lines[0]}", "a line has no word"))
    if left_out:
        reading.notes.append(f"{reading.source}: {left_out} lines of ranges and empty nodes, as 1-2 and 1.1, left out")
    scheme = detect_scheme([tags for *_, tags in found])
    if scheme == "plain" and found:
        reading.notes.append(f"{reading.source}: tags have no B- or I- prefix and are kept as they are")
    for block, words, tags in found:
        where = f"{reading.source}:{block.lines[0]}"
        document = f"{reading.source}#{block.document}" if reading.has_documents else where
        try:
            reading.records.append(Tagged(where, document, words, to_bio(tags, scheme)))
        except BadRecord as error:
            reading.skipped.append(Skipped(where, str(error)))


def _is_word(row: list[str], numbered: int | None) -> bool:
    """Not so the lines of CoNLL-U for what is written as one (1-2) or not written at all (1.1)."""
    return numbered is None or _WHOLE_WORD.fullmatch(row[numbered]) is not None


def _parted(text: str) -> _Parted:
    """Sentences. Columns are parted at tabs where every line has one, so that words may hold spaces; else at blanks."""
    lines = text.split("\n")
    data = [line for line in lines if line.strip() and not line.startswith(("#", _DOCUMENT_START))]
    tabbed = bool(data) and all("\t" in line.strip(" ") for line in data)
    blocks: list[_Block] = []
    names: list[str] | None = None
    documents = 0
    open_block: _Block | None = None
    for number, line in enumerate(lines, start=1):
        columns = [c.strip(" ") for c in line.rstrip("\t ").split("\t")] if tabbed else _GAP.split(line.strip(" \t"))
        if match := _NAMES.match(line):
            names = match[1].lower().split()
        if not line.strip():
            open_block = None
        elif columns[0] == _DOCUMENT_START:
            documents += 1
            open_block = None
        elif not blocks and names is None and (found := header_of(columns)):
            names = found
        else:
            documents += _DOCUMENT_COMMENT.match(line) is not None
            if open_block is None:
                open_block = _Block(documents, [], [])
                blocks.append(open_block)
            open_block.lines.append(number)
            open_block.rows.append(columns)
    return _Parted(blocks, documents, names)


def _usual_width(blocks: list[_Block]) -> int:
    """The most common number of columns; the larger where two tie."""
    rows = [row for block in blocks for row in block.rows]
    words = [row for row in rows if not row[0].startswith("#")] or rows
    counts = Counter(len(row) for row in words)
    return max(counts, key=lambda width: (counts[width], width), default=2)


def _without_comments(block: _Block, width: int) -> _Block:
    """A block less the leading `# id …` lines; a word "#" or "#fun" in the usual columns with a tag is a word."""
    others = [row for row in block.rows if not row[0].startswith("#") and len(row) == width]
    tagged = [column for column in range(width) if others and all(TAG.fullmatch(row[column]) for row in others)]
    start = 0
    while start < len(block.rows) and block.rows[start][0].startswith("#"):
        row = block.rows[start]
        if len(row) == width and all(TAG.fullmatch(row[column]) for column in tagged):
            break
        if len(row) != width and not _COMMENT.match(" ".join(row) + " ") and others:
            break
        start += 1
    return _Block(block.document, block.lines[start:], block.rows[start:])
