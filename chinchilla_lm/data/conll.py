"""CoNLL files: a word a line in columns, its tag in the last, a blank line between sentences.

`-DOCSTART-` lines separate documents. Tags are detected over the whole file (see `tags`) and become BIO.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from chinchilla_lm.data.decode import read_string
from chinchilla_lm.data.records import BadRecord, Reading, Skipped, Tagged
from chinchilla_lm.data.tags import detect_scheme, to_bio

_DOCUMENT_START = "-DOCSTART-"
_TAG = re.compile(r"O|[BIESLUM]-.+")
_GAP = re.compile(r"[ \t]+")  # not every white space: a word may hold a no-break space


@dataclass(frozen=True, slots=True)
class _Block:
    """Lines of one sentence: number of the first (from 1), number of its document, columns line by line."""

    line: int
    document: int
    rows: list[list[str]]


def read_conll(path: Path) -> Reading:
    """The sentences of a CoNLL file as Tagged records.

    A sentence with a line of too few or too many columns, or with an illegal tag, is skipped whole and recorded.

    Raises:
        InputError: the file is missing or empty.
    """
    text, notes = read_string(path)
    blocks, documents = _blocks(text)
    width = _usual_width(blocks)
    reading = Reading(path.name, notes=notes, has_documents=documents > 0)
    usable: list[tuple[str, _Block]] = []
    for block in blocks:
        where = f"{path.name}:{block.line}"
        rows = _without_comments(block.rows, width)
        why = _wrong_columns(rows, block, width)
        if why:
            reading.skipped.append(Skipped(where, why))
        elif rows:
            usable.append((where, _Block(block.line, block.document, rows)))
    scheme = detect_scheme([_tags(block) for _, block in usable])
    if scheme == "plain" and usable:
        notes.append(f"{path.name}: tags have no B- or I- prefix and are kept as they are")
    for where, block in usable:
        document = f"{path.name}#{block.document}" if documents else where
        try:
            tags = to_bio(_tags(block), scheme)
        except BadRecord as error:
            reading.skipped.append(Skipped(where, str(error)))
            continue
        reading.records.append(Tagged(where, document, tuple(row[0] for row in block.rows), tags))
    return reading


def _blocks(text: str) -> tuple[list[_Block], int]:
    """Sentences, and the number of document separators."""
    blocks: list[_Block] = []
    documents = 0
    open_block: _Block | None = None
    for number, line in enumerate(text.split("\n"), start=1):
        columns = _GAP.split(line.strip(" \t"))
        if not line.strip():
            open_block = None
        elif columns[0] == _DOCUMENT_START:
            documents += 1
            open_block = None
        else:
            if open_block is None:
                open_block = _Block(number, documents, [])
                blocks.append(open_block)
            open_block.rows.append(columns)
    return blocks, documents


def _usual_width(blocks: list[_Block]) -> int:
    """The most common number of columns; the larger where two tie."""
    counts = Counter(len(row) for block in blocks for row in block.rows)
    return max(counts, key=lambda width: (counts[width], width), default=2)


def _without_comments(rows: list[list[str]], width: int) -> list[list[str]]:
    """Rows less the leading `# id …` lines of MultiCoNER; a word "#" in the usual columns with a tag is a word."""
    start = 0
    while start < len(rows) and rows[start][0] == "#":
        others = [row for row in rows if row[0] != "#"]
        has_tag = _TAG.fullmatch(rows[start][-1]) or not all(_TAG.fullmatch(row[-1]) for row in others)
        if len(rows[start]) == width and has_tag:
            break
        start += 1
    return rows[start:]


def _wrong_columns(rows: list[list[str]], block: _Block, width: int) -> str:
    """Why a sentence cannot be used, or ""."""
    if width < 2:
        return f"line {block.line} has 1 column; a word and a tag are needed"
    for row in rows:
        if len(row) != width:
            line = block.line + next(i for i, other in enumerate(block.rows) if other is row)
            return f"line {line} has {len(row)} columns where the file has {width}"
    return ""


def _tags(block: _Block) -> tuple[str, ...]:
    return tuple(row[-1] for row in block.rows)
