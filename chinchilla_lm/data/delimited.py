"""Delimited text as RFC 4180 says it, and as people write it.

A field in quotation marks may hold delimiters, line ends and doubled marks. A mark that only begins a text (`"5 inch
screen,neg`) looks the same until the next mark, many rows on, and what stands between would be one field of hundreds of
lines. So each record is read in the first of these ways that gives as many fields as the header has:

    strict      a mark closes only before a delimiter or a line end, doubled marks are one
    backslash   the same, and \\" is a mark too
    lenient     within one line, a mark that does not close is text
    bare        within one line, every mark is text

and a field of several lines is not believed where each of its lines is a row by itself, like the rows elsewhere in the
file. Python's csv module is not used: it refuses fields above a limit that is global to the process, and swallows rows.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise

DELIMITERS = ("\t", ",", ";", "|")  # where two give as many columns, the earlier: it is the rarer inside text

_MARK = '"'
_SEPARATOR_LINE = re.compile(r'"?sep=(.)"?\s*', re.IGNORECASE)  # how Excel is told the delimiter
_QUOTED = re.compile(r'"(?:[^"]|"")*"')
_WHOLE = re.compile(r' *"([^"]*)" *')
_NUMBER = re.compile(r"\s*[-+]?\d+(?:\.\d*)?\s*")
_SAMPLE = 200  # lines of a field that show whether they are rows
_PROFILED = 2000  # records that show what a column holds
_CATEGORIES = 50  # a column of at most so many different values, each twice on average, is one of categories
_FEW = 4  # values from which a column can be judged
_ENOUGH = 3  # so many lines that are full rows by themselves are no accident, where no column says more
_LONG = 5  # a row of more lines is mentioned
_MOST = 0.9


@dataclass(slots=True)
class Record:
    """One row: number of its first and last line, from 1; its fields, or None where it cannot be parted."""

    first: int
    last: int
    fields: list[str] | None
    stray: bool = False  # a quotation mark was taken as text
    quoted: bool = False  # quotation marks were taken as such


@dataclass(slots=True)
class Delimited:
    """A file in parts. The header's names are as they stand there."""

    header: list[str]
    records: list[Record]
    notes: list[str] = field(default_factory=list)


def parse(text: str, name: str) -> Delimited:
    """The header and the records of a table, blank rows left out; neither where there is not even a header.

    A record has as many fields as the header, or what its line gives when parted at each delimiter.
    """
    lines = text.split("\n")
    first = next((i for i, line in enumerate(lines) if line.strip("\ufeff \t")), None)
    if first is None:
        return Delimited([], [])
    delimiter = None
    if match := _SEPARATOR_LINE.fullmatch(lines[first].strip("\ufeff")):
        delimiter, first = match[1], first + 1
        if first == len(lines):
            return Delimited([], [])
    reader = _Reader(lines, delimiter or delimiter_of(lines[first]))
    head = reader.read(first, None)
    header = head.fields or []
    while len(header) > 1 and not header[-1].strip() and not reader.holds(head.last, len(header) - 1):
        header.pop()  # trailing delimiters
    if reader.has_row_names(head.last, len(header)):
        header = ["", *header]
    reader.width = len(header)
    records = list(reader.records(head.last, len(header)))
    table = Delimited(header, records, reader.notes(name, records))
    if reader.delimiter == "\t" and (bare := _unquoted(reader, head.last, table)):
        return Delimited(header, bare, [f"{name}: quotation marks are taken as text"])
    return table


def delimiter_of(header: str) -> str:
    """The delimiter that parts a header most, a comma where none does."""
    bare = _QUOTED.sub("", header)
    return max(DELIMITERS, key=bare.count) if any(d in bare for d in DELIMITERS) else ","


def _unquoted(reader: _Reader, start: int, table: Delimited) -> list[Record] | None:
    """GLUE's tab files quote nothing: where more marks are stray than not, every line is a row as it stands."""
    stray, quoted = (sum(getattr(r, kind) for r in table.records) for kind in ("stray", "quoted"))
    if stray <= quoted:
        return None
    width = len(table.header)
    bare = [reader.bare(i, width) for i in range(start, len(reader.lines)) if reader.lines[i].strip()]
    fits = [sum(len(r.fields or ()) == width for r in records) for records in (bare, table.records)]
    return bare if fits[0] >= fits[1] else None


