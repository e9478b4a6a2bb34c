"""The drawings of the report: well-formed, inside their frames, and true to the numbers."""

from __future__ import annotations

import copy
import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from typing import Any

import pytest

from chinchilla_lm.report.chain import chain_figure, per_line
from chinchilla_lm.report.drawing import WIDTHS, interval_figure, linear, logarithmic, text_width
from chinchilla_lm.report.frontier import METHODS, Plot, drawable, frontier_figure, glyph, lay_out
from chinchilla_lm.report.page import html_report
from tests.report.report_examples import DROPPED, failed_report, full_report, minimal_report, packed_report

EXAMPLES: list[Callable[[], dict[str, Any]]] = [full_report, failed_report, packed_report, minimal_report]
WIDE_AND_NARROW = pytest.mark.parametrize("width", WIDTHS.values())


def marks(figure: str) -> dict[str, ET.Element]:
    """What can be pointed at, by what it says up to the first colon, semicolon or comma."""
    groups = [group for group in ET.fromstring(figure).iter("g") if group.get("class") == "mark"]
    return {re.split("[:;,]", group.findtext("title") or "")[0]: group for group in groups}


def one(figure: ET.Element, role: str) -> ET.Element:
    """The only element of a class."""
    (found,) = [each for each in figure.iter() if each.get("class") == role]
    return found


def numbers(element: ET.Element, *names: str) -> list[float]:
    return [float(element.attrib[name]) for name in names]


def test_a_ring_is_explained_where_one_is_drawn() -> None:
    report = full_report()
    assert "The ring marks the chosen one; the arrows" in html_report(report)
    for point in report["frontier"]:
        point["chosen"] = False
    assert "The ring marks" not in html_report(report)


@pytest.mark.parametrize("example", EXAMPLES)
def test_every_drawing_is_well_formed_and_without_ids(example: Callable[[], dict[str, Any]]) -> None:
    report = example()
    report["plan"]["choices"][0]["norm"] = "<&\"'\x00\ud800>"
    for point in report.get("frontier") or []:
        point["stage"] = "</svg><script>"
    drawings = re.findall(r"<svg.*?</svg>", html_report(report), flags=re.S)
    assert len(drawings) >= 6
    for drawing in drawings:
        root = ET.fromstring(drawing)
        assert root.tag == "svg"
        assert not [each for each in root.iter() if "id" in each.attrib or each.tag == "script"]


# ---- the certificate


@WIDE_AND_NARROW
@pytest.mark.parametrize(
    ("low", "value", "high", "margin", "higher", "beyond"),
    [
        (-0.8843, -0.3127, 0.2719, 1.0, True, "none"),
        (-1.9, -0.9, 0.1, 1.0, True, "some"),
        (-9.0, -8.0, -7.0, 1.0, True, "all"),
        (-0.2, 0.4, 0.9, 1.0, False, "none"),
        (1.6, 2.9, 4.2, 3.0, False, "some"),
        (0.0, 0.0, 0.0, 1.0, True, "none"),
    ],
)
def test_the_interval_lies_to_the_margin_as_the_numbers_do(
    width: int, low: float, value: float, high: float, margin: float, higher: bool, beyond: str
) -> None:
    report = full_report()
    report["certificate"] |= {"low": low, "difference": value, "high": high, "margin": margin}
    report["certificate"] |= {"higher_is_better": higher}
    figure = ET.fromstring(interval_figure(report, width))
    left, wide = numbers(one(figure, "band"), "x", "width")
    (edge,), (zero,) = numbers(one(figure, "margin"), "x1"), numbers(one(figure, "zero"), "x1")
    (point,) = numbers(one(figure, "point"), "cx")
    per_unit = (zero - edge) / (margin if higher else -margin)
    assert per_unit > 0
    assert left == pytest.approx(zero + low * per_unit, abs=0.2)
    assert point == pytest.approx(zero + value * per_unit, abs=0.2)
    assert wide == pytest.approx(max((high - low) * per_unit, 1.0), abs=0.2)
    start, span = numbers(one(figure, "zone"), "x", "width")
    shared = max(0.0, min(left + wide, start + span) - max(left, start)) / wide
    assert {"none": shared == 0, "some": 0 < shared < 0.99, "all": shared > 0.99}[beyond]
    for x in (left, left + wide, point, edge, zero, start, start + span):
        assert 0 <= x <= width
    words = one(figure, "strong")
    reach = text_width(words.text or "") / 2
    for rule in (edge, zero):
        assert abs(rule - float(words.attrib["x"])) >= reach or one(figure, "chip") is not None


