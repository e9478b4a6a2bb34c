"""Which files of a folder are data, which split each is, and which reader reads it.

eng.train  eng.testa  eng.testb        CoNLL-2003: testa is dev
train.csv  dev.json  val_x.csv         a word of the name says the split
wiki.valid.tokens  wiki.test.raw       where one split comes raw and tokenised, the raw text is taken
one file, without a split word         everything, to be split
text files without split words         one corpus (language-modeling)
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from chinchilla_lm.data import jsonl, table, text
from chinchilla_lm.data.binary import HEAD, kind_of
from chinchilla_lm.data.conll import read_conll
from chinchilla_lm.data.decode import COMPRESSED, inner_suffix
from chinchilla_lm.data.records import SPLITS, Reading, Skipped, Task
from chinchilla_lm.data.rows import Columns
from chinchilla_lm.errors import InputError

# A word of a file name, between dots, dashes and underscores -> split.
SPLIT_WORDS = {
    **dict.fromkeys(("train", "training", "trn"), "train"),
    **dict.fromkeys(("dev", "valid", "validation", "val", "development", "testa"), "dev"),
    **dict.fromkeys(("test", "testing", "tst", "testb"), "test"),
}
_CONLL = (".conll", ".conll03", ".conllu", ".bio", ".iob", ".iob2", ".bioes", ".txt", ".tsv", ".ner")
# What file managers leave behind, and Kaggle's form for answers.
_NO_DATA = ("thumbs.db", "desktop.ini", "__macosx")
_FORMS = ("sample_submission", "samplesubmission", "submission_format")
_SHOWN = 5  # files that a note names
UNUSABLE = 0.01  # more of a file's records than this mean that it is the wrong file or the wrong reader
WHOLE = "all"  # the place of files that name no split


def split_of(name: str) -> str | None:
    """The split that a file name (or a hub split name) says it is, or None."""
    found = {SPLIT_WORDS[word] for word in re.split(r"[^a-z0-9]+", name.lower()) if word in SPLIT_WORDS}
    return found.pop() if len(found) == 1 else None


def is_data(path: Path, task: Task) -> bool:
    """Whether a file in a folder looks like data for the task."""
    suffix = inner_suffix(path)
    if not path.is_file() or not _is_visible(path) or text.is_paper(path.name):
        return False
    if path.name.lower().split(".")[0] in _FORMS:
        return False
    if suffix in jsonl.SUFFIXES:
        return True
    if task == "token-classification":
        return suffix in _CONLL or suffix.lstrip(".") in SPLIT_WORDS or (not suffix and split_of(path.name) is not None)
    if task == "language-modeling":
        return suffix in (*text.SUFFIXES, *table.SUFFIXES, text.ARCHIVE)
    return suffix in (*table.SUFFIXES, ".txt")


def _is_visible(path: Path) -> bool:
    """Whether a file or folder is not one that a system makes for itself: `._train.csv`, `__MACOSX`, `Thumbs.db`."""
    return not path.name.startswith(".") and path.name.lower() not in _NO_DATA


def read_file(path: Path, task: Task, columns: Columns, encoding: str | None = None) -> Reading:
    """One file, by the reader that its extension and the task call for.

    Raises:
        InputError: see the readers; or no record, or more than 1 % of the records cannot be used.
    """
    suffix = inner_suffix(path)
    tabular = suffix in table.SUFFIXES and task != "token-classification"
    if suffix == ".txt" and task in ("text-classification", "ranking"):
        tabular = table.is_table_as_txt(path, encoding)
    columnar = suffix in jsonl.SUFFIXES or tabular
    unread = replace(columns, by_time=False)
    if task == "token-classification":
        unread = replace(unread, text=None, label=None)  # a number of a column
    if not columnar and unread != Columns():
        raise InputError(
            f"{path.name} names no columns; leave out text_column, label_column, group_column, time_column"
        )
    if task == "token-classification" and suffix == ".csv":
        raise InputError(
            f"{path.name} is CSV; words and tags come in columns as CoNLL's, or as JSON lines {{tokens, tags}}"
        )
    if suffix in jsonl.SUFFIXES:
        reading = jsonl.read_jsonl(path, task, columns, encoding)
    elif task == "token-classification":
        reading = read_conll(path, columns.text, columns.label, encoding)
    elif tabular:
        reading = table.read_table(path, task, columns, encoding)
    elif task == "language-modeling":
        reading = text.read_text([path], encoding)
    elif task == "text-classification":
        reading = table.read_at_lines(path, encoding)
    else:
        raise InputError(f"{path.name} cannot hold pairs to rank; pass a .csv, .tsv or .jsonl file")
    return require_usable(reading)


def require_usable(reading: Reading) -> Reading:
    """The same reading.

    Raises:
        InputError: it has no record, or more than 1 % of its records were skipped; the first three are named.
    """
    skipped, total = len(reading.skipped), len(reading.skipped) + len(reading.records)
    if skipped > UNUSABLE * total:
        first = "; ".join(f"{item.where}: {item.why}" for item in reading.skipped[:3])
        raise InputError(
            f"{skipped} of {total} records of {reading.source} cannot be used, more than {UNUSABLE:.0%} ({first}); "
            "mend these, or name the columns and the task that fit the file"
        )
    if not total:
        raise InputError(f"{reading.source} has no records; a data file holds at least one")
    return reading


def find_files(folder: Path, task: Task) -> tuple[dict[str, list[Path]], list[str]]:
    """The data files of a folder by split (or all under WHOLE), and notes on what was left aside.

    A folder that holds nothing but one folder, as unpacked archives do, is that folder.

    Raises:
        InputError: nothing looks like data for the task, or it is not clear which file is which.
    """
    folder = _inner(folder, task)
    present = sorted(path for path in folder.iterdir() if path.is_file() and _is_visible(path))
    binary = {path.name: what for path in present if (what := _what_binary(path, task))}
    files = [path for path in present if is_data(path, task) and path.name not in binary]
    described = ", ".join(f"{name} ({what})" for name, what in list(binary.items())[:_SHOWN])
    described += f" and {len(binary) - _SHOWN} more" if len(binary) > _SHOWN else ""
    notes = [f"left aside in {folder.name}, since they are no text: {described}"] if binary else []
    named: dict[str, list[Path]] = {}
    for path in files:
        if split := split_of(path.name):
            named.setdefault(split, []).append(path)
    if named:
        aside = [path.name for path in files if split_of(path.name) is None]
        for split, paths in named.items():
            named[split], left = _one_of(paths, split)
            aside += left
        if aside:
            notes.append(f"left aside in {folder.name}: {', '.join(aside)}")
        return {split: named[split] for split in SPLITS if split in named}, notes
    if not files:
        but = f" but {described}" if binary else ""
        raise InputError(
            f"{folder} holds no file that looks like data for {task}{but}; pass one file, or name --train, --dev and "
            "--test"
        )
    if len(files) > 1 and task != "language-modeling":
        names = ", ".join(path.name for path in files)
        raise InputError(
            f"{folder} holds {len(files)} files and none is named train, dev or test ({names}); pass one of them"
        )
    return {WHOLE: files}, notes


def _inner(folder: Path, task: Task) -> Path:
    while True:
        visible = [path for path in folder.iterdir() if _is_visible(path)]
        inner = [path for path in visible if path.is_dir()]
        if len(inner) != 1 or any(is_data(path, task) for path in visible):
            return folder
        folder = inner[0]


def _what_binary(path: Path, task: Task) -> str:
    """What a file is whose first bytes are those of no text, "" where it may be text or is unpacked in reading."""
    suffix = path.suffix.lower()
    if suffix in COMPRESSED or (task == "language-modeling" and suffix == text.ARCHIVE):
        return ""
    try:
        with path.open("rb") as file:
            found = kind_of(file.read(HEAD), path)
    except OSError:
        return ""  # the reader of the file says why, if it is wanted
    return found[0] if found else ""


def _one_of(paths: list[Path], split: str) -> tuple[list[Path], list[str]]:
    """The file for a split, and the names left aside: of the same text raw and tokenised, the raw one."""
    if len(paths) == 1:
        return paths, []
    raw = [path for path in paths if inner_suffix(path) == ".raw"]
    if len(raw) == 1 and len({path.name.removesuffix("".join(path.suffixes[-1:])) for path in paths}) == 1:
        return raw, [path.name for path in paths if path not in raw]
    names = " and ".join(path.name for path in paths)
    raise InputError(f"{names} could each be the {split} split; name one by --{split}")


def read_files(paths: Sequence[Path], task: Task, columns: Columns, encoding: str | None = None) -> Reading:
    """Several files as one reading; plain text is read together, since the number of files decides the cut."""
    plain = [path for path in paths if inner_suffix(path) in (*text.SUFFIXES, text.ARCHIVE)]
    together = plain if task == "language-modeling" else []
    readings = [require_usable(text.read_text(together, encoding))] if together else []
    readings += [read_file(path, task, columns, encoding) for path in paths if path not in together]
    if len(readings) == 1:
        return readings[0]
    whole = Reading(", ".join(r.source for r in readings), has_documents=all(r.has_documents for r in readings))
    for reading in readings:
        whole.records.extend(reading.records)
        whole.skipped.extend(reading.skipped)
        whole.notes.extend(reading.notes)
    return whole


def resolve(folder: Path, splits: Mapping[str, str]) -> dict[str, Path]:
    """The caller's own split -> file, relative to the folder unless absolute.

    Raises:
        InputError: an unknown split name, or a file that is not there.
    """
    found = {}
    for split, name in splits.items():
        if split not in SPLITS:
            raise InputError(f"split {split!r} is not one of {', '.join(SPLITS)}; rename it")
        path = next((path for path in (folder / name, Path(name)) if path.is_file()), None)
        if path is None:
            raise InputError(f"{folder / name} is not a file; --{split} takes a name inside {folder} or a full path")
        found[split] = path
    return found


def looks_like_path(source: str) -> bool:
    """Whether a source that is not on disk was meant as a path: by its first characters or its extension."""
    known = (*jsonl.SUFFIXES, *table.SUFFIXES, *text.SUFFIXES, text.ARCHIVE, *_CONLL, *COMPRESSED)
    return (
        source.startswith((".", "/", "~"))
        or source.endswith(("/", *known))
        or re.fullmatch(r"[\w.-]+(/[\w.-]+)?(:[\w.-]+)?", source) is None
    )


def total_skipped(readings: Mapping[str, Reading]) -> list[Skipped]:
    """What all readings skipped, in split order."""
    return [item for reading in readings.values() for item in reading.skipped]