class _Reader:
    """The lines of one file. Lines are counted from 0 here, and from 1 in records."""

    def __init__(self, lines: list[str], delimiter: str) -> None:
        self.lines, self.delimiter = lines, delimiter
        self.width = 0  # of the header, once it is read

    def records(self, start: int, width: int) -> Iterator[Record]:
        """The records from a line on, without those of which every field is blank."""
        at = start
        while at < len(self.lines):
            record = self.read(at, width)
            at = record.last
            if record.fields is None or any(value.strip() for value in record.fields):
                yield record

    def read(self, at: int, width: int | None) -> Record:
        """The record that begins in a line; `width` None takes what comes, for a header."""
        if _MARK not in self.lines[at]:
            return self.bare(at, width)
        modes = ("strict", "backslash") if "\\" + _MARK in self.lines[at] else ("strict",)
        found = [self._quoted(at, mode, width) for mode in modes]
        for record in found:
            if record is not None and self._fits(record, width) and not self._swallows(record, width):
                return record
        alone = self.alone(at, width)
        if self._fits(alone, width):
            return alone
        if len(modes) == 1 and (late := self._quoted(at, "backslash", width)) and self._fits(late, width):
            found.insert(0, late)
        for record in found:
            if record is not None and not self._swallows(record, width):
                return record
        if self._is_quoted_at_start(at):
            return Record(at + 1, at + 1, None, stray=True)
        return alone

    def alone(self, at: int, width: int | None) -> Record:
        """A line as a row by itself, with the marks that pair within it, else with all of them as text."""
        for mode in ("strict", "backslash", "lenient"):
            record = self._quoted(at, mode, width, last=at)
            if record is not None and self._fits(record, width):
                record.stray = mode != "strict"
                return record
        record = self.bare(at, width)
        record.stray = self._is_quoted_at_start(at)
        if record.fields is not None:  # the other fields of the line may well be in marks
            record.fields = [match[1] if (match := _WHOLE.fullmatch(value)) else value for value in record.fields]
        return record

    def bare(self, at: int, width: int | None) -> Record:
        """A line parted at each delimiter."""
        return Record(at + 1, at + 1, _trimmed(self.lines[at].split(self.delimiter), width))

    def _is_quoted_at_start(self, at: int) -> bool:
        """Whether some field of a line begins with a mark."""
        return any(value.lstrip(" ").startswith(_MARK) for value in self.lines[at].split(self.delimiter))

    def _fits(self, record: Record, width: int | None) -> bool:
        return record.fields is not None and (width is None or len(record.fields) == width)

    def _quoted(self, at: int, mode: str, width: int | None, last: int | None = None) -> Record | None:
        """The record that begins in a line and may go on to line `last`, or to the end of the file."""
        fields: list[str] = []
        line, place = at, 0
        while True:
            text = self.lines[line]
            start = place
            while text.startswith(" ", start):
                start += 1
            if text.startswith(_MARK, start):
                found = self._closed(line, start + 1, mode, len(self.lines) - 1 if last is None else last)
                if found is None:
                    return None
                value, line, place = found
                text = self.lines[line]
            else:
                stop = text.find(self.delimiter, place)
                stop = len(text) if stop < 0 else stop
                value, place = text[place:stop], stop
            fields.append(value)
            if place == len(text):
                return Record(at + 1, line + 1, _trimmed(fields, width), quoted=True)
            place += len(self.delimiter)

    def _closed(self, line: int, place: int, mode: str, last: int) -> tuple[str, int, int] | None:
        """(content, line, place behind it) of a field whose opening mark stands before `place`."""
        parts: list[str] = []
        start = place
        while line <= last:
            text = self.lines[line]
            at = text.find(_MARK, place)
            if at < 0:
                parts.append(text[start:])
                line, start, place = line + 1, 0, 0
                continue
            if mode == "backslash" and (at - len(text[:at].rstrip("\\"))) % 2:
                place = at + 1
            elif text.startswith(_MARK, at + 1) and not (mode == "lenient" and self._ends(text, at + 2)):
                place = at + 2
            elif self._ends(text, at + 1):
                parts.append(text[start:at])
                value = "\n".join(parts).replace(_MARK * 2, _MARK)
                stop = text.find(self.delimiter, at)
                stop = len(text) if stop < 0 else stop
                return (value.replace("\\" + _MARK, _MARK) if mode == "backslash" else value), line, stop
            elif mode == "lenient":
                place = at + 1
            else:
                return None
        return None

    def _ends(self, text: str, place: int) -> bool:
        """Whether a field may end here: a delimiter or the line's end follows, blanks before it aside."""
        while text.startswith(" ", place):
            place += 1
        return place == len(text) or text.startswith(self.delimiter, place)

    def _swallows(self, record: Record, width: int | None) -> bool:
        """Whether a record of several lines is rather as many rows, its first mark being text."""
        first, count = record.first - 1, record.last - record.first + 1
        if count == 1 or width is None or width == 1:
            return False
        rows = [self.alone(i, width) for i in range(first, min(record.last, first + _SAMPLE))]
        fitting = [row.fields for row in rows if row.fields is not None and self._fits(row, width)]
        if len(fitting) < _MOST * len(rows):
            return False
        checks = self._profile
        if not checks:
            others = len(self._several_lines - {record.first})
            full = sum(all(value.strip() for value in fields) for fields in fitting)
            return others < 2 and full == len(rows) >= _ENOUGH
        return all(
            sum(_is_like(fields[column], values) for fields in fitting) >= _MOST * len(fitting)
            for column, values in checks.items()
        )

    @cached_property
    def _profile(self) -> dict[int, frozenset[str] | None]:
        """Column -> the values it takes, None for numbers, of the columns that tell a row from prose.

        Told by the records of the file, fields of several lines aside.
        """
        width = self.width
        sample = [r.fields for r in self._strict[1:] if r.fields and len(r.fields) == width][:_PROFILED]
        found: dict[int, frozenset[str] | None] = {}
        for column in range(width):
            values = [fields[column].strip() for fields in sample if "\n" not in fields[column]]
            distinct = frozenset(values)
            if len(values) < _FEW:
                continue
            if sum(_NUMBER.fullmatch(value) is not None for value in values) >= _MOST * len(values):
                found[column] = None
            elif len(distinct) <= min(_CATEGORIES, len(values) // 2):
                found[column] = distinct
        return found

    @cached_property
    def _several_lines(self) -> frozenset[int]:
        """Where records of several lines begin, as RFC 4180 alone reads the file."""
        return frozenset(record.first for record in self._strict if record.last > record.first)

    @cached_property
    def _strict(self) -> list[Record]:
        """The file as RFC 4180 alone reads it, lines that it cannot read taken as they stand."""
        found: list[Record] = []
        at = 0
        while at < len(self.lines):
            record = (self._quoted(at, "strict", None) if _MARK in self.lines[at] else None) or self.bare(at, None)
            at = record.last
            found.append(record)
        return found

    @cached_property
    def _plain(self) -> list[tuple[int, list[str]]]:
        lines = self.lines
        return [(i, lines[i].split(self.delimiter)) for i in range(len(lines)) if lines[i] and _MARK not in lines[i]]

    def holds(self, start: int, column: int) -> bool:
        """Whether any line without marks below the header has something in this column."""
        return any(i >= start and len(fields) > column and fields[column].strip() for i, fields in self._plain)

    def has_row_names(self, start: int, width: int) -> bool:
        """Whether the rows have one field more than the header, with rising numbers first, as R writes tables."""
        rows = [self.read(i, None).fields or [] for i in range(start, min(len(self.lines), start + _SAMPLE))]
        rows = [fields for fields in rows if len(fields) == width + 1 and fields[-1].strip()]
        numbers = [int(fields[0]) for fields in rows if re.fullmatch("[0-9]{1,12}", fields[0].strip())]
        total = sum(bool(line.strip()) for line in self.lines[start : start + _SAMPLE])
        rises = all(a < b for a, b in pairwise(numbers))
        return len(numbers) > 1 and rises and len(numbers) >= _MOST * total

    def notes(self, name: str, records: Sequence[Record]) -> list[str]:
        """What a person should know of how the file was parted."""
        notes = []
        stray = [record for record in records if record.stray and record.fields is not None]
        if stray:
            notes.append(
                f"{name}: {len(stray)} rows have quotation marks that do not pair, taken as text, the first in line "
                f"{stray[0].first}"
            )
        long = max(records, key=lambda record: record.last - record.first, default=None)
        if long is not None and long.last - long.first >= _LONG:
            lines = long.last - long.first + 1
            notes.append(f"{name}: the longest row in quotation marks has {lines} lines, {long.first} to {long.last}")
        return notes


def _is_like(value: str, values: frozenset[str] | None) -> bool:
    return _NUMBER.fullmatch(value) is not None if values is None else value.strip() in values


def _trimmed(fields: list[str], width: int | None) -> list[str]:
    """Fields less the empty ones beyond the header, which trailing delimiters make."""
    if width is not None and len(fields) > width and not any(value.strip() for value in fields[width:]):
        return fields[:width]
    return fields