@pytest.mark.parametrize("key", ["low", "high", "difference", "margin"])
def test_no_interval_is_drawn_without_its_numbers(key: str) -> None:
    report = full_report()
    report["certificate"][key] = None
    assert interval_figure(report, 880) == ""


# ---- the chain


@WIDE_AND_NARROW
def test_a_cell_a_link_solid_or_hollow_as_planned(width: int) -> None:
    report = full_report()
    cells = marks(chain_figure(report, width))
    assert set(cells) == {choice["link"] for choice in report["plan"]["choices"]}
    for name, cell in cells.items():
        box = cell[1]
        assert box.get("class") == ("hollow" if name in DROPPED else "solid")
        x, y, wide, high = numbers(box, "x", "y", "width", "height")
        assert 0 <= x < x + wide <= width
        twin_y = numbers(cells[name.replace("attn", "mlp")][1], "y")[0]
        assert twin_y - y == (24.0 if name.endswith("attn") else 0)
        assert high > 10 < wide
    order = [numbers(cells[f"{block}.attn"][1], "y", "x") for block in range(30)]
    assert order == sorted(order)


def test_the_darker_the_dearer() -> None:
    report = full_report()
    costs = {entry["links"][0]: entry["cost"] for entry in report["costs"]}
    cells = marks(chain_figure(report, 880))
    kept = sorted((name for name in cells if name not in DROPPED), key=lambda name: costs[name])
    shades = [float(cells[name][1].attrib["fill-opacity"]) for name in kept]
    assert shades == sorted(shades)
    assert shades[-1] == 1.0
    assert len(set(shades)) > 10
    assert min(shades) > 0.2
    title = cells[kept[-1]].findtext("title")
    assert title is not None
    assert title.startswith(f"{kept[-1]}: kept; dropping it costs ")


def test_of_two_costs_of_a_link_the_cheaper_counts_and_blocks_do_not() -> None:
    report = full_report()
    report["costs"] = [
        {"links": ["5.attn"], "cost": 4.0, "time_us": 100.0},
        {"links": ["5.attn"], "cost": 3.0, "time_us": 90.0},
        {"links": ["5.attn", "5.mlp"], "cost": 1.0, "time_us": 300.0},
    ]
    cells = marks(chain_figure(report, 880))
    assert cells["5.attn"].findtext("title") == "5.attn: kept; dropping it costs 3.00, saves 90.0 µs"
    assert cells["5.mlp"].findtext("title") == "5.mlp: kept"


def test_a_norm_that_stays_is_drawn() -> None:
    report = full_report()
    for choice in report["plan"]["choices"]:
        choice["norm"] = {"8.attn": "keep", "11.attn": "lose"}.get(choice["link"])
    cells = marks(chain_figure(report, 880))
    assert [len(cells[name]) for name in ("8.attn", "11.attn", "12.attn")] == [3, 2, 2]
    html = html_report(report)
    assert "dropped, its norm kept" in html


@pytest.mark.parametrize("blocks", [1, 6, 12, 30, 45, 46, 80, 126])
@WIDE_AND_NARROW
def test_lines_of_the_strip_are_wide_enough_and_even(blocks: int, width: int) -> None:
    columns = per_line(blocks, width)
    lines = math.ceil(blocks / columns)
    assert (width - 68) / columns >= 18
    assert blocks - (lines - 1) * columns > 0
    assert columns * lines - blocks < lines


# ---- the frontier


