"""What a data set is made of: three kinds of record, and the splits that hold them.

A *document* is the unit that splits, calibration and bootstrap go by: an article, a conversation, a group of
duplicates. Where a file knows none, every record is its own document.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from chinchilla_lm.errors import InputError

Task = Literal["language-modeling", "token-classification", "text-classification", "ranking"]
TASKS: tuple[Task, ...] = get_args(Task)
SPLITS = ("train", "dev", "test")


class BadRecord(ValueError):
    """One record cannot be used; the reader records it as `Skipped` and goes on. Never leaves this room."""


class MissingLabel(BadRecord):
    """The record is sound, but has no label."""


class Unlabelled(InputError):
    """A file or split has no labels at all, as test data have whose labels are kept secret."""


@dataclass(frozen=True, slots=True)
class Tagged:
    """A sentence with one BIO tag a word."""

    id: str
    document: str
    words: tuple[str, ...]
    tags: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Labelled:
    """A text, or a pair of texts, with one label; for ranking the label is a number written as text.

    `time` is ISO 8601 in UTC (`2019-03-05` or `2019-03-05T10:00:00`) or None, so that text order is time order.
    """

    id: str
    document: str
    time: str | None
    text: str
    pair: str | None
    label: str


@dataclass(frozen=True, slots=True)
class Text:
    """A piece of running text for language modelling. `follows`: it goes on where the record before it ends."""

    id: str
    document: str
    text: str
    follows: bool = False


Record = Tagged | Labelled | Text


@dataclass(frozen=True, slots=True)
class Skipped:
    """A record that could not be used: where it stands (`file:line`), and why."""

    where: str
    why: str


@dataclass(frozen=True, slots=True)
class Reading:
    """What a reader found in one file.

    `has_documents`: the file itself said which records belong together. `label_column`: the field that the labels are
    from, "" where the file names no fields.
    """

    source: str
    records: list[Any] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    has_documents: bool = False
    label_column: str = ""


@dataclass(frozen=True, slots=True)
class Dataset:
    """Records by split.

    `splits` maps "train", "dev" and "test", as far as they exist, to records of the task's kind: Tagged for
    token-classification, Labelled for text-classification and ranking, Text for language-modeling. `notes` are
    sentences for the report: duplicates, encodings, splits that were made.
    """

    name: str
    task: Task
    splits: dict[str, list[Any]]
    labels: tuple[str, ...]
    skipped: list[Skipped]
    has_documents: bool
    notes: list[str] = field(default_factory=list)
    made: tuple[str, ...] = ()
    """The splits that no file was, but were made of another."""
    not_made: str = ""
    """Why not all that were missing could be made."""

    def records(self, split: str) -> list[Any]:
        """The records of one split.

        Raises:
            InputError: the data set has no such split.
        """
        if split not in self.splits:
            if self.not_made:
                raise InputError(f"split {split!r} could not be made of {self.name!r}: {self.not_made}")
            have = ", ".join(self.splits) or "none"
            raise InputError(
                f"split {split!r} is not in {self.name!r} (it has {have}); name one of these, or a file by --{split}"
            )
        return self.splits[split]

    def all_records(self) -> list[Any]:
        """The records of every split."""
        return [record for split in self.splits.values() for record in split]


def records_sha256(records: Iterable[Record]) -> str:
    """SHA-256 of records with all that they hold, in their order."""
    return text_hash("\n".join(repr(record) for record in records))


def record_text(record: Record) -> str:
    """Everything that a model would read of a record, white space made single: what makes two records the same text."""
    if isinstance(record, Tagged):
        text = " ".join(record.words)
    elif isinstance(record, Labelled) and record.pair is not None:
        text = f"{record.text}\n{record.pair}"
    else:
        text = record.text
    return " ".join(text.split())


def text_hash(text: str) -> str:
    """SHA-256 of a text, 64 hexadecimal digits."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def sorted_labels(task: Task, seen: set[str]) -> tuple[str, ...]:
    """Labels in the order of their ids: numbers by value, names by code point, tags as O, then B-X and I-X by type."""
    if task == "token-classification":
        types = sorted({tag[2:] for tag in seen if tag[:2] in ("B-", "I-")})
        plain = sorted(tag for tag in seen if tag != "O" and tag[:2] not in ("B-", "I-"))
        outside = ["O"] if "O" in seen or types else []
        return (*outside, *(f"{prefix}-{kind}" for kind in types for prefix in "BI"), *plain)
    try:
        return tuple(sorted(seen, key=lambda label: (float(label), label)))
    except ValueError:
        return tuple(sorted(seen))
