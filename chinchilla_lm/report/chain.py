"""The chain as a strip: a column a block, attention above and MLP below; kept is solid, dropped is hollow.

With measured costs the solid cells are shaded: the darker, the dearer the link would be to drop. Costs span orders of
magnitude, so the shade is logarithmic over at most three decades below the dearest link. A letter says in which format
a link is packed, where the result is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from chinchilla_lm.report.drawing import drawing, element, hover, label
from chinchilla_lm.report.numbers import Report, finite, plain, significant
from chinchilla_lm.report.packed import letters, part_words, parts
from chinchilla_lm.report.words import KIND_LABELS, chain_words, choices

GUTTER = 68.0  # px, for the names of the two lines
CELL = 24.0  # px, height
PITCH = (18, 34)  # px, narrowest and widest column
LIGHTEST, DARKEST = 0.26, 1.0  # opacity of the cheapest and of the dearest link
DECADES = 3
STRIDE = 5  # blocks between numbers, where there is no room for all


def single_costs(report: Report) -> dict[str, Mapping[str, Any]]:
    """The cost entry of each single link; of several (norm kept, norm lost) the cheapest, as a search would take it."""
    table: dict[str, Mapping[str, Any]] = {}
    for entry in report.get("costs") or []:
        links, cost = entry["links"], finite(entry.get("cost"))
        if len(links) != 1 or cost is None:
            continue
        known = table.get(links[0])
        if known is None or cost < known["cost"]:
            table[links[0]] = entry
    return table


def cost_range(costs: Mapping[str, Mapping[str, Any]]) -> tuple[float, float] | None:
    """Lowest and highest cost that the shades tell apart; None where no cost is positive."""
    positive = [entry["cost"] for entry in costs.values() if entry["cost"] > 0]
    if not positive:
        return None
    high = max(positive)
    return max(min(positive), high / 10**DECADES), high


def shade(cost: float, limits: tuple[float, float]) -> float:
    """Opacity of a cost, logarithmic between the limits."""
    low, high = limits
    part = 1.0 if high <= low else math.log(max(cost, low) / low) / math.log(high / low)
    return LIGHTEST + (DARKEST - LIGHTEST) * min(part, 1.0)


def per_line(blocks: int, width: int) -> int:
    """Blocks in one line of the strip, so that all lines are about equally long and no column is too narrow."""
    most = max(1, int((width - GUTTER) // PITCH[0]))
    lines = math.ceil(blocks / most)
    return math.ceil(blocks / lines)


def chain_figure(report: Report, width: int) -> str:
    """The strip of the plan at a width in px."""
    blocks = int(report["plan"]["num_blocks"])
    if blocks < 1:
        return ""
    chosen, costs, packed, named = choices(report), single_costs(report), parts(report), letters(report)
    limits = cost_range(costs)
    columns = per_line(blocks, width)
    pitch = min(float(PITCH[1]), (width - GUTTER) / columns)
    height = 2 * CELL + 26
    drawn = []
    for block in range(blocks):
        row, column = divmod(block, columns)
        x, y = GUTTER + column * pitch, row * (height + 8)
        if column == 0:
            drawn += [label(0, y + CELL * (i + 0.68), name, "soft") for i, name in enumerate(KIND_LABELS.values())]
        for index, kind in enumerate(KIND_LABELS):
            choice = chosen.get(f"{block}.{kind}")
            if choice is not None:
                part = packed.get(choice["link"])
                said = cell_words(choice, costs.get(choice["link"]), part)
                cell = _cell(x, y + index * CELL, pitch, choice, costs.get(choice["link"]), limits)
                if part is not None:
                    middle = y + index * CELL + CELL / 2 + 3
                    cell.append(label(x + pitch / 2 - 1, middle, named[plain(part["format"])], "letter", "middle"))
                drawn.append(hover(said, *cell))
        if pitch >= 24 or block % STRIDE == 0:
            drawn.append(label(x + pitch / 2 - 1, y + 2 * CELL + 16, str(block), "tick", "middle"))
    lines = math.ceil(blocks / columns)
    return drawing("chain", width, lines * (height + 8) - 8, chain_words(report), *drawn)


def _cell(
    x: float,
    y: float,
    pitch: float,
    choice: Mapping[str, Any],
    entry: Mapping[str, Any] | None,
    limits: tuple[float, float] | None,
) -> list[str]:
    """One link; `x`, `y` is the corner of its place, two pixels of which are the gap to the next."""
    dropped = choice["action"] == "drop"
    box: dict[str, object] = {"x": x + 0.5, "y": y + 0.5, "width": pitch - 3, "height": CELL - 3, "rx": 2.5}
    if dropped:
        drawn = [element("rect", {**box, "class": "hollow"})]
        if choice.get("norm") == "keep":
            middle = y + CELL / 2 - 1
            drawn.append(
                element("rect", {"x": x + 4, "y": middle - 1, "width": pitch - 10, "height": 2.0, "class": "norm"})
            )
        return drawn
    opacity = shade(entry["cost"], limits) if entry and limits else LIGHTEST if limits else DARKEST
    return [element("rect", {**box, "class": "solid", "fill-opacity": f"{opacity:.3f}"})]


def cell_words(
    choice: Mapping[str, Any], entry: Mapping[str, Any] | None, part: Mapping[str, Any] | None = None
) -> str:
    """What a cell says when pointed at."""
    words = f"{plain(choice['link'])}: {'dropped' if choice['action'] == 'drop' else 'kept'}"
    if choice.get("norm"):
        words += f", norm {'kept' if choice['norm'] == 'keep' else 'lost'}"
    if part is not None:
        words += f" in {part_words(part)}"
    if entry:
        words += f"; dropping it costs {significant(entry['cost'])}"
        time = finite(entry.get("time_us"))
        words += "" if time is None else f", saves {significant(time)} µs"
    return words
