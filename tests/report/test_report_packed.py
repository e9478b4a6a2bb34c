"""What a report says of formats: on the strip, in its tables, and where plans lie against their size."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import pytest

from chinchilla_lm.report.chain import chain_figure
from chinchilla_lm.report.drawing import WIDTHS
from chinchilla_lm.report.frontier import SIZE, lay_out, size_figure
from chinchilla_lm.report.markdown import markdown_report
from chinchilla_lm.report.packed import format_rows, letters, packed_words, part_rows
from chinchilla_lm.report.page import html_report
from tests.report.report_examples import DROPPED, full_report, packed_report

WIDE_AND_NARROW = pytest.mark.parametrize("width", WIDTHS.values())


@WIDE_AND_NARROW
def test_each_link_that_is_left_has_the_letter_of_its_format(width: int) -> None:
    report = packed_report()
    named = letters(report)
    assert named == {"bf16": "A", "int8": "B", "int4": "C"}
    cells = [group for group in ET.fromstring(chain_figure(report, width)).iter("g") if group.get("class") == "mark"]
    formats = {choice["link"]: choice.get("format") for choice in report["plan"]["choices"]}
    assert len(cells) == len(formats)
    for cell in cells:
        said = cell.findtext("title") or ""
        link = said.partition(":")[0]
        drawn = [one.text for one in cell.iter("text") if one.get("class") == "letter"]
        assert drawn == ([] if link in DROPPED else [named[formats[link]]])
        assert (f"kept in {formats[link]}, " in said) == (link not in DROPPED)
    first = cells[0].findtext("title") or ""
    assert first.startswith("0.attn: kept in bf16, 16.00 bits a weight, 2.00 MB; dropping it costs")


def test_formats_are_summed_and_each_part_is_named() -> None:
    report = packed_report()
    kept = 60 - len(DROPPED)
    rows = format_rows(report)
    assert [row[0] for row in rows] == ["A bf16", "B int8", "C int4", "head: int8"]
    assert sum(int(row[1]) for row in rows[:-1]) == kept
    assert [row[3] for row in rows] == ["16.00", "8.25", "5.00", "8.25"]
    assert len(part_rows(report)) == kept + 1
    assert part_rows(report)[-1] == ["head", "int8", "28.0 MB", "8.25"]
    words = packed_words(report)
    assert "6.63 bits a weight" in words
    assert "of 85.0 MB that were allowed" in words
    assert "Against the original in int8 alone, in the same rounds: 1.31× [1.27, 1.36]." in words


def test_the_text_has_the_same_letters_and_figures() -> None:
    report = packed_report()
    text = markdown_report(report)
    strips = re.findall(r"^(?:attention|MLP) +(\S+) ", text, flags=re.M)
    named = letters(report)
    wanted = [
        "".join(
            "□" if choice["action"] == "drop" else named[choice["format"]]
            for choice in report["plan"]["choices"]
            if choice["link"].endswith(kind)
        )
        for kind in ("attn", "mlp")
    ]
    assert strips == wanted
    assert "A bf16, B int8, C int4, □ dropped" in text
    assert packed_words(report) in text
    assert "| size | bits a weight |" in text
    assert "What it is packed in" not in markdown_report(full_report())


@WIDE_AND_NARROW
def test_points_lie_by_their_size_and_the_limit_is_drawn(width: int) -> None:
    report = packed_report()
    plot = lay_out(report, width, SIZE)
    assert plot is not None
    assert [point.x for point in plot.points] == pytest.approx(
        [plot.x.at(point["bytes"] / 1e6) for point in report["frontier"]]
    )
    assert plot.target == pytest.approx(plot.x.at(85.0))
    names = [one.text for one in ET.fromstring(size_figure(report, width)).iter("text")]
    assert {"int8", "int4"} <= set(names)
    assert "← size, MB" in names
    del report["packed"]["memory_mb"]
    without = lay_out(report, width, SIZE)
    assert without is not None
    assert without.target is None


def test_without_sizes_there_is_no_second_figure() -> None:
    assert size_figure(full_report(), WIDTHS["wide"]) == ""
    assert "Quality against size" not in html_report(full_report())
    page = html_report(packed_report())
    assert "Quality against size" in page
    assert "one format for all (baseline)" in page
    assert page.count("<h3>What it is packed in</h3>") == 1
