"""A Hugging Face data set by name, through the `datasets` package, which is imported only here and only when asked for.

No code from the hub is run: data sets that are a loading script are refused by `datasets` itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from chinchilla_lm.data.records import Reading, Task
from chinchilla_lm.data.rows import Columns, Located, read_rows
from chinchilla_lm.errors import InputError


def read_hub(name: str, task: Task, columns: Columns | None = None) -> dict[str, Reading | InputError]:
    """Every split of a hub data set by the hub's own split names; `name` is NAME, OWNER/NAME, or either with :CONFIG.

    A split that cannot be read for the task is the error that says why: it may not be wanted.

    Raises:
        InputError: `datasets` is not installed, or the data set cannot be had.
    """
    try:
        import datasets
    except ImportError as error:
        raise InputError(
            f"{name!r} is no file here, and the hub needs datasets; pip install 'chinchilla-lm[hub]'"
        ) from error
    path, _, config = name.partition(":")
    try:
        found = datasets.load_dataset(path, config or None)
    except (OSError, ValueError, RuntimeError) as error:
        # No network, no such name, a config to choose, a script: `datasets` says which in its first line.
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(
            f"{name!r} is no file here, and the hub gives none ({reason}); pass a path, or NAME:CONFIG when online"
        ) from error
    readings: dict[str, Reading | InputError] = {}
    for split in found:
        try:
            readings[split] = read_split(found[split], f"{name}/{split}", task, columns)
        except InputError as error:
            readings[split] = error
    return readings


def read_split(split: Any, source: str, task: Task, columns: Columns | None = None) -> Reading:
    """The records of one `datasets.Dataset`; class numbers become class names."""
    return read_rows(_rows(split, source), task, columns or Columns(), source)


def _rows(split: Any, source: str) -> Iterator[Located]:
    names = {column: _class_names(feature) for column, feature in split.features.items()}
    for number, row in enumerate(split):
        yield f"{source}:{number}", {column: _named(value, names.get(column)) for column, value in row.items()}


def _class_names(feature: Any) -> list[str] | None:
    """The names of a ClassLabel feature, or of a list of them."""
    inner = getattr(feature, "feature", feature)
    names = getattr(inner, "names", None)
    return list(names) if names and not isinstance(inner, Mapping) else None


def _named(value: object, names: list[str] | None) -> object:
    """A class number as its name; -1, which the hub writes for a hidden label, as None."""
    if names is None:
        return value
    if isinstance(value, list):
        return [_named(item, names) for item in value]
    if isinstance(value, int):
        return names[value] if 0 <= value < len(names) else None
    return value
