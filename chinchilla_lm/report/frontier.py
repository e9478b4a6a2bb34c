"""Quality against latency, and against size where it is known: every plan that was measured, what was chosen, and the
ways not taken.

The method is told by shape and by colour, ours in blues and rounded shapes, baselines in warm colours and angular ones
(the palette is Okabe and Ito's, made for colour-blind readers); hollow is before recovery, solid after.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from chinchilla_lm.report.drawing import (
    FONT,
    Axis,
    drawing,
    element,
    hover,
    label,
    line,
    linear,
    logarithmic,
    text_width,
)
from chinchilla_lm.report.numbers import Report, finite, plain, significant, times
from chinchilla_lm.report.packed import size_cells

# method: (shape, name in the legend, whether it is ours). The order is that of the legend.
METHODS: dict[str, tuple[str, str, str]] = {
    "original": ("square", "original model", "base"),
    "chosen": ("star", "chosen plan", "ours"),
    "refine": ("circle", "shortest path, refined", "ours"),
    "mix": ("hexagon", "drops and formats", "ours"),
    "dp": ("diamond", "shortest path", "ours"),
    "greedy": ("triangle", "greedy", "baseline"),
    "top": ("bar", "from the top", "baseline"),
    "one-shot": ("plus", "one-shot ranking", "baseline"),
    "cosine": ("cross", "cosine similarity", "baseline"),
    "single": ("post", "one format for all", "baseline"),
}


@dataclass(frozen=True)
class Across:
    """What the points are laid out by: their key, what its unit is of the axis', and the axis' name."""

    key: str
    scale: float
    name: str


LATENCY, SIZE = Across("latency_ms", 1.0, "latency, ms"), Across("bytes", 1e-6, "size, MB")
AFTER = "after recovery"
LOG_FROM = 30  # a quality that spans more than this factor is drawn on a logarithmic axis
RADIUS = 5.5  # px


def style_of(item: Mapping[str, Any]) -> str:
    """How a point is drawn: as its method, one of several that are drawn alike, or as any other."""
    style = str(item.get("style") or item.get("method"))
    return style if style in METHODS else "other"


@dataclass(frozen=True)
class Point:
    """One point of the frontier at its pixel."""

    x: float
    y: float
    item: Mapping[str, Any]

    @property
    def style(self) -> str:
        """Its method, as far as it has a shape of its own; a chosen plan looks like the method that found it."""
        return style_of(self.item)

    @property
    def hollow(self) -> bool:
        """Before recovery; the original never needs any."""
        return self.item.get("stage") != AFTER and self.style != "original"

    @property
    def chosen(self) -> bool:
        """Whether this is the plan that was taken."""
        return bool(self.item.get("chosen")) or self.style == "chosen"


@dataclass(frozen=True)
class Plot:
    """The axes and the points of a frontier, laid out for one width."""

    x: Axis
    y: Axis
    points: tuple[Point, ...]
    target: float | None  # pixel of the asked speedup
    height: float


def drawable(report: Report, by: Across = LATENCY) -> list[Mapping[str, Any]]:
    """The points that have both a place across and a quality."""
    points = report.get("frontier") or []
    return [p for p in points if finite(p.get(by.key)) is not None and finite(p.get("quality")) is not None]


def lay_out(report: Report, width: int, by: Across = LATENCY) -> Plot | None:
    """Axes that hold every point, bar and the target; None where there is nothing to draw."""
    items = drawable(report, by)
    if not items:
        return None
    height = 420.0 if width > 600 else 340.0
    target = target_latency(report, items) if by is LATENCY else finite((report.get("packed") or {}).get("memory_mb"))
    across = [by.scale * float(item[by.key]) for item in items] + ([target] if target is not None else [])
    room = 0.04 * (max(across) - min(across))  # a mark on the edge would cover the ticks
    across += [max(min(across) - room, 0.0), max(across) + room]
    up = [float(item[key]) for item in items for key in ("quality", "low", "high") if finite(item.get(key)) is not None]
    values = [float(item["quality"]) for item in items]
    x = linear(across, 58.0, width - 16.0, most=8 if width > 600 else 5)
    bottom, top = height - 48, 34.0
    y = logarithmic(_floored(up, values), bottom, top) if spans_decades(values) else linear(up, bottom, top)
    places = [(x.at(by.scale * float(item[by.key])), y.at(float(item["quality"]))) for item in items]
    points = tuple(Point(*place, item) for place, item in zip(places, items, strict=True))
    return Plot(x, y, points, None if target is None else x.at(target), height)


def _floored(up: Iterable[float], values: Sequence[float]) -> list[float]:
    """Error bars that reach below the smallest positive value end there: a logarithm has no room for them."""
    floor = min(value for value in values if value > 0) / 2
    return [value if value <= 0 and value in values else max(value, floor) for value in up]


def spans_decades(values: Sequence[float]) -> bool:
    """Whether a logarithmic axis shows these values better."""
    positive = [value for value in values if value > 0]
    return len(positive) > 1 and min(values) >= 0 and max(positive) / min(positive) > LOG_FROM


def target_latency(report: Report, items: Sequence[Mapping[str, Any]]) -> float | None:
    """The latency that the asked speedup stands for, where the original was timed."""
    target = finite(report["speedup"].get("target"))
    original = next((float(item["latency_ms"]) for item in items if item.get("method") == "original"), None)
    return None if not target or original is None else original / target


def size_figure(report: Report, width: int) -> str:
    """The same against size, "" where no size is known."""
    return frontier_figure(report, width, SIZE)


def frontier_figure(report: Report, width: int, by: Across = LATENCY) -> str:
    """The scatter at a width in px, "" without points."""
    plot = lay_out(report, width, by)
    if plot is None:
        return ""
    labels = report.get("frontier_quality") or {}
    return drawing(
        "frontier",
        width,
        plot.height,
        f"{plain(labels.get('label'))} against {by.name.replace(',', ' in')}, {len(plot.points)} plans",
        *_frame(plot, labels, by),
        *_series(plot.points),
        *(_mark(point, plot.y) for point in sorted(plot.points, key=lambda point: point.chosen)),
        *_names(plot),
    )


def _frame(plot: Plot, labels: Mapping[str, Any], by: Across) -> list[str]:
    """Grid, axes and their names, the target, and where better is."""
    x, y, drawn = plot.x, plot.y, []
    for tick in y.ticks:
        drawn.append(line(x.start, y.at(tick), x.stop, y.at(tick), "grid"))
        drawn.append(label(x.start - 8, y.at(tick) + 4, y.tick_label(tick), "tick", "end"))
    base = y.start
    if y.zero is not None:
        base = y.zero
        drawn.append(label(x.start - 8, base + 4, "0", "tick", "end"))
    drawn.append(line(x.start, base, x.stop, base, "axis"))
    for tick in x.ticks:
        drawn.append(line(x.at(tick), base, x.at(tick), base + 4, "axis"))
        drawn.append(label(x.at(tick), base + 18, x.tick_label(tick), "tick", "middle"))
    arrow = "↑" if labels.get("higher_is_better") else "↓"
    scale = "" if not y.log else " (log scale)" if y.zero is None else " (log scale, 0 set apart)"
    drawn.append(label(0, 14, f"{arrow} {plain(labels.get('label') or 'quality')}{scale}", "soft"))
    drawn.append(label(x.stop, plot.height - 6, f"← {by.name}", "soft", "end"))
    if plot.target is not None:
        drawn.append(line(plot.target, y.stop, plot.target, base, "target"))
    return drawn


def _runs(points: Sequence[Point]) -> list[tuple[str, list[Point]]]:
    """The points of each method and stage in order of latency, with the method's style; single points apart."""
    groups: dict[tuple[str, object], list[Point]] = {}
    for point in points:
        if point.style not in ("original", "chosen", "other"):
            groups.setdefault((point.style, point.item.get("stage")), []).append(point)
    runs = [(style, sorted(group, key=lambda point: point.x)) for (style, _), group in groups.items()]
    return [(style, run) for style, run in runs if len(run) > 1]


