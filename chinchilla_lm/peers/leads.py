"""How far we are ahead of the best of the others: like bits with like, and best with best."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from chinchilla_lm.peers.table import OURS

Row = dict[str, Any]

FLOATS = 16  # bits of what is not rounded to integers, float32 too
MEASURES = {
    "prefill": "prefill",
    "decode": "decode",
    "long": "decode at 1,024",
    "batch": "8 together",
    "texts": "texts/s",
    "single": "latency",
}


def bits(form: str) -> int:
    """Bits of a weight: int8, int8-row and Q8_0 have 8, int4, Q4_1 and IQ4_NL have 4; see FLOATS."""
    found = re.match(r"(?:int|i?q)(\d)", form, re.IGNORECASE)
    return FLOATS if found is None else int(found[1])


def leads(rows: Sequence[Row], ratios: Sequence[Row]) -> list[Row]:
    """By measure, the ratio of each of our formats over the fastest other of as many bits, and (bits: None) of our
    fastest over the fastest of all: `value` and `spread` as in `ratios`. Who is fastest goes by the median."""
    timed = [row for row in rows if row.get("seconds")]
    mine, others = ([row for row in timed if (row["engine"] == OURS) is ours] for ours in (True, False))
    found = []
    for row in mine:
        alike = [one for one in others if bits(one["format"]) == bits(row["format"])]
        found += [lead | {"bits": bits(row["format"])} for lead in _leads([row], alike, ratios)]
    return found + [lead | {"bits": None} for lead in _leads(mine, others, ratios)]


def _leads(mine: Sequence[Row], others: Sequence[Row], ratios: Sequence[Row]) -> list[Row]:
    found = []
    for measure in MEASURES:
        best, theirs = _fastest(mine, measure), _fastest(others, measure)
        if best is None or theirs is None:
            continue
        wanted = {"format": best["format"], "over_engine": theirs["engine"], "over_format": theirs["format"]}
        wanted["measure"] = measure
        found += [one for one in ratios if wanted.items() <= one.items()]
    return found


def _fastest(rows: Sequence[Row], measure: str) -> Row | None:
    timed = [row for row in rows if row["seconds"].get(measure)]
    taken: Callable[[Row], float] = lambda row: float(np.median(row["seconds"][measure]))  # noqa: E731
    return min(timed, key=taken, default=None)


def leads_table(found: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Headings and cells: a row for each of our formats, the last for best with best."""
    measures = [measure for measure in MEASURES if any(lead["measure"] == measure for lead in found)]
    lines: dict[tuple[str, str], dict[str, str]] = {}
    for lead in found:
        of_all = lead["bits"] is None
        like = "floats" if lead["bits"] == FLOATS else f"{lead['bits']} bits"
        line = ("our best", "best of all") if of_all else (lead["format"], f"best of {like}")
        low, high = lead["spread"]
        ours = f"{lead['format']} over " if of_all else ""
        text = f"{lead['value']:.2f} [{low:.2f}, {high:.2f}] {ours}{lead['over_engine']} {lead['over_format']}"
        lines.setdefault(line, {})[lead["measure"]] = text
    names = ["ours", "over the", *(MEASURES[measure] for measure in measures)]
    return names, [[*line, *(cells.get(measure, "") for measure in measures)] for line, cells in lines.items()]
