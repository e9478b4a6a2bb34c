"""JSON lines, or one JSON array of objects; .gz and .xz are unpacked."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from chinchilla_lm.data.decode import read_string
from chinchilla_lm.data.records import BadRecord, Reading, Task
from chinchilla_lm.data.rows import Columns, Located, read_rows
from chinchilla_lm.errors import InputError

SUFFIXES = (".jsonl", ".json", ".ndjson")


def read_jsonl(path: Path, task: Task, columns: Columns | None = None, encoding: str | None = None) -> Reading:
    """The records of a JSON file. For token-classification also character spans (see `spans`).

    Raises:
        InputError: the file is missing or empty, its one array cannot be parsed, or a field is missing throughout.
    """
    text, notes = read_string(path, encoding)
    rows = _array(text, path) if text.lstrip().startswith("[") else _lines(text, path.name)
    reading = read_rows(rows, task, columns or Columns(), path.name)
    reading.notes[:0] = notes
    return reading


def _lines(text: str, name: str) -> Iterator[Located]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{name}:{number}"
        try:
            yield where, _object(json.loads(line))
        except (json.JSONDecodeError, RecursionError, BadRecord) as error:
            yield where, BadRecord(f"not a JSON object ({error})")


def _array(text: str, path: Path) -> Iterator[Located]:
    try:
        items = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise InputError(f"{path} is not JSON ({error}); write one object a line, or one array of objects") from error
    for number, item in enumerate(items, start=1):
        try:
            yield f"{path.name}:{number}", _object(item)
        except BadRecord as error:
            yield f"{path.name}:{number}", error


def _object(item: object) -> dict[str, object]:
    if not isinstance(item, dict):
        raise BadRecord(f"{str(item)[:40]!r} is a {type(item).__name__}")
    return item
