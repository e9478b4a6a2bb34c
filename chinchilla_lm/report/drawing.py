"""Drawing: SVG elements, axes with nice ticks, and the certificate as an interval on an axis.

A figure is drawn twice, for a wide page and for a narrow one (`WIDTHS`, in CSS pixels at scale 1), because scaling one
drawing down to a phone would scale its text with it. The style sheet shows the one that fits. Colours are the style
sheet's too (classes only), so that one drawing serves light, dark and paper. No drawing carries an `id`, which would be
there twice. An element with a `<title>` says it on hover, with or without the script.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from chinchilla_lm.report.numbers import (
    MINUS,
    Report,
    finite,
    fixed,
    interval,
    plain,
    quality,
    signed,
    with_unit,
)
from chinchilla_lm.report.words import margin_line, metric_label

WIDTHS = {"wide": 880, "narrow": 420}
FONT = 13  # px, the size that the style sheet gives to SVG text
MOST_LOG_TICKS = 11  # above which only powers of ten are named
GLYPH = 0.56  # mean width of a character of the usual system fonts, in ems: measured on Segoe, San Francisco and DejaVu


def element(name: str, attributes: Mapping[str, object], *children: str) -> str:
    """An XML element. Attribute values are escaped here; children are markup, so text goes in through `text_of`."""
    inside = "".join(f' {key}="{_attribute(value)}"' for key, value in attributes.items())
    return f"<{name}{inside}>{''.join(children)}</{name}>" if children else f"<{name}{inside}/>"


def _attribute(value: object) -> str:
    """Coordinates at a tenth of a pixel, everything else as escaped text."""
    return f"{value:.1f}" if isinstance(value, float) else escape(plain(value))


def text_of(value: object) -> str:
    """Text as escaped markup."""
    return escape(plain(value))


def label(x: float, y: float, words: str, role: str = "label", anchor: str = "start") -> str:
    """A line of text with its baseline at y."""
    return element("text", {"x": x, "y": y, "class": role, "text-anchor": anchor}, text_of(words))


def line(x1: float, y1: float, x2: float, y2: float, role: str) -> str:
    """A straight line."""
    return element("line", {"x1": x1, "y1": y1, "x2": x2, "y2": y2, "class": role})


def hover(words: str, *children: str) -> str:
    """A group that says `words` when pointed at."""
    return element("g", {"class": "mark"}, element("title", {}, text_of(words)), *children)


def drawing(name: str, width: float, height: float, words: str, *children: str) -> str:
    """The SVG of one figure at one width; `words` is what a screen reader says in its place."""
    attributes = {"class": name, "viewBox": f"0 0 {width:.0f} {height:.0f}", "role": "img", "aria-label": words}
    return element("svg", attributes, *children)


def text_width(words: str) -> float:
    """Estimated width of a line of text, px."""
    return GLYPH * FONT * len(words)


@dataclass(frozen=True)
class Axis:
    """Data to pixels. A logarithmic axis has room for zero: `zero` is the pixel where it sits, apart from the rest."""

    low: float
    high: float
    start: float
    stop: float
    ticks: tuple[float, ...]
    log: bool = False
    zero: float | None = None
    decimals: int | None = None  # of the tick labels; None: as many as each needs

    def at(self, value: float) -> float:
        """The pixel of a value; what lies outside the axis is drawn at its end."""
        if self.zero is not None and value < self.low:
            return self.zero
        value = min(max(value, self.low), self.high)
        part = math.log(value / self.low) / math.log(self.high / self.low) if self.log else (value - self.low)
        part = part if self.log else part / (self.high - self.low)
        return self.start + part * (self.stop - self.start)

    def tick_label(self, value: float) -> str:
        """`0.05`, `1,000`, `−2.0`."""
        if self.decimals is not None:
            return fixed(value, self.decimals)
        return f"{value:,.10g}".replace("-", MINUS)


def nice_step(span: float, most: int) -> float:
    """The smallest of 1, 2, 5 × 10^k that cuts `span` into at most `most` parts."""
    raw = span / most
    power = 10.0 ** math.floor(math.log10(raw))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= raw * (1 - 1e-9))


def linear(values: Sequence[float], start: float, stop: float, most: int = 6, from_zero: bool = False) -> Axis:
    """An axis that holds all values and begins and ends on a tick."""
    low, high = min(values), max(values)
    if from_zero:
        low, high = min(low, 0.0), max(high, 0.0)
    if high - low <= 1e-9 * max(abs(low), abs(high)):  # the same but for rounding
        low, high = low - (abs(low) or 1) / 10, high + (abs(high) or 1) / 10
    step = nice_step(high - low, most)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = tuple(round(index * step, 12) for index in range(first, last + 1))
    return Axis(ticks[0], ticks[-1], start, stop, ticks, decimals=max(0, -math.floor(math.log10(step) + 1e-9)))


def logarithmic(values: Sequence[float], start: float, stop: float, zero_gap: float = 34) -> Axis:
    """A logarithmic axis for values of zero or more; zeros, where there are any, get `zero_gap` pixels of their own.

    Five decades at the most: what is smaller still (rounding noise of a model against itself) is drawn as zero.
    """
    high = max(values)
    positive = [value for value in values if value >= high * 1e-5]
    zeros = len(positive) < len(values)
    steps = [m * 10.0**k for k in range(_decade(min(positive)) - 1, _decade(high) + 2) for m in (1, 2, 5)]
    first = max(step for step in steps if step <= min(positive) * (1 + 1e-9))
    last = min(step for step in steps if step >= high * (1 - 1e-9))
    last = last if last > first else first * 10
    ticks = [step for step in steps if first * (1 - 1e-9) <= step <= last * (1 + 1e-9)]
    if len(ticks) > MOST_LOG_TICKS:
        powers = [step for step in steps if math.isclose(step, 10.0 ** round(math.log10(step)))]
        first = max(step for step in powers if step <= first * (1 + 1e-9))
        ticks = [step for step in powers if first <= step <= last * (1 + 1e-9)]
    begin = start + math.copysign(zero_gap, stop - start) if zeros else start
    return Axis(first, last, begin, stop, tuple(ticks), log=True, zero=start if zeros else None)


def _decade(value: float) -> int:
    return math.floor(math.log10(value))


# ---- the certificate ------------------------------------------------------------------------------------------------

INTERVAL_HEIGHT = 132
STRONG = 1.0  # width of the larger bold figures against mixed ordinary text: digits are narrow


def interval_figure(report: Report, width: int) -> str:
    """The paired difference as a point and an interval, on an axis with zero and the margin; "" without numbers."""
    certificate = report["certificate"]
    unit = certificate.get("unit")
    value, low, high = (finite(certificate.get(key)) for key in ("difference", "low", "high"))
    margin = margin_line(report)
    if value is None or low is None or high is None or margin is None:
        return ""
    extent = max(low, high, value, margin, 0) - min(low, high, value, margin, 0) or 1.0
    ends = [min(low, value, margin, 0) - 0.12 * extent, max(high, value, margin, 0) + 0.12 * extent]
    axis = linear(ends, 1.0, width - 1.0, most=8 if width > 600 else 5)
    bottom, middle = INTERVAL_HEIGHT - 44.0, 56.0
    limits = interval(quality(low, unit), quality(high, unit))
    words = f"{with_unit(signed(quality(value, unit)), unit)} {limits}"
    return drawing(
        "interval " + ("passed" if certificate.get("passed") else "failed"),
        width,
        INTERVAL_HEIGHT,
        f"{metric_label(report)}: difference {words}, margin {quality(margin, unit)}",
        *_margin(axis, margin, unit, bottom),
        *_difference_axis(axis, bottom),
        *_whisker(axis, (low, value, high), middle, words, (axis.at(margin), axis.at(0.0))),
        label(width / 2, INTERVAL_HEIGHT - 6.0, f"{metric_label(report)}, change from the original", "soft", "middle"),
    )


def _margin(axis: Axis, margin: float, unit: Any, bottom: float) -> list[str]:
    """The zone beyond the margin, its edge, and the line of no difference, each named at its head."""
    edge, zero, below = axis.at(margin), axis.at(0.0), margin < 0
    left = axis.start if below else edge
    zone = {"x": left, "y": 20.0, "width": abs(edge - (axis.start if below else axis.stop)), "height": bottom - 20.0}
    words = f"margin {with_unit(signed(quality(margin, unit)), unit)}"
    room = edge - axis.start if below else axis.stop - edge
    outward = room >= text_width(words)  # the name stands in the zone where it fits, else on the inner side
    anchor = "end" if below == outward else "start"
    drawn = [
        element("rect", {**zone, "class": "zone"}),
        line(edge, 16.0, edge, bottom, "margin"),
        line(zero, 16.0, zero, bottom, "zero"),
        label(edge, 12.0, words, "label margin-name", anchor),
    ]
    inner = text_width("no change") + (0 if outward else text_width(words)) + 16
    if abs(zero - edge) >= inner or outward:
        drawn.append(label(zero, 12.0, "no change", "soft", "start" if below else "end"))
    return drawn


def _difference_axis(axis: Axis, bottom: float) -> list[str]:
    """The axis line with its ticks."""
    drawn = [line(axis.start, bottom, axis.stop, bottom, "axis")]
    for tick in axis.ticks:
        x = axis.at(tick)
        anchor = "start" if tick == axis.ticks[0] else "end" if tick == axis.ticks[-1] else "middle"
        drawn.append(line(x, bottom, x, bottom + 4, "axis"))
        drawn.append(label(x, bottom + 18, signed(axis.tick_label(tick)), "tick", anchor))
    return drawn


def _whisker(axis: Axis, values: tuple[float, float, float], y: float, words: str, rules: Sequence[float]) -> list[str]:
    """The interval with its point, and the figures above it, where no upright rule runs through them."""
    low, value, high = (axis.at(each) for each in values)
    half = text_width(words) * STRONG / 2
    inside = min(max(value, axis.start + half), axis.stop - half)
    places = [inside, *(rule + side * (half + 6) for rule in rules for side in (-1, 1))]
    free = [x for x in places if axis.start <= x - half and x + half <= axis.stop]
    free = [x for x in free if all(abs(rule - x) >= half for rule in rules)]
    x = min(free, key=lambda place: abs(place - value), default=inside)
    chip = {"x": x - half, "y": y - 30, "width": 2 * half, "height": 20.0, "rx": 3, "class": "chip"}
    ground = [] if free else [element("rect", chip)]
    body = element(
        "rect", {"x": low, "y": y - 4, "width": max(high - low, 1.0), "height": 8.0, "rx": 4, "class": "band"}
    )
    point = element("circle", {"cx": value, "cy": y, "r": 7.0, "class": "point"})
    return [hover(words, body, point), *ground, label(x, y - 15, words, "strong", "middle")]
