"""One call from a folder, a file or a hub name to a Dataset with its splits.

Official splits are taken as they are, duplicates and all (their number is noted). What is missing of dev and test is
made out of train, so that no document and no text stands on two sides.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import combinations
from pathlib import Path
from typing import Any

from chinchilla_lm.data.decode import require_encoding
from chinchilla_lm.data.hub import read_hub
from chinchilla_lm.data.labels import label_notes, unify, why_hidden
from chinchilla_lm.data.layouts import (
    WHOLE,
    find_files,
    looks_like_path,
    read_file,
    read_files,
    require_usable,
    resolve,
    split_of,
    total_skipped,
)
from chinchilla_lm.data.records import SPLITS, TASKS, Dataset, Reading, Skipped, Tagged, Task, Unlabelled, sorted_labels
from chinchilla_lm.data.rows import Columns
from chinchilla_lm.data.splits import SplitBy, TooFewDocuments, is_running, make_splits, shared_texts
from chinchilla_lm.errors import InputError
from chinchilla_lm.files import user_path

_UNUSED: dict[Task, tuple[str, ...]] = {
    "language-modeling": ("label_column", "time_column"),
    "token-classification": ("time_column",),
}


def load_dataset(
    source: str | Path,
    task: str,
    *,
    splits: Mapping[str, str] | None = None,
    text_column: str | None = None,
    label_column: str | None = None,
    group_column: str | None = None,
    time_column: str | None = None,
    split_by: SplitBy | None = None,
    encoding: str | None = None,
) -> Dataset:
    """The records of a data set, by split.

    Args:
        source: a folder in a known layout, one file, or a hub data set (NAME, OWNER/NAME, with :CONFIG where needed).
        task: "language-modeling", "token-classification", "text-classification" or "ranking".
        splits: "train", "dev", "test" -> file in the folder (or hub split); only these are read then.
        text_column, label_column, group_column, time_column: fields of a table or of JSON objects; else usual names.
        split_by: how the missing splits are made; without it, by time where time_column is given, else by group where
            group_column is, else by hash of the document.
        encoding: how the files are encoded, as Python names it; without it, see `decode`.

    A file whose name says test or dev becomes that split alone. Every other single file is train, and is split
    80/10/10. A dev or test split whose labels are kept secret is left aside, with a note, unless `splits` names it.

    Raises:
        InputError: nothing there, an empty file, more than 1 % of a file unusable, columns or files that are not clear,
            or too little to make the missing splits of.
    """
    kind = _task(task)
    for option, name in (("label_column", label_column), ("time_column", time_column)):
        if name is not None and option in _UNUSED.get(kind, ()):
            raise InputError(f"{option} {name!r} has no use in {task}; leave it out")
    if encoding is not None:
        require_encoding(encoding)
    columns = Columns(text_column, label_column, group_column, time_column, by_time=split_by == "time")
    path = user_path(source)
    if path.exists():
        name = path.name if path.is_dir() else path.name.split(".")[0]
        readings, notes = _read_path(path, kind, splits, columns, encoding)
    elif looks_like_path(str(source)):
        raise InputError(f"{source} is not there; pass a folder or file that exists, or the name of a hub data set")
    else:
        name = str(source)
        if encoding is not None:
            raise InputError(f"encoding {encoding!r} has no use for the hub data set {name!r}; leave it out")
        readings, notes = _read_name(name, kind, splits, columns)
    by = split_by or ("time" if time_column else "group" if group_column else "hash")
    return _assemble(name, kind, readings, notes, by, split_by is not None)


def _task(name: str) -> Task:
    for task in TASKS:
        if task == name:
            return task
    raise InputError(f"task {name!r} is not one of {', '.join(TASKS)}; pass one of these")


def _read_path(
    path: Path, task: Task, splits: Mapping[str, str] | None, columns: Columns, encoding: str | None
) -> tuple[dict[str, Reading], list[str]]:
    """Readings by split (or under WHOLE) of a folder or file."""
    if splits:
        chosen = resolve(path if path.is_dir() else path.parent, splits)
        if path.is_file() and path.resolve() not in {file.resolve() for file in chosen.values()}:
            raise InputError(f"{path} is none of the files that are named; name it too, as in --train {path.name}")
        files = {split: read_file(chosen[split], task, columns, encoding) for split in SPLITS if split in chosen}
        return _with_labels(files, task, named=True)
    if not path.is_dir():
        return {split_of(path.name) or WHOLE: read_file(path, task, columns, encoding)}, []
    parts, notes = find_files(path, task)
    outcomes: dict[str, Reading | InputError] = {}
    for split, paths in parts.items():
        try:
            outcomes[split] = read_files(paths, task, columns, encoding)
        except Unlabelled as error:
            outcomes[split] = error
    readings, aside = _with_labels(outcomes, task)
    return readings, notes + aside


def _with_labels(
    outcomes: Mapping[str, Reading | InputError], task: Task, *, named: bool = False
) -> tuple[dict[str, Reading], list[str]]:
    """The splits less dev and test where their labels are kept secret, and notes on these.

    Raises:
        InputError: what stands in the place of a split that cannot be done without, or that the caller `named`.
    """
    readings: dict[str, Reading] = {}
    notes = []
    train = outcomes.get("train")
    for split, reading in outcomes.items():
        if isinstance(reading, Unlabelled) and split != "train" and isinstance(train, Reading) and not named:
            why = str(reading)
        elif isinstance(reading, InputError):
            raise reading
        else:
            why = why_hidden(task, reading, train) if split != "train" and isinstance(train, Reading) else ""
            readings[split] = reading
        if why and named:
            raise InputError(f"{why}; where labels are kept secret nothing can be measured: leave out --{split}")
        if why:
            readings.pop(split, None)
            notes.append(f"{split} is left aside, since it has no labels: {why}")
    return readings, notes


def _read_name(
    name: str, task: Task, splits: Mapping[str, str] | None, columns: Columns
) -> tuple[dict[str, Reading], list[str]]:
    """Readings by split of a hub data set."""
    offered = read_hub(name, task, columns)
    theirs = dict(splits) if splits else {}
    if not splits:
        for split in offered:
            theirs.setdefault(split_of(split) or split, split)
    unknown = [split for split in theirs.values() if split not in offered]
    if unknown:
        have = ", ".join(offered)
        raise InputError(f"split {unknown[0]!r} is not in {name!r}, which has {have}; mend --train, --dev or --test")
    wanted = {split: offered[theirs[split]] for split in SPLITS if split in theirs}
    if not wanted:
        have = ", ".join(offered)
        raise InputError(f"{name!r} has the splits {have}; say which is which by --train, --dev and --test")
    aside = [split for split in offered if split not in {theirs[ours] for ours in wanted}]
    notes = [f"left aside in {name}: {', '.join(aside)}"] if aside else []
    readings, hidden = _with_labels(wanted, task, named=bool(splits))
    return {split: require_usable(reading) for split, reading in readings.items()}, notes + hidden


def _assemble(
    name: str, task: Task, readings: dict[str, Reading], notes: list[str], by: SplitBy, asked: bool
) -> Dataset:
    """The Dataset: missing splits made, labels gathered, shared texts counted."""
    skipped = total_skipped(readings)
    has_documents = all(reading.has_documents for reading in readings.values())
    notes = [*notes, *(note for reading in readings.values() for note in reading.notes)]
    records, spelt = unify(task, {split: reading.records for split, reading in readings.items()})
    notes += spelt
    if WHOLE in records:
        records["train"] = records.pop(WHOLE)
    missing = [split for split in ("dev", "test") if split not in records]
    split_made: list[str] = []
    not_made = ""
    if "train" not in records or not missing:
        if asked:
            notes.append(
                f"split by {by} was asked for, but nothing is left to split: {', '.join(records)} came as files"
            )
    else:
        if by == "group" and not has_documents:
            raise InputError(f"{name!r} names no groups; pass --group-column, or split by hash")
        made, without_place, missing, not_made = _made(records["train"], missing, by)
        how = by if by != "hash" or not is_running(records["train"], len(missing)) else "contiguous stretches of text"
        if not_made:
            notes += [not_made, f"made from train: {missing[0] if missing else 'no other split'}"]
        skipped += without_place
        records.update(made)
        split_made = missing
        sizes = ", ".join(f"{split} {len(made[split])}" for split in made)
        if missing:
            notes.append(f"{' and '.join(missing)} made from train by {how}: {sizes} records")
    records = {split: records[split] for split in SPLITS if split in records}
    notes += _shared(records) + label_notes(task, records)
    labels = sorted_labels(task, _seen(records.values()))
    return Dataset(name, task, records, labels, skipped, has_documents, notes, tuple(split_made), not_made)


def _made(
    records: list[Any], missing: list[str], by: SplitBy
) -> tuple[dict[str, list[Any]], list[Skipped], list[str], str]:
    """`make_splits`; which splits were made, less than `missing` where one text must not be on two sides; why then."""
    too_few = ""
    while True:
        try:
            made, without_place = make_splits(records, missing, by)
            return made, without_place, missing, too_few
        except TooFewDocuments as error:
            missing = missing[:-1]
            too_few = too_few or str(error)


def _shared(records: Mapping[str, list[Any]]) -> list[str]:
    notes = []
    for first, second in combinations(records, 2):
        if count := shared_texts(records[first], records[second]):
            notes.append(f"{count} texts stand in both {first} and {second}")
    return notes


def _seen(splits: Iterable[list[Any]]) -> set[str]:
    """Every label or tag that occurs."""
    seen: set[str] = set()
    for records in splits:
        for record in records:
            seen.update(record.tags if isinstance(record, Tagged) else (getattr(record, "label", ""),))
    return seen - {""}
