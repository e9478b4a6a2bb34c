"""Tables with a header (CSV, TSV, whatever the name says), and the `text@label` lines of the Financial PhraseBank."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from chinchilla_lm.data.decode import read_string
from chinchilla_lm.data.delimited import Record, parse
from chinchilla_lm.data.records import BadRecord, Labelled, Reading, Skipped, Task
from chinchilla_lm.data.rows import USUAL, Columns, Located, read_rows
from chinchilla_lm.errors import InputError

SUFFIXES = (".csv", ".tsv", ".tab")


def read_table(path: Path, task: Task, columns: Columns | None = None, encoding: str | None = None) -> Reading:
    """The records of a table whose first line names the columns; the delimiter is the one that parts it most.

    A column without a name is called `Unnamed: 0` by its place, and a name's second column `name.1`, as pandas does.

    Raises:
        InputError: the file is missing, empty or not a table, or a column is missing or not clear.
    """
    text, notes = read_string(path, encoding)
    table = parse(text, path.name)
    if not table.records:
        raise InputError(f"{path} has the header {table.header} and nothing below it; a table needs a header and rows")
    header, renamed = _names(table.header)
    records = [record for record in table.records if len(header) == 1 or record.fields != table.header]
    if again := len(table.records) - len(records):
        renamed.append(f"{again} rows repeat the header and are left out, as where tables are joined")
    reading = read_rows(_rows(header, records, path.name), task, columns or Columns(), path.name)
    reading.notes[:0] = notes + table.notes + [f"{path.name}: {note}" for note in renamed]
    return reading


def is_table_as_txt(path: Path, encoding: str | None = None) -> bool:
    """Whether a .txt file begins with names in tabs, a usual one among them: Excel's "Unicode Text" ends so."""
    text, _ = read_string(path, encoding)
    first = next((line for line in text.split("\n") if line.strip()), "")
    names = [name.strip('\ufeff" ').lower() for name in first.split("\t")]
    return len(names) > 1 and not {*USUAL["text"], *USUAL["label"]}.isdisjoint(names)


def _names(header: Sequence[str]) -> tuple[list[str], list[str]]:
    """Distinct names for the columns, and notes on those that share one."""
    given = [" ".join(name.strip("\ufeff").split()) for name in header]
    names: list[str] = []
    for place, name in enumerate(given):
        wanted = name or f"Unnamed: {place}"
        number = 0
        while wanted in names or (number and wanted in given):
            number += 1
            wanted = f"{name}.{number}"
        names.append(wanted)
    twice = [name for name, count in Counter(filter(None, given)).items() if count > 1]
    return names, [f"several columns are named {name!r}; the second is {name}.1" for name in twice]


def _rows(header: list[str], records: Sequence[Record], name: str) -> Iterator[Located]:
    for record in records:
        where = f"{name}:{record.last}"
        if record.fields is None:
            yield where, BadRecord(f"a quotation mark in line {record.first} opens a field that nothing closes")
        elif len(record.fields) == len(header):
            yield where, dict(zip(header, record.fields, strict=True))
        else:
            yield where, BadRecord(f"{len(record.fields)} fields where the header has {len(header)}")


def read_at_lines(path: Path, encoding: str | None = None) -> Reading:
    """`text@label` lines as Labelled records; the last @ of a line separates.

    Raises:
        InputError: the file is missing or empty.
    """
    text, notes = read_string(path, encoding)
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
