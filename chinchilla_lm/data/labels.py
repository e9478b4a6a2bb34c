"""The labels of a data set as a whole: one spelling for one class, classes enough to learn, and labels that are hidden.

A file is read by itself; what its labels are worth shows only beside the other splits.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from chinchilla_lm.data.records import Dataset, Labelled, Reading, Tagged, Task
from chinchilla_lm.errors import InputError

# As a test set's only label: the class is kept secret. -1 is GLUE's, ? that of ARFF and of the UCI sets.
_HIDDEN = ("-1", "?", "unknown", "hidden", "none", "null", "nan", "n/a", "na")
# "007" is a code, and so may "1e3" be; whole numbers that a float holds, and powers of ten as C and NumPy print them.
_NUMBER = re.compile(r"[-+]?(?:0|[1-9]\d{0,14})(?:\.\d*)?(?:[eE][-+]\d\d)?")
_HIDDEN_NUMBERS = (-1, -100)  # and -1.0, as pandas writes it; -100 is what losses leave out
_PADDED = re.compile(r"0\d{1,14}")  # "01": a spreadsheet takes such zeros away, in one file and not in the other
_TRUTH = ("true", "false")
_SHOWN = 5  # labels that a message names


def labels_in(records: Iterable[Any]) -> Counter[str]:
    """How many records have each label, and how many words each tag."""
    counts: Counter[str] = Counter()
    for record in records:
        if isinstance(record, Tagged):
            counts.update(record.tags)
        elif isinstance(record, Labelled):
            counts[record.label] += 1
    return counts


def why_hidden(task: Task, reading: Reading, train: Reading) -> str:
    """Why the labels of a dev or test split are no labels, beside those of train; "" where they are."""
    if task not in ("text-classification", "ranking"):
        return ""
    known, seen = labels_in(train.records), labels_in(reading.records)
    values = {_value(label) for label in seen}
    if len(values) == 1 and _is_hidden(only := next(iter(seen))) and not values & {_value(label) for label in known}:
        return f"every label of {reading.source} is {only!r}, which {train.source} does not have"
    mine, theirs = reading.label_column, train.label_column
    if mine and theirs and mine != theirs and not known.keys() & seen.keys():
        return f"{reading.source} has no column {theirs!r}, where {train.source} has its labels"
    return ""


def unify(task: Task, splits: Mapping[str, Sequence[Any]]) -> tuple[dict[str, list[Any]], list[str]]:
    """The records with one spelling for each number and truth value among the labels; notes on what was spelt twice.

    pandas writes 0 and 1 as 0.0 and 1.0 where a cell was once empty; JSON has true where a table has True.

    Raises:
        InputError: truth values stand beside 0 or 1.
    """
    kept = {split: list(records) for split, records in splits.items()}
    if task != "text-classification":
        return kept, []
    each = [labels_in(records) for records in kept.values()]
    counts = sum(each, Counter[str]())
    codes = any(_holds_codes(labels) for labels in each)
    groups: dict[object, list[str]] = {}
    for label in counts:
        padded = _PADDED.fullmatch(label) is not None and not codes
        groups.setdefault(float(label) if padded else _value(label), []).append(label)
    if any(truth in groups for truth in _TRUTH) and (0.0 in groups or 1.0 in groups):
        names = ", ".join(sorted(counts)[:_SHOWN])
        raise InputError(f"labels {names} mix truth values with 0 and 1; write every label in one of the two ways")
    spelling: dict[str, str] = {}
    notes = []
    for same in groups.values():
        if len(same) > 1:
            chosen = min(same, key=lambda name: (len(name), -counts[name], name))
            spelling.update(dict.fromkeys(same, chosen))
            others = ", ".join(sorted(set(same) - {chosen}))
            notes.append(f"label {chosen} is also written {others}, and read as {chosen}")
    if not spelling:
        return kept, []
    for records in kept.values():
        records[:] = [replace(r, label=spelling[r.label]) if r.label in spelling else r for r in records]
    return kept, notes[:_SHOWN]


def _is_hidden(label: str) -> bool:
    return label.casefold() in _HIDDEN or _value(label) in _HIDDEN_NUMBERS


def _holds_codes(labels: Iterable[str]) -> bool:
    """Whether a file has a number with zeros before it and without, so that the zeros mean something."""
    known = {_value(label) for label in labels}
    return any(_PADDED.fullmatch(label) is not None and float(label) in known for label in labels)


def _value(label: str) -> object:
    """What two spellings of one label have in common."""
    if _NUMBER.fullmatch(label):
        return float(label)
    return label.casefold() if label.casefold() in _TRUTH else ("name", label)


def label_notes(task: Task, splits: Mapping[str, Sequence[Any]]) -> list[str]:
    """What is odd about the labels: names that differ only in case or blanks, classes that train lacks, a stray nan."""
    if task == "language-modeling" or task == "ranking":
        return []
    counts = {split: labels_in(records) for split, records in splits.items()}
    names = sorted(set().union(*counts.values()))
    alike: dict[str, list[str]] = {}
    for name in names:
        plain = " ".join(unicodedata.normalize("NFKC", name).casefold().split()).strip("\"'")
        alike.setdefault(plain.lstrip("0") or "0" if plain.isdecimal() else plain, []).append(name)
    kind = "tags" if task == "token-classification" else "labels"
    notes = [
        f"{kind} {' and '.join(map(repr, same))} differ only in how they are written, and count as {len(same)}"
        for same in alike.values()
        if len(same) > 1
    ]
    numbers = [name for name in names if _NUMBER.fullmatch(name)]
    odd = [name for name in names if name.casefold() in _HIDDEN and not _NUMBER.fullmatch(name)]
    if odd and numbers and len(odd) + len(numbers) == len(names):
        notes.append(f"label {odd[0]!r} stands among numbers and counts as a class; empty its cells to leave them out")
    for split in ("dev", "test"):
        new = sorted(set(counts.get(split, ())) - set(counts.get("train", ())))
        if split in counts and task == "token-classification" and set(counts[split]) == {"O"}:
            notes.append(f"every tag of {split} is O: nothing to find, or its tags are kept secret")
        if "train" in counts and new:
            shown = ", ".join(map(repr, new[:_SHOWN])) + (" …" if len(new) > _SHOWN else "")
            notes.append(f"{len(new)} {kind} of {split} do not occur in train, which cannot teach them: {shown}")
    return notes


def require_classes(dataset: Dataset) -> None:
    """Raises InputError where the training data of a data set have a single class, from which nothing can be learnt."""
    if dataset.task == "language-modeling" or "train" not in dataset.splits:
        return
    seen = labels_in(dataset.splits["train"])
    if len(seen) > 1:
        return
    only, count = next(iter(seen.items()), ("", 0))
    what, remedy = {
        "token-classification": ("tag", "pass data in which some words are tagged, or name the tags by --label-column"),
        "ranking": ("relevance", "pass data with relevant and other texts, or name the column by --label-column"),
    }.get(dataset.task, ("label", "pass data of two classes at least, or name the labels by --label-column"))
    raise InputError(
        f"all {count:,} {what}s of the training data of {dataset.name!r} are {only!r}; training needs two different "
        f"ones; {remedy}"
    )
