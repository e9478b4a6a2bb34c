"""Dates as data sets write them, made into ISO 8601, so that text order is time order.

`6/9/2017` is September in London and June in New York. Which, is decided over the whole column: a first number above 12
anywhere proves day first, a second one above 12 proves month first.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import UTC, date, datetime

from chinchilla_lm.errors import InputError

# A year outside is a damaged date, as in `0201-04-27`; wide enough for historical newspapers.
_YEARS = range(1400, 2200)
_NUMERIC = re.compile(r"(\d{1,2})[-/.](\d{1,2})[-/.](\d{4})(?:[ T](\d{1,2}:\d{2}(?::\d{2})?))?")
_PARTIAL = re.compile(r"(\d{4})(?:-(\d{2}))?")
_EPOCH = re.compile(r"\d{9,10}(?:\.\d+)?|\d{13}")  # seconds from 1973 to 2286, or milliseconds


def day_first(values: Iterable[str], where: str) -> bool:
    """Whether a column writes the day before the month; True where nothing tells.

    Raises:
        InputError: some dates prove one order and some the other.
    """
    parts = [match for value in values if (match := _NUMERIC.fullmatch(value.strip()))]
    day = next((match[0] for match in parts if int(match[1]) > 12), None)
    month = next((match[0] for match in parts if int(match[2]) > 12), None)
    if day and month:
        raise InputError(f"{where}: {day!r} is day first, {month!r} month first; write the dates as YYYY-MM-DD")
    return month is None


def to_iso(value: str, days_first: bool) -> str | None:
    """ISO 8601 of a date or time, in UTC where it names a zone; None where it is not a date.

    Reads ISO 8601 (also cut to the month or year), D/M/Y or M/D/Y with /, - or ., and Unix seconds or milliseconds.
    """
    value = value.strip()
    try:
        if _EPOCH.fullmatch(value):
            seconds = float(value) / (1000 if len(value) == 13 else 1)
            return datetime.fromtimestamp(seconds, UTC).replace(tzinfo=None).isoformat(timespec="seconds")
        if match := _NUMERIC.fullmatch(value):
            day, month = (1, 2) if days_first else (2, 1)
            iso = f"{match[3]}-{int(match[month]):02}-{int(match[day]):02}"
            value = f"{iso}T{match[4].zfill(5)}" if match[4] else iso
        elif match := _PARTIAL.fullmatch(value):
            date(int(match[1]), int(match[2] or 1), 1)
            return value if int(match[1]) in _YEARS else None
        moment = datetime.fromisoformat(value)
    except (ValueError, OverflowError, OSError):
        return None
    if moment.year not in _YEARS:
        return None
    if len(value) <= len("2020-01-01"):
        return moment.date().isoformat()
    if moment.tzinfo is not None:
        moment = moment.astimezone(UTC).replace(tzinfo=None)
    return moment.isoformat(timespec="seconds")
