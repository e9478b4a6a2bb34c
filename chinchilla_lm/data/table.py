"""Tables with a header (CSV, TSV, whatever the name says), and the `text@label` lines of the Financial PhraseBank."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path

from chinchilla_lm.data.decode import read_string
from chinchilla_lm.data.records import BadRecord, Labelled, Reading, Skipped, Task
from chinchilla_lm.data.rows import Columns, Located, read_rows
from chinchilla_lm.errors import InputError

SUFFIXES = (".csv", ".tsv", ".tab")
_DELIMITERS = ("\t", ",", ";", "|")  # where two give as many columns, the earlier: it is the rarer inside text


def read_table(path: Path, task: Task, columns: Columns | None = None) -> Reading:
    """The records of a table whose first line names the columns; the delimiter is the one that parts it most.

    Raises:
        InputError: the file is missing, empty or not a table, or a column is missing or not clear.
    """
    text, notes = read_string(path)
    delimiter = _delimiter(text.lstrip().split("\n", 1)[0])
    lines = _parse(text, delimiter, path)
    if delimiter == "\t":
        # GLUE's tab files quote nothing: there a text that begins with a quotation mark would swallow the next lines.
        bare = _parse(text, delimiter, path, csv.QUOTE_NONE)
        if _fitting(bare) > _fitting(lines):
            lines = bare
            notes.append(f"{path.name}: quotation marks are taken as text")
    header = [name.strip() for name in lines[0][1]]
    if len(set(header)) < len(header) or len(lines) < 2:
        raise InputError(f"{path} has the header {header}; a table needs distinct column names and rows below them")
    reading = read_rows(_rows(header, lines[1:], path.name), task, columns or Columns(), path.name)
    reading.notes[:0] = notes
    return reading


def _delimiter(header: str) -> str:
    return max(_DELIMITERS, key=header.count) if any(d in header for d in _DELIMITERS) else ","


def _parse(text: str, delimiter: str, path: Path, quoting: int = csv.QUOTE_MINIMAL) -> list[tuple[int, list[str]]]:
    """(last line, fields) of every row that is not blank."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, quoting=quoting)  # type: ignore[arg-type]
    try:
        return [(reader.line_num, fields) for fields in reader if fields]
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num}: {error}; pass a delimited table with a header") from error


def _fitting(lines: list[tuple[int, list[str]]]) -> int:
    """How many lines have as many fields as the first."""
    return sum(len(fields) == len(lines[0][1]) for _, fields in lines)


def _rows(header: list[str], lines: list[tuple[int, list[str]]], name: str) -> Iterator[Located]:
    for line, fields in lines:
        where = f"{name}:{line}"
        if len(fields) == len(header):
            yield where, dict(zip(header, fields, strict=True))
        else:
            yield where, BadRecord(f"{len(fields)} fields where the header has {len(header)}")


def read_at_lines(path: Path) -> Reading:
    """`text@label` lines as Labelled records; the last @ of a line separates.

    Raises:
        InputError: the file is missing or empty.
    """
    text, notes = read_string(path)
    reading = Reading(path.name, notes=notes)
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path.name}:{number}"
        sentence, _, label = (part.strip() for part in line.rpartition("@"))
        if sentence and label and " " not in label:
            reading.records.append(Labelled(where, where, None, sentence, None, label))
        else:
            reading.skipped.append(Skipped(where, f"{line.strip()[:40]!r} is not text@label"))
    return reading
