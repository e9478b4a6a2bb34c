"""The numbers of a report, formatted once, so that Markdown and HTML cannot disagree.

Everything here turns a value of the report dictionary into plain, unescaped text; escaping belongs to whoever prints
it. A value that is missing, NaN or infinite prints as an en dash. Negative numbers carry a true minus sign (U+2212).
Decimals follow from what the number is: two for points and percent, three significant digits for what a clock measured.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

Report = Mapping[str, Any]

MISSING = "–"
MINUS = "\N{MINUS SIGN}"


def finite(value: object) -> float | None:
    """The value as a float, or None where there is no finite number (a bool is not a number here)."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def plain(value: object) -> str:
    """Any value as text that UTF-8 and XML can hold: control characters and lone surrogates are replaced."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(plain(item) for item in value) or MISSING
    if isinstance(value, float):
        return f"{value:.6g}".replace("-", MINUS, 1) if value < 0 else f"{value:.6g}"
    text = str(value).encode("utf-8", "replace").decode("utf-8")
    return "".join(char if _printable(char) else "\N{REPLACEMENT CHARACTER}" for char in text)


def _printable(char: str) -> bool:
    """Whether XML 1.0 allows the character."""
    return char in "\n\t" or (ord(char) >= 0x20 and not 0x7F <= ord(char) <= 0x9F and char not in "\ufffe\uffff")


def fixed(value: object, decimals: int) -> str:
    """`-1234.5` → `−1,234.50` at two decimals."""
    number = finite(value)
    if number is None:
        return MISSING
    text = f"{abs(number):,.{decimals}f}"
    negative = number < 0 and any(char in "123456789" for char in text)
    return MINUS + text if negative else text


def significant(value: object, digits: int = 3) -> str:
    """A number at `digits` significant digits; whole numbers keep all of theirs, tiny ones turn scientific."""
    number = finite(value)
    if number is None:
        return MISSING
    if number == 0:
        return "0"
    exponent = int(f"{abs(number):.{digits - 1}e}".partition("e")[2])  # of the rounded number: 0.9999 is 1.00
    if exponent < -4:
        return f"{number:.{digits - 1}e}".replace("-", MINUS)
    return fixed(number, max(0, digits - 1 - exponent))


def quality(value: object, unit: str | None) -> str:
    """A quality metric: two decimals in points and percent, four significant digits in any other unit."""
    return fixed(value, 2) if unit in ("points", "percent") else significant(value, 4)


def signed(text: str) -> str:
    """Puts `+` before the text of a number that is neither negative, zero nor missing."""
    return "+" + text if text[0] != MINUS and any(char in "123456789" for char in text) else text


def with_unit(text: str, unit: str | None) -> str:
    """`−0.31`, `points` → `−0.31 points`; percent becomes its sign."""
    if not unit or text == MISSING:
        return text
    return f"{text} {'%' if unit == 'percent' else plain(unit)}"


def interval(low: str, high: str) -> str:
    """`[low, high]`, or nothing where neither end is known."""
    return "" if low == high == MISSING else f"[{low}, {high}]"


def times(value: object) -> str:
    """A ratio: `2.13×`."""
    text = fixed(value, 2)
    return text if text == MISSING else text + "×"


def count(value: object) -> str:
    """A whole number with thousands separated."""
    return fixed(value, 0)


def scaled(value: object, units: Sequence[str]) -> str:
    """Three significant digits in the largest fitting power of 1000: `22.7 M`, `45.3 MB`."""
    number = finite(value)
    if number is None:
        return MISSING
    power = 0
    while abs(number) >= 999.5 and power < len(units) - 1:
        number, power = number / 1000, power + 1
    text = significant(number) if power else count(number)
    return f"{text} {units[power]}".rstrip()


def parameters(value: object) -> str:
    """A number of parameters, in millions (M) or billions (B)."""
    return scaled(value, ("", "K", "M", "B", "T"))


def size(value: object) -> str:
    """Bytes in decimal units."""
    return scaled(value, ("B", "kB", "MB", "GB", "TB"))


def duration(seconds: object) -> str:
    """`0.84 s`, `42 s`, `3 min 12 s`, `1 h 04 min`."""
    value = finite(seconds)
    if value is None:
        return MISSING
    if value < 59.5:
        return f"{significant(value, 2)} s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def moment(created: object) -> str:
    """An ISO time for people; text that is not one stays as it is."""
    try:
        when = datetime.fromisoformat(str(created))
    except ValueError:
        return plain(created)
    return f"{when.day} {when:%B %Y, %H:%M %Z}".strip()


def flat(mapping: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested mappings as `outer.inner`, value."""
    for key, value in mapping.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield plain(f"{prefix}{key}"), MISSING if isinstance(value, Mapping) else plain(value)
