"""The guard: data of another kind, on which a model must hold the margin against the original as it was."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from chinchilla_lm.data.records import Dataset
from chinchilla_lm.data.splits import disjoint, shared_passages
from chinchilla_lm.errors import InputError

# Share of a guard's passages that may stand in the data as well: quotations, licences.
MOST_SHARED = 0.2


@dataclass(frozen=True, slots=True)
class GuardData:
    """What is judged on: the records of a split, or of `all` that were read, less those that stand in our own data too.
    (Where splits were made of running text, what lies between them was not read.)"""

    name: str
    split: str
    records: list[Any]


def guard_of(name: str, read: Dataset, ours: Sequence[Any]) -> tuple[GuardData, int]:
    """The data named by `--guard`, less what stands in our own records too, and how many of them that were: its test
    split where that came as a file, else all.

    Raises InputError where they are text of our own data.
    """
    official = bool(read.splits.get("test")) and "test" not in read.made
    kept, removed = disjoint(read.records("test") if official else read.all_records(), ours)
    if not kept or shared_passages(kept, ours) > MOST_SHARED:
        raise InputError(
            f"guard {name} is text of the data that it is to guard against; pass text of another kind by --guard"
        )
    return GuardData(name, "test" if official else "all", kept), removed