def _series(points: Sequence[Point]) -> list[str]:
    """A line through each run, and the step that recovery made."""
    drawn = []
    for style, run in _runs(points):
        path = " ".join(f"{point.x:.1f},{point.y:.1f}" for point in run)
        drawn.append(element("polyline", {"points": path, "class": f"path m-{style}"}))
    chosen = sorted((point for point in points if point.chosen), key=lambda point: not point.hollow)
    if len(chosen) == 2 and chosen[0].hollow != chosen[1].hollow:
        drawn.append(_arrow(chosen[0], chosen[1]))
    return drawn


def _arrow(start: Point, stop: Point) -> str:
    """From the chosen plan before recovery to the same plan after it."""
    across, up = stop.x - start.x, stop.y - start.y
    length = math.hypot(across, up)
    if length < 6 * RADIUS:
        return ""
    across, up = across / length, up / length
    x1, y1 = start.x + across * 2 * RADIUS, start.y + up * 2 * RADIUS
    x2, y2 = stop.x - across * 2.4 * RADIUS, stop.y - up * 2.4 * RADIUS
    wings = [(x2 - 8 * across + side * 4 * up, y2 - 8 * up - side * 4 * across) for side in (1, -1)]
    head = f"M{wings[0][0]:.1f} {wings[0][1]:.1f}L{x2:.1f} {y2:.1f}L{wings[1][0]:.1f} {wings[1][1]:.1f}"
    return line(x1, y1, x2, y2, "arrow") + element("path", {"d": head, "class": "arrow"})


