"""Rows of named fields, from JSON, a table or a hub data set, made into records.

Which field is the text and which the label is what the caller says, else a usual name. A guess is made only where
exactly one field fits; otherwise the error lists the fields.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from chinchilla_lm.data.records import (
    BadRecord,
    Labelled,
    MissingLabel,
    Reading,
    Skipped,
    Tagged,
    Task,
    Text,
    Unlabelled,
)
from chinchilla_lm.data.spans import spans_of, tag_spans
from chinchilla_lm.data.tags import detect_scheme, to_bio
from chinchilla_lm.data.times import day_first, to_iso
from chinchilla_lm.errors import InputError

Row = Mapping[str, object]
Located = tuple[str, Row | BadRecord]  # where it stands, and the row or why there is none

_PAIR = ("text_pair", "pair", "sentence2", "text2", "hypothesis", "question2")
# Usual field names, the likelier first.
USUAL: dict[str, tuple[str, ...]] = {
    "text": (
        *("text", "sentence", "sentence1", "text1", "premise", "question1", "news", "headline", "title", "question"),
        *("query", "content", "review", "tweet", "message", "utterance", "body"),
    ),
    "label": ("label", "labels", "category", "class", "sentiment", "intent", "target", "emotion", "topic", "decisions"),
    "pair": _PAIR,
    "ranked": (*_PAIR, "answer", "passage", "document", "response", "reply", "candidate"),
    "relevance": ("label", "score", "relevance", "similarity", "rating"),
    "group": ("group", "group_id", "document_id", "doc_id"),
    "time": ("time", "date", "dates", "timestamp", "datetime", "published", "published_at", "created_at"),
    "words": ("tokens", "words"),
    "tags": ("ner_tags", "tags", "labels", "ner"),
}


@dataclass(frozen=True, slots=True)
class Columns:
    """The fields that the caller names; None means a usual name. `by_time`: splits go by it, so it must be read."""

    text: str | None = None
    label: str | None = None
    group: str | None = None
    time: str | None = None
    by_time: bool = False


def find_column(names: Sequence[str], asked: str | None, usual: str, where: str) -> str | None:
    """The name of the field that is meant, or None where nothing fits.

    A usual name wins over a name that only ends in one (`Price Sentiment`).

    Raises:
        InputError: `asked` is not among the names, or several fit equally.
    """
    if asked is not None:
        if asked not in names:
            raise InputError(f"column {asked!r} is not in {where}; its columns are {', '.join(names)}")
        return asked
    plain = {name.strip().lower().replace(" ", "_"): name for name in reversed(names)}
    for wanted in USUAL[usual]:
        if wanted in plain:
            return plain[wanted]
    endings = tuple(f"_{wanted}" for wanted in USUAL[usual])
    fits = [plain[name] for name in plain if name.endswith(endings)] if usual in ("text", "label") else []
    if len(fits) > 1:
        raise InputError(
            f"{where}: columns {', '.join(sorted(fits))} could each be the {usual}; name one by --{usual}-column"
        )
    return fits[0] if fits else None


def require_column(names: Sequence[str], asked: str | None, usual: str, option: str, where: str) -> str:
    """`find_column`, and an InputError that lists the fields where nothing fits."""
    found = find_column(names, asked, usual, where)
    if found is None:
        raise InputError(
            f"{where} has no {usual} column among {', '.join(names)}; name it by --{option.replace('_', '-')}"
        )
    return found


def _label_column(names: Sequence[str], asked: str | None, usual: str, where: str) -> str:
    """The name of the field of the labels. Raises Unlabelled where the fields have none."""
    if asked is not None and asked not in names:
        raise Unlabelled(f"column {asked!r} is not in {where}; name one of {', '.join(names)} by --label-column")
    found = find_column(names, asked, usual, where)
    if found is None:
        raise Unlabelled(f"{where} has no {usual} column among {', '.join(names)}; name it by --label-column")
    return found


def read_rows(rows: Iterable[Located], task: Task, columns: Columns, source: str) -> Reading:
    """Records of the task from rows; a row that cannot be used is recorded as skipped.

    Raises:
        InputError: a field that is needed is not there at all, or the choice is not clear.
    """
    located = list(rows)
    reading = Reading(source)
    reading.skipped.extend(Skipped(where, str(row)) for where, row in located if isinstance(row, BadRecord))
    good = [(where, row) for where, row in located if not isinstance(row, BadRecord)]
    names = list(dict.fromkeys(name for _, row in good for name in row))
    if not good:
        return reading
    if task == "token-classification":
        return _read_tagged(good, names, columns, reading)
    if task == "language-modeling":
        return _read_plain(good, names, columns, reading)
    return _read_labelled(good, names, task, columns, reading)


def _require_labels(reading: Reading, without: int, column: str) -> None:
    """Raises Unlabelled where no record is left and most were sound but for their label."""
    if not reading.records and 2 * without > len(reading.skipped):
        raise Unlabelled(
            f"{reading.source}: none of {without} records has a label in {column!r}; name the labels by --label-column"
        )


def _read_tagged(rows: list[tuple[str, Row]], names: list[str], columns: Columns, reading: Reading) -> Reading:
    group = find_column(names, columns.group, "group", reading.source)
    words_field = find_column(names, columns.text, "words", reading.source)
    if words_field is not None and isinstance(rows[0][1].get(words_field), str):
        words_field = None  # the caller named the text that the spans are in
    tags_field = _label_column(names, columns.label, "tags", reading.source) if words_field else ""
    found: list[tuple[str, Row, tuple[str, ...], tuple[str, ...]]] = []
    without = widened = 0
    for where, row in rows:
        try:
            if words_field is not None:
                words, tags = _strings(row, words_field), _tags(row, tags_field)
            else:
                words, tags, count = tag_spans(_string(row, columns.text or "text", strip=False), spans_of(row))
                widened += count
            if len(words) != len(tags):
                raise BadRecord(f"{len(words)} words but {len(tags)} tags")
        except BadRecord as error:
            without += isinstance(error, MissingLabel)
            reading.skipped.append(Skipped(where, str(error)))
        else:
            found.append((where, row, words, tags))
    if widened:
        reading.notes.append(
            f"{reading.source}: {widened} entities end at a hyphen or the like and take the whole word"
        )
    scheme = detect_scheme([tags for *_, tags in found])
    for where, row, words, tags in found:
        try:
            document = _group(row, group) or where
            reading.records.append(Tagged(where, document, words, to_bio(tags, scheme)))
        except BadRecord as error:
            reading.skipped.append(Skipped(where, str(error)))
    _require_labels(reading, without, tags_field)
    return replace(reading, has_documents=group is not None, label_column=tags_field)


def _read_plain(rows: list[tuple[str, Row]], names: list[str], columns: Columns, reading: Reading) -> Reading:
    text = require_column(names, columns.text, "text", "text_column", reading.source)
    group = find_column(names, columns.group, "group", reading.source)

    def read(where: str, row: Row) -> list[Text]:
        return [Text(where, _group(row, group) or where, _string(row, text))]

    _each(rows, read, reading)
    return replace(reading, has_documents=True)


def _read_labelled(
    rows: list[tuple[str, Row]], names: list[str], task: Task, columns: Columns, reading: Reading
) -> Reading:
    source = reading.source
    ranking = task == "ranking"
    text = require_column(names, columns.text, "text", "text_column", source)
    label = _label_column(names, columns.label, "relevance" if ranking else "label", source)
    pair = find_column(
        [name for name in names if name not in (text, label)], None, "ranked" if ranking else "pair", source
    )
    if ranking and pair is None:
        raise InputError(f"{source} has no second text among {', '.join(names)}; call it text_pair")
    group = find_column(names, columns.group, "group", source)
    time, days_first = _time_column(rows, names, columns, reading)

    queries: dict[str, str] = {}  # the first place of each query: one document to rank for

    def read(where: str, row: Row) -> list[Labelled]:
        moment = to_iso(str(row.get(time) or ""), days_first) if time else None
        document = _group(row, group) or (queries.setdefault(_string(row, text), where) if ranking else where)
        second = _string(row, pair) if pair is not None and (ranking or not _is_missing(row.get(pair))) else None
        labels = _labels_by_entity(row.get(label)) if task == "text-classification" and second is None else None
        if labels is None:
            value = _number(row, label) if ranking else _label(row, label)
            return [Labelled(where, document, moment, _string(row, text), second, value)]
        return [
            Labelled(f"{where}#{i}", document, moment, _string(row, text), entity, value)
            for i, (entity, value) in enumerate(labels.items())
        ]

    _require_labels(reading, _each(rows, read, reading), label)
    undated = sum(record.time is None for record in reading.records) if time else 0
    if undated:
        reading.notes.append(f"{source}: {undated} of {len(reading.records)} records have no readable {time!r}")
    several = len({record.document for record in reading.records}) < len(reading.records)
    return replace(reading, has_documents=group is not None or several, label_column=label)


def _time_column(
    rows: list[tuple[str, Row]], names: list[str], columns: Columns, reading: Reading
) -> tuple[str | None, bool]:
    """The field of the time, if any, and whether it writes the day before the month.

    Raises:
        InputError: the dates contradict each other, in a column that the caller named or wants to split by.
    """
    time = find_column(names, columns.time, "time", reading.source)
    if time is None:
        return None, True
    try:
        return time, day_first((str(row[time]) for _, row in rows if row.get(time)), reading.source)
    except InputError as error:
        if columns.time is not None or columns.by_time:
            raise
        reading.notes.append(f"column {time!r} is not read as a time, since nothing asks for it: {error}")
        return None, True


def _each(rows: list[tuple[str, Row]], read: Callable[[str, Row], Sequence[Labelled | Text]], reading: Reading) -> int:
    """Reads every row into the reading; the number of those that lack a label."""
    without = 0
    for where, row in rows:
        try:
            reading.records.extend(read(where, row))
        except BadRecord as error:
            without += isinstance(error, MissingLabel)
            reading.skipped.append(Skipped(where, str(error)))
    return without


def _is_missing(value: object) -> bool:
    """Whether a cell holds nothing: null of JSON, None, or the NaN that pandas writes. "NA" and "None" are texts."""
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def _string(row: Row, name: str, *, strip: bool = True) -> str:
    value = row.get(name)
    if _is_missing(value) or (isinstance(value, str) and not value.strip()):
        raise BadRecord(f"no text in {name!r}")
    if not isinstance(value, str):
        raise BadRecord(f"{name!r} is {value!r}, not a text")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise BadRecord(f"{name!r} holds half a surrogate pair, which is no character") from error
    return value.strip() if strip else value


def _strings(row: Row, name: str) -> tuple[str, ...]:
    values = row.get(name)
    if not isinstance(values, list) or not values:
        raise BadRecord(f"{name!r} is empty or no list")
    for value in values:
        if not isinstance(value, str) or not value:
            raise BadRecord(f"{name!r} holds {value!r} where a text is needed")
    return tuple(values)


def _tags(row: Row, name: str) -> tuple[str, ...]:
    """Tags as texts. -1 for every word is how the hub writes tags that are kept secret."""
    values = row.get(name)
    if _is_missing(values) or (isinstance(values, list) and all(_is_missing(v) or v == -1 for v in values)):
        raise MissingLabel(f"no tags in {name!r}")
    return _strings(row, name)


def _label(row: Row, name: str) -> str:
    value = row.get(name)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if _is_missing(value) or (isinstance(value, str) and not value.strip()):
        raise MissingLabel(f"no label in {name!r}")
    if not isinstance(value, str | int | float) or not str(value).strip():
        raise BadRecord(f"label {value!r} is not a name or a number")
    return str(value).strip()


def _number(row: Row, name: str) -> str:
    value = _label(row, name)
    try:
        number = float(value)
    except ValueError as error:
        raise BadRecord(f"relevance {value!r} is not a number") from error
    if not math.isfinite(number):
        raise BadRecord(f"relevance {value!r} is not finite")
    return f"{number:.12g}"


def _labels_by_entity(value: object) -> dict[str, str] | None:
    """SEntFiN writes one label an entity, `{'Gold': 'positive', 'Silver': 'negative'}`; None for an ordinary label."""
    if not isinstance(value, str) or not value.lstrip().startswith("{"):
        return None
    try:
        labels = ast.literal_eval(value.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
        raise BadRecord(f"label {value[:60]!r} is not a dictionary that can be read") from error
    if (
        not isinstance(labels, dict)
        or not labels
        or not all(isinstance(x, str) and x for kv in labels.items() for x in kv)
    ):
        raise BadRecord(f"label {value[:60]!r} does not map entities to labels")
    return labels


def _group(row: Row, name: str | None) -> str:
    value = row.get(name) if name is not None else None
    return "" if _is_missing(value) else str(value).strip()