def higher_is_better() -> dict[str, Any]:
    """The same plans with a quality in points, on a linear axis."""
    report = full_report()
    for point in report["frontier"]:
        point["quality"] = 88.0 - point["quality"]
        point["low"], point["high"] = point["quality"] - 0.4, point["quality"] + 0.4
    report["frontier_quality"] = {"label": "entity F1, points", "higher_is_better": True}
    return report


def one_point() -> dict[str, Any]:
    report = minimal_report()
    report["frontier"] = [copy.deepcopy(full_report()["frontier"][-1])]
    return report


def tiny_noise() -> dict[str, Any]:
    """An original that differs from itself by rounding only, and an error bar that reaches below zero."""
    report = full_report()
    report["frontier"][0]["quality"] = 3e-13
    report["frontier"][1] |= {"low": -0.5}
    return report


FRONTIERS = pytest.mark.parametrize("example", [full_report, higher_is_better, one_point, tiny_noise])


def laid_out(report: dict[str, Any], width: int) -> Plot:
    plot = lay_out(report, width)
    assert plot is not None
    return plot


@WIDE_AND_NARROW
@FRONTIERS
def test_points_and_names_lie_inside_the_frame(example: Callable[[], dict[str, Any]], width: int) -> None:
    report = example()
    plot = laid_out(report, width)
    assert len(plot.points) == len(report["frontier"])
    bottom = plot.y.start if plot.y.zero is None else plot.y.zero
    root = ET.fromstring(frontier_figure(report, width))
    for point in plot.points:
        assert plot.x.start <= point.x <= plot.x.stop <= width
        assert plot.y.stop <= point.y <= bottom <= plot.height
    for each in root.iter():
        for name in ("x", "cx", "x1", "x2"):
            assert 0 <= float(each.get(name, 0)) <= width
        for name in ("y", "cy", "y1", "y2"):
            assert 0 <= float(each.get(name, 0)) <= plot.height
        for pair in (each.get("points") or "").split():
            x, y = map(float, pair.split(","))
            assert 0 <= x <= width
            assert 0 <= y <= plot.height
    assert len([g for g in root.iter("g") if g.get("class") == "mark"]) == len(plot.points)


@WIDE_AND_NARROW
@FRONTIERS
def test_points_keep_the_order_of_their_numbers(example: Callable[[], dict[str, Any]], width: int) -> None:
    points = laid_out(example(), width).points
    for a in points:
        for b in points:
            if a.item["latency_ms"] < b.item["latency_ms"]:
                assert a.x < b.x
            if a.item["quality"] < b.item["quality"]:
                assert a.y > b.y


def test_the_axis_is_logarithmic_where_it_must_and_says_so() -> None:
    plot = laid_out(full_report(), 880)
    assert plot.y.log
    assert plot.y.zero is not None
    by_quality = {point.item["quality"]: point.y for point in plot.points}
    assert by_quality[0.0] == plot.y.zero > max(y for quality, y in by_quality.items() if quality > 0) + 10
    assert "(log scale, 0 set apart)" in frontier_figure(full_report(), 880)
    assert not laid_out(higher_is_better(), 880).y.log
    assert "log scale" not in frontier_figure(higher_is_better(), 880)
    tenfold = plot.y.at(0.1) - plot.y.at(1.0)
    assert tenfold == pytest.approx(plot.y.at(1.0) - plot.y.at(10.0))


def test_an_error_bar_below_zero_does_not_stretch_a_logarithmic_axis() -> None:
    report = full_report()
    del report["frontier"][0]
    before = laid_out(report, 880).y
    report["frontier"][1]["low"] = -0.5
    after = laid_out(report, 880).y
    assert after.zero is None
    assert before.low / 5 < after.low <= before.low


def test_the_target_stands_at_its_latency_and_bars_at_their_ends() -> None:
    report = full_report()
    plot = laid_out(report, 880)
    assert plot.target == plot.x.at(report["frontier"][0]["latency_ms"] / 2.0)
    root = ET.fromstring(frontier_figure(report, 880))
    bars = [each for each in root.iter("line") if (each.get("class") or "").startswith("bar ")]
    ranges = {(round(plot.y.at(p["low"]), 1), round(plot.y.at(p["high"]), 1)) for p in report["frontier"][1:]}
    assert {tuple(numbers(bar, "y1", "y2")) for bar in bars} == ranges


