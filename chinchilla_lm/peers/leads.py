"""How far we are ahead of the best of the others: like bits with like, and best with best."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from chinchilla_lm.peers.table import OURS

Row = dict[str, Any]

# Of a weight, all counted: more of a difference is another bargain between speed and quality.
LIKE_BITS = 0.3
MEASURES = {
    "prefill": "prefill",
    "decode": "decode",
    "long": "decode at 1,024",
    "batch": "8 together",
    "texts": "texts/s",
    "single": "latency",
}


def alike(row: Row, other: Row) -> bool:
    """Whether two rows have as many bits a weight."""
    ours, theirs = row.get("bits_per_weight"), other.get("bits_per_weight")
    return ours is not None and theirs is not None and abs(ours - theirs) <= LIKE_BITS


def leads(rows: Sequence[Row], ratios: Sequence[Row]) -> list[Row]:
    """By measure, the ratio of each of our rows over the fastest other of as many bits, and (bits: None) of our fastest
    over the fastest of all: `value` and `spread` as in `ratios`. Who is fastest goes by the median."""
    timed = [row for row in rows if row.get("seconds")]
    mine, others = ([row for row in timed if (row["engine"] == OURS) is ours] for ours in (True, False))
    found = []
    for row in mine:
        like = [one for one in others if alike(row, one)]
        found += [lead | {"bits": row["bits_per_weight"]} for lead in _leads([row], like, ratios)]
    return found + [lead | {"bits": None} for lead in _leads(mine, others, ratios)]


def alone(rows: Sequence[Row]) -> list[Row]:
    """Our rows that no other program's has as many bits as."""
    timed = [row for row in rows if row.get("seconds")]
    others = [row for row in timed if row["engine"] != OURS]
    return [row for row in timed if row["engine"] == OURS and not any(alike(row, one) for one in others)]


def _leads(mine: Sequence[Row], others: Sequence[Row], ratios: Sequence[Row]) -> list[Row]:
    found = []
    for measure in MEASURES:
        best, theirs = _fastest(mine, measure), _fastest(others, measure)
        if best is None or theirs is None:
            continue
        wanted = {f"over_{key}": theirs[key] for key in ("engine", "format", "cache")}
        wanted |= {"format": best["format"], "cache": best["cache"], "measure": measure}
        found += [one for one in ratios if wanted.items() <= one.items()]
    return found


def _fastest(rows: Sequence[Row], measure: str) -> Row | None:
    timed = [row for row in rows if row["seconds"].get(measure)]
    taken: Callable[[Row], float] = lambda row: float(np.median(row["seconds"][measure]))  # noqa: E731
    return min(timed, key=taken, default=None)


def form_text(form: str, cache: str) -> str:
    """A format with that of its keys and values behind a slash."""
    return f"{form}/{cache}" if cache else form


def leads_table(found: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Headings and cells: a row for each of our rows, the last for best with best."""
    measures = [measure for measure in MEASURES if any(lead["measure"] == measure for lead in found)]
    lines: dict[tuple[str, str], dict[str, str]] = {}
    for lead in found:
        of_all, ours = lead["bits"] is None, form_text(lead["format"], lead["cache"])
        theirs = form_text(lead["over_format"], lead["over_cache"])
        line = ("our best", "best of all") if of_all else (ours, f"best of {lead['bits']:.1f} ± {LIKE_BITS} bits")
        low, high = lead["spread"]
        over = f"{ours} over " if of_all else ""
        text = f"{lead['value']:.2f} [{low:.2f}, {high:.2f}] {over}{lead['over_engine']} {theirs}"
        lines.setdefault(line, {})[lead["measure"]] = text
    names = ["ours", "over the", *(MEASURES[measure] for measure in measures)]
    return names, [[*line, *(cells.get(measure, "") for measure in measures)] for line, cells in lines.items()]
