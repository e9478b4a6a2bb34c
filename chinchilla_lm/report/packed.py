"""What a packed result is packed in: letters for the strip, a sentence, and the rows of its tables.

Plain, unescaped text, as in `words`. A report without a packed result has none of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from chinchilla_lm.report.numbers import Report, count, finite, fixed, interval, plain, size, times

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
FORMATS_HEADS = ("format", "links", "size", "bits a weight")
PARTS_HEADS = ("part", "format", "size", "bits a weight")


def parts(report: Report) -> dict[str, Mapping[str, Any]]:
    """The links that are left, and a head, with format, bytes and bits, by name; empty where nothing is packed."""
    packed = report.get("packed") or {}
    return {part["what"]: part for part in packed.get("parts") or []}


def letters(report: Report) -> dict[str, str]:
    """A letter for each format, A for the one with the most bits; beyond Z they begin again."""
    bits = {plain(part["format"]): finite(part.get("bits")) or 0.0 for part in parts(report).values()}
    order = sorted(bits, key=lambda form: -bits[form])
    return {form: LETTERS[index % len(LETTERS)] for index, form in enumerate(order)}


def part_words(part: Mapping[str, Any]) -> str:
    """`int4, 4.50 bits a weight, 12.3 kB`."""
    return f"{plain(part['format'])}, {fixed(part.get('bits'), 2)} bits a weight, {size(part.get('bytes'))}"


def packed_words(report: Report) -> str:
    """How large the program is, and how much faster than the original in one format; nothing where there is none."""
    packed = report.get("packed") or {}
    if not packed:
        return ""
    words = (
        f"Packed in {size(packed.get('bytes'))}, {fixed(packed.get('bits'), 2)} bits a weight, scales, minima, "
        "codebooks, head and embeddings counted"
    )
    limit = finite(packed.get("memory_mb"))
    words += "." if limit is None else f", of {fixed(limit, 1)} MB that were allowed."
    single = packed.get("single") or {}
    if finite(single.get("value")) is not None:
        limits = interval(fixed(single.get("low"), 2), fixed(single.get("high"), 2))
        ratio = " ".join(filter(None, (times(single["value"]), limits)))
        words += f" Against the original in {plain(single.get('format'))} alone, in the same rounds: {ratio}."
    return words


def format_rows(report: Report) -> list[list[str]]:
    """A row for each format of links, and one for the head, under FORMATS_HEADS."""
    rows = []
    known = parts(report)
    for form, letter in letters(report).items():
        some = [part for name, part in known.items() if plain(part["format"]) == form and name != "head"]
        if some:
            total = sum(finite(part.get("bytes")) or 0 for part in some)
            weights = sum(8 * (finite(part.get("bytes")) or 0) / (finite(part.get("bits")) or 1) for part in some)
            bits = 8 * total / weights if weights else None
            rows.append([f"{letter} {form}", count(len(some)), size(total), fixed(bits, 2)])
    if "head" in known:
        head = known["head"]
        rows.append([f"head: {plain(head['format'])}", "", size(head.get("bytes")), fixed(head.get("bits"), 2)])
    return rows


def part_rows(report: Report) -> list[list[str]]:
    """A row for each link, and one for the head, under PARTS_HEADS."""
    return [
        [plain(name), plain(part["format"]), size(part.get("bytes")), fixed(part.get("bits"), 2)]
        for name, part in parts(report).items()
    ]


def has_sizes(report: Report) -> bool:
    """Whether the points of the frontier have bytes and bits."""
    return any(finite(point.get("bytes")) is not None for point in report.get("frontier") or [])


def size_cells(point: Mapping[str, Any]) -> tuple[str, str]:
    """Size and bits a weight of a point of the frontier."""
    return size(point.get("bytes")), fixed(point.get("bits"), 2)