def _mark(point: Point, y: Axis) -> str:
    """A point with its error bar; the chosen one wears a ring."""
    low, high = finite(point.item.get("low")), finite(point.item.get("high"))
    parts = []
    if low is not None and high is not None:
        parts.append(line(point.x, y.at(low), point.x, y.at(high), f"bar m-{point.style}"))
    if point.chosen:
        parts.append(element("circle", {"cx": point.x, "cy": point.y, "r": RADIUS * 1.9, "class": "ring"}))
    parts.append(glyph(point.style, point.x, point.y, point.hollow))
    return hover(point_words(point.item), *parts)


def glyph(style: str, x: float, y: float, hollow: bool) -> str:
    """The shape of a method in its colour, hollow or solid; a method without one gets a wedge."""
    shape = METHODS[style][0] if style in METHODS else {"stage": "circle"}.get(style, "wedge")
    role = f"glyph m-{style}{' hollow-glyph' if hollow else ''}"
    if shape == "circle":
        return element("circle", {"cx": x, "cy": y, "r": RADIUS, "class": role})
    corners = " ".join(f"{x + dx * RADIUS:.1f},{y + dy * RADIUS:.1f}" for dx, dy in OUTLINES[shape])
    return element("polygon", {"points": corners, "class": role})


def _turned(outline: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The outline turned by an eighth."""
    half = math.sqrt(0.5)
    return [((dx - dy) * half, (dx + dy) * half) for dx, dy in outline]


_PLUS = [(-0.4, -1.2), (0.4, -1.2), (0.4, -0.4), (1.2, -0.4), (1.2, 0.4), (0.4, 0.4)]
_PLUS += [(-dx, -dy) for dx, dy in _PLUS]
# Outlines in units of the radius, chosen to look equally large.
OUTLINES: dict[str, list[tuple[float, float]]] = {
    "square": [(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)],
    "diamond": [(0, -1.25), (1.25, 0), (0, 1.25), (-1.25, 0)],
    "triangle": [(0, -1.2), (1.15, 0.85), (-1.15, 0.85)],
    "bar": [(-1.2, -0.45), (1.2, -0.45), (1.2, 0.45), (-1.2, 0.45)],
    "post": [(-0.45, -1.2), (0.45, -1.2), (0.45, 1.2), (-0.45, 1.2)],
    "hexagon": [(1.15 * math.sin(i * math.pi / 3), -1.15 * math.cos(i * math.pi / 3)) for i in range(6)],
    "wedge": [(0, 1.2), (1.15, -0.85), (-1.15, -0.85)],
    "plus": _PLUS,
    "cross": _turned(_PLUS),
    "star": [(r * math.sin(i * math.pi / 5), -r * math.cos(i * math.pi / 5)) for i, r in enumerate([1.45, 0.62] * 5)],
}


def point_words(item: Mapping[str, Any]) -> str:
    """What a point says when pointed at."""
    method = str(item.get("method"))
    name = METHODS[method][1] if method in METHODS else plain(method)
    bits = [f"{name}, {plain(item['stage'])}" if item.get("stage") and method != "original" else name]
    bits.append(f"{significant(item.get('latency_ms'))} ms, {times(item.get('speedup'))}")
    bits.append(f"quality {significant(item.get('quality'))}")
    if finite(item.get("links")) is not None:
        bits.append(f"{plain(item['links'])} links")
    if finite(item.get("bytes")) is not None:
        bits.append("{}, {} bits a weight".format(*size_cells(item)))
    return "; ".join(bits)


# ---- names in the plot ----------------------------------------------------------------------------------------------

Box = tuple[float, float, float, float]
Place = tuple[float, float, str]  # where a name's baseline begins, has its middle or ends, px
Name = tuple[tuple[str, ...], str, list[Place]]  # words and what to say where they do not fit, class, places
CLEARANCE = 3 * RADIUS  # px between a point and its name
STEP = 5.0  # px between the spots of a line that a name is tested against


def _names(plot: Plot) -> list[str]:
    """The chosen plan, the target, the original and each method by name, where a name fits without covering a point."""
    taken = [_around(point) for point in plot.points]
    lines = [spot for line_ends in _lines(plot) for spot in _spots(*line_ends)]
    drawn = []
    for alternatives, role, places in _wanted(plot):
        for words in alternatives:
            boxes = [(_box(x, y, words, anchor), (x, y, anchor)) for x, y, anchor in places]
            free = [each for each in boxes if _within(plot, each[0]) and not any(_overlap(each[0], b) for b in taken)]
            if free:
                # Crossing a line is bearable (a name has a halo), so it only counts; the first of the best places wins.
                box, (x, y, anchor) = min(free, key=lambda each: sum(_inside(spot, each[0]) for spot in lines))
                taken.append(box)
                drawn.append(label(x, y, words, role, anchor))
                break
    return drawn


def _wanted(plot: Plot) -> list[Name]:
    """Each name with its places, the best first; the most important name first."""
    wanted: list[Name] = []
    points = plot.points
    for point in sorted((point for point in points if point.chosen), key=lambda point: point.hollow)[:1]:
        words = f"chosen: {times(point.item.get('speedup'))}, {significant(point.item.get('quality'))}"
        wanted.append(((words, "chosen"), "strong", _places(point, "start", "end")))
    if plot.target is not None:
        heights = (plot.y.stop + 10, (plot.y.zero or plot.y.start) - 8)
        sides = ((plot.target + 5, "start"), (plot.target - 5, "end"))
        wanted.append((("target",), "label soft", [(x, y, anchor) for y in heights for x, anchor in sides]))
    for point in [point for point in points if point.style == "original"][:1]:
        wanted.append((("original",), "label", _places(point, "end", "start")))
    for style in METHODS:
        ends = sorted((p for p in points if p.style == style and not p.chosen), key=lambda point: point.x)
        if style == "single":
            wanted += [
                ((plain(p.item.get("method")),), f"label name m-{style}", _places(p, "start", "end")) for p in ends
            ]
        elif ends and style not in ("original", "chosen"):
            wanted.append(((style,), f"label name m-{style}", _places(ends[-1], "start") + _places(ends[0], "end")))
    return wanted


def _places(point: Point, *sides: str) -> list[Place]:
    """Places for the name of a point: beside it, then above and below."""
    x, y = point.x, point.y
    beside = {"start": (x + CLEARANCE, y + 4, "start"), "end": (x - CLEARANCE, y + 4, "end")}
    above, below = y - CLEARANCE, y + CLEARANCE + 9
    around = [(x, above, "middle"), (x, below, "middle"), (x + RADIUS, above, "end"), (x - RADIUS, above, "start")]
    return [*(beside[side] for side in sides), *around]


def _within(plot: Plot, box: Box) -> bool:
    """Whether a name stays inside the plot area; a little room beside and above it is free as well."""
    across = plot.x.start <= box[0] and box[2] <= plot.x.stop + 16
    return across and plot.y.stop - FONT <= box[1] and box[3] <= (plot.y.zero or plot.y.start)


def _box(x: float, y: float, words: str, anchor: str) -> Box:
    """What a name covers when its baseline is at y."""
    wide = text_width(words) * 1.05
    left = x - {"start": 0.0, "middle": wide / 2, "end": wide}[anchor]
    return left, y - FONT, left + wide, y + 3


def _around(point: Point) -> Box:
    half = 2 * RADIUS if point.chosen else 1.5 * RADIUS
    return point.x - half, point.y - half, point.x + half, point.y + half


def _lines(plot: Plot) -> list[tuple[float, float, float, float]]:
    """Everything straight between points: the series and the target."""
    ends = [(a.x, a.y, b.x, b.y) for _, run in _runs(plot.points) for a, b in pairwise(run)]
    if plot.target is not None:
        ends.append((plot.target, plot.y.stop, plot.target, plot.y.zero or plot.y.start))
    return ends


def _spots(x1: float, y1: float, x2: float, y2: float) -> list[tuple[float, float]]:
    """Points along a line."""
    parts = max(1, round(math.hypot(x2 - x1, y2 - y1) / STEP))
    return [(x1 + (x2 - x1) * i / parts, y1 + (y2 - y1) * i / parts) for i in range(parts + 1)]


def _inside(spot: tuple[float, float], box: Box) -> bool:
    return box[0] < spot[0] < box[2] and box[1] < spot[1] < box[3]


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