def test_methods_differ_by_shape_and_by_class_and_stages_by_filling() -> None:
    shapes = {shape for shape, _, _ in METHODS.values()}
    assert len(shapes) == len(METHODS)
    drawn = {re.sub(r' class="[^"]*"', "", glyph(style, 0.0, 0.0, False)) for style in [*METHODS, "unknown"]}
    assert len(drawn) == len(METHODS) + 1
    plot = laid_out(full_report(), 880)
    assert {point.hollow for point in plot.points if point.item["stage"] == "before recovery"} == {True}
    assert [point.hollow for point in plot.points if point.item["stage"] == "after recovery"] == [False]
    assert {point.style for point in plot.points if point.hollow} == {"refine", "dp", "greedy", "one-shot", "cosine"}


@WIDE_AND_NARROW
def test_the_chosen_plan_is_ringed_and_named(width: int) -> None:
    root = ET.fromstring(frontier_figure(full_report(), width))
    assert len([each for each in root.iter("circle") if each.get("class") == "ring"]) == 2
    (name,) = [each.text for each in root.iter("text") if each.get("class") == "strong"]
    assert name in ("chosen: 2.13×, 0.0312", "chosen")


def test_points_without_numbers_are_left_out() -> None:
    report = full_report()
    report["frontier"][3]["quality"] = None
    report["frontier"][4]["latency_ms"] = math.nan
    assert len(drawable(report)) == len(report["frontier"]) - 2
    report["frontier"] = [{"method": "dp", "quality": None, "latency_ms": 3.0}]
    assert frontier_figure(report, 880) == ""
    assert "Quality against latency" not in html_report(report)


# ---- axes


@pytest.mark.parametrize("values", [[0.0], [-1.2, 0.6], [3.0, 3.0001], [1e-7, 9e-7], [0, 123456], [-88.1, -87.9]])
@pytest.mark.parametrize("most", [3, 6, 9])
def test_linear_ticks_are_round_and_hold_the_values(values: list[float], most: int) -> None:
    axis = linear(values, 10.0, 210.0, most)
    assert axis.ticks[0] <= min(values) <= max(values) <= axis.ticks[-1]
    steps = {
        round((b - a) / (axis.ticks[1] - axis.ticks[0]), 6) for a, b in zip(axis.ticks, axis.ticks[1:], strict=False)
    }
    assert steps == {1.0}
    step = axis.ticks[1] - axis.ticks[0]
    assert round(step / 10 ** math.floor(math.log10(step) + 1e-6), 4) in (1, 2, 5)
    assert 2 <= len(axis.ticks) <= most + 2
    assert (axis.at(axis.ticks[0]), axis.at(axis.ticks[-1])) == (10.0, 210.0)
    labels = [axis.tick_label(tick) for tick in axis.ticks]
    assert len(set(labels)) == len(labels)


@pytest.mark.parametrize("values", [[0.0, 0.03, 10.6], [0.001, 950.0], [0.02, 0.021], [5.0], [0.0, 1e-9, 4.0, 0.01]])
def test_logarithmic_ticks_are_round_and_hold_the_values(values: list[float]) -> None:
    axis = logarithmic(values, 300.0, 20.0)
    positive = [value for value in values if value > max(values) * 1e-5]
    assert axis.low <= min(positive) <= max(positive) <= axis.high
    assert 2 <= len(axis.ticks) <= 12
    assert all(round(tick / 10 ** math.floor(math.log10(tick) + 1e-9), 6) in (1, 2, 5) for tick in axis.ticks)
    assert axis.at(axis.high) == 20.0
    assert (axis.zero is not None) == (len(positive) < len(values))
    if axis.zero is not None:
        assert axis.at(0.0) == axis.zero == 300.0
        assert axis.at(axis.low) < 300.0
