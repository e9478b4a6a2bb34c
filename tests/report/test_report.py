"""The report as a whole: the verdict first, the same numbers in all three files, nothing that runs or loads."""

from __future__ import annotations

import base64
import copy
import hashlib
import json
import math
import re
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from chinchilla_lm.report.markdown import markdown, markdown_report
from chinchilla_lm.report.page import html_report
from chinchilla_lm.report.write import write_report
from tests.report.report_examples import failed_report, full_report, minimal_report, packed_report

EXAMPLES: list[Callable[[], dict[str, Any]]] = [full_report, failed_report, packed_report, minimal_report]
EVIL = """<script>alert('1')</script>|"&'`*_[x](javascript:1)\n# <img src=x onerror=alert(2)>\x00\ud800"""
VOID = {"meta", "br", "img", "link", "input"}
FREE_TEXT = (
    "title headline label what name prompt original changed cpu gpu torch task command method stage unit created"
)
FREE_TEXT += " throughput_unit link"
MULTIPLES = {"K": 1e3, "M": 1e6, "B": 1.0, "kB": 1e3, "MB": 1e6, "GB": 1e9}


class Page(HTMLParser):
    """The text, the tags and the tables of a page; an element closed out of turn is an error."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[tuple[str, str]] = []
        self.cells: list[list[list[str]]] = []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.cells.append([])
        elif tag == "tr":
            self.cells[-1].append([])
        elif tag in ("td", "th"):
            self.cells[-1][-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append((self.open[-1] if self.open else "", data))
        if {"td", "th"} & set(self.open):
            self.cells[-1][-1][-1] = (self.cells[-1][-1][-1] + " " + data).strip()

    def said(self) -> str:
        """Everything a reader sees."""
        return " ".join(data for tag, data in self.text if tag not in ("style", "script"))


def pipe_table(text: str, first: str) -> list[list[str]]:
    """Cells of the Markdown table whose first head is `first`, heads apart."""
    lines = iter(text.splitlines())
    for line in lines:
        if line.startswith(f"| {first} |"):
            break
    next(lines)
    rows = []
    for line in lines:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
    return rows


def numbers(text: str) -> list[tuple[float, float]]:
    """Each number of a text with half a unit of its last place, multiples (`98.2 M`) resolved."""
    found = []
    for digits, unit in re.findall(r"([−+]?\d[\d,]*(?:\.\d+)?)(?: (K|M|B|kB|MB|GB)\b)?", text):
        scale = MULTIPLES.get(unit, 1.0)
        places = len(digits.partition(".")[2])
        found.append((float(digits.replace(",", "").replace("−", "-")) * scale, 0.5000001 * scale * 10**-places))
    return found


def assert_shows(text: str, *values: float) -> None:
    """The text begins with just these values, as exactly as it prints them."""
    shown = numbers(text)
    assert len(shown) >= len(values), text
    for (number, tolerance), value in zip(shown, values, strict=False):
        assert abs(number - value) <= tolerance, f"{text} does not show {value}"


@pytest.fixture
def written(tmp_path: Path) -> tuple[dict[str, Any], str, Page]:
    """report.json, report.md and report.html of the full example, read back."""
    write_report(full_report(), tmp_path)
    stored = json.loads((tmp_path / "report.json").read_text())
    return stored, (tmp_path / "report.md").read_text(), Page((tmp_path / "report.html").read_text())


def test_the_input_is_stored_whole_and_left_alone(tmp_path: Path) -> None:
    report = full_report()
    before = copy.deepcopy(report)
    write_report(report, tmp_path / "new" / "folder")
    assert report == before
    assert json.loads((tmp_path / "new" / "folder" / "report.json").read_text()) == before
    assert sorted(path.name for path in (tmp_path / "new" / "folder").iterdir()) == [
        "report.html",
        "report.json",
        "report.md",
    ]


@pytest.mark.parametrize("example", EXAMPLES)
def test_the_verdict_comes_first(example: Callable[[], dict[str, Any]]) -> None:
    report = example()
    word = {"passed": "✓ Passed", "failed": "✗ Failed"}[report["verdict"]]
    first = markdown_report(report).splitlines()[0]
    assert first == f"# {word}: {report['headline']}"
    page = Page(html_report(report))
    said = [data.strip() for tag, data in page.text if tag not in ("style", "script", "title") and data.strip()]
    assert said[:2] == [word, report["headline"]]
    assert ("section", {"class": f"verdict {report['verdict']}"}) in page.tags


def test_numbers_of_the_rows_are_those_of_the_json(written: tuple[dict[str, Any], str, Page]) -> None:
    stored, text, page = written
    in_text, in_page = pipe_table(text, "model"), page.cells[0][1:]
    assert [line[0] for line in in_text] == [line[0] for line in in_page] == ["original", "shortened", "recovered"]
    base = stored["rows"][0]
    for row, *shown in zip(stored["rows"], in_text, in_page, strict=True):
        for cells in shown:
            f1 = row["metrics"]["entity_f1"]
            change = [] if row is base else [f1["value"] - base["metrics"]["entity_f1"]["value"]]
            assert_shows(cells[1], f1["value"], f1["low"], f1["high"], *change)
            gain = [] if row is base else [base["latency_ms"]["p50"] / row["latency_ms"]["p50"]]
            assert_shows(cells[2], row["latency_ms"]["p50"], *gain)
            assert_shows(cells[3], row["latency_ms"]["p95"])
            assert_shows(cells[4], row["throughput"])
            for cell, key in zip(cells[5:], ("parameters", "bytes", "links"), strict=True):
                share = [] if row is base else [100 * (row[key] / base[key] - 1)]
                assert_shows(cell, row[key], *share)
    others = pipe_table(text, "other metrics")
    accuracy = [row["metrics"]["token_accuracy"] for row in stored["rows"]]
    for cells in (others[0], page.cells[1][1]):
        assert cells[0] == "token accuracy, points"
        for cell, metric in zip(cells[1:], accuracy, strict=True):
            assert_shows(cell, metric["value"], metric["low"], metric["high"])


def test_numbers_of_the_verdict_are_those_of_the_json(written: tuple[dict[str, Any], str, Page]) -> None:
    stored, text, page = written
    certificate, speedup = stored["certificate"], stored["speedup"]
    quality = next(line for line in text.splitlines() if line.startswith("**Quality.**"))
    assert_shows(quality.partition("same ")[2], certificate["n"], certificate["difference"], 95, certificate["low"])
    assert_shows(quality.partition("interval ")[2], certificate["low"], certificate["high"], -certificate["margin"])
    speed = next(line for line in text.splitlines() if line.startswith("**Speedup.**"))
    assert_shows(speed, speedup["value"], speedup["low"], speedup["high"])
    assert speed.endswith("target 2.00× reached.")
    again = next(line for line in text.splitlines() if line.startswith("**A/A.**"))
    assert_shows(again.partition("rounds: ")[2], *(stored["speedup"]["aa"][key] for key in ("value", "low", "high")))
    for sentence in (quality, speed, again):
        assert sentence.partition("** ")[2] in page.said().replace("Speedup ", "")


def test_numbers_of_tables_and_frontier_are_those_of_the_json(written: tuple[dict[str, Any], str, Page]) -> None:
    stored, text, page = written
    before, after = stored["tables"][0]["before"], stored["tables"][0]["after"]
    for shown in (pipe_table(text, "label"), page.cells[-1][2:]):
        assert len(shown) == 12
        for cells, left, right in zip(shown, before, after, strict=True):
            assert cells[0] == left["label"]
            assert_shows(cells[1], left["support"])
            for start, key in ((2, "f1"), (5, "precision"), (8, "recall")):
                assert_shows(" ".join(cells[start : start + 3]), left[key], right[key], right[key] - left[key])
    points = sorted(stored["frontier"], key=lambda point: -point["latency_ms"])
    for cells, point in zip(pipe_table(text, "method"), points, strict=True):
        assert cells[0] == point["method"] + (" **(chosen)**" if point.get("chosen") else "")
        assert_shows(cells[2], point["speedup"])
        assert_shows(cells[3], point["latency_ms"])
        assert_shows(cells[4], point["quality"], *([point["low"], point["high"]] if "low" in point else []))
        assert_shows(cells[5], point["links"])


def poisoned(value: Any, key: str = "") -> Any:
    """The report with every free text replaced by a hostile one."""
    if isinstance(value, dict):
        return {name: poisoned(item, name) for name, item in value.items()}
    if isinstance(value, list):
        return [poisoned(item, key) for item in value]
    return EVIL if isinstance(value, str) and key in FREE_TEXT else value


def hostile_report() -> dict[str, Any]:
    """Full of hostile text, also as names of metrics, stages, facts and links."""
    report: dict[str, Any] = poisoned(full_report())
    for row in report["rows"]:
        row["metrics"] = {EVIL: row["metrics"]["entity_f1"], "x" + EVIL: row["metrics"]["token_accuracy"]}
    report["certificate"]["metric"] = EVIL
    report["machine"][EVIL] = report["timings"][EVIL] = 1.0
    report["plan"]["choices"] = full_report()["plan"]["choices"]
    report["plan"]["choices"].append({"link": EVIL, "action": "drop", "norm": EVIL})
    return report


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    report = hostile_report()
    write_report(report, tmp_path)
    assert json.loads((tmp_path / "report.json").read_text())["title"] == EVIL
    harmless, poisonous = (Page(page) for page in (html_report(full_report()), (tmp_path / "report.html").read_text()))
    assert [tag for tag, _ in poisonous.tags if tag in ("script", "img")] == ["script"]
    assert not [name for _, attributes in poisonous.tags for name in attributes if name.startswith("on")]
    assert "<script>alert('1')</script>|\"&'`*_[x](javascript:1)" in poisonous.said()
    assert [len(row) for row in poisonous.cells[0]] == [len(row) for row in harmless.cells[0]]
    text = (tmp_path / "report.md").read_text()
    outside = re.sub(r"^(`{3,})text\n.*?\n\1$", "", text, flags=re.S | re.M)
    assert "<" not in outside
    assert "](" not in outside
    assert len(re.findall(r"^# ", outside, flags=re.M)) == 1
    assert {len(row) for row in pipe_table(text, markdown("method"))} == {6}
    assert {len(row) for row in pipe_table(text, "label")} == {11}


def test_the_page_needs_nothing_and_runs_only_its_own_script() -> None:
    html = html_report(full_report())
    page = Page(html)
    assert "http://" not in html
    assert "https://" not in html
    assert not re.search(r"url\(|@import|<link|<iframe|<object|fetch\(|XMLHttpRequest|import\(", html)
    assert not [tag for tag, attributes in page.tags if {"src", "href", "srcset", "xlink:href"} & attributes.keys()]
    policy = next(a["content"] for tag, a in page.tags if tag == "meta" and a.get("http-equiv"))
    script = next(data for tag, data in page.text if tag == "script")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy is not None
    assert "default-src 'none'" in policy
    assert f"script-src 'sha256-{digest}'" in policy


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of all numbers."""
    if isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(item, (*path, key))
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield path


@pytest.mark.parametrize("nothing", [math.nan, math.inf, None])
def test_what_is_not_a_number_is_a_dash(nothing: float | None, tmp_path: Path) -> None:
    report = full_report()
    for path in leaves(report):
        if path[-1] in ("num_blocks", "seconds"):
            continue
        holder = report
        for key in path[:-1]:
            holder = holder[key]
        holder[path[-1]] = nothing
    report["certificate"]["low"] = nothing
    write_report(report, tmp_path)
    assert "NaN" not in (tmp_path / "report.json").read_text()
    text, page = (tmp_path / "report.md").read_text(), Page((tmp_path / "report.html").read_text())
    for said in (text, page.said()):
        assert not re.search(r"\b(nan|inf|none|null)\b", said, flags=re.I)
    assert pipe_table(text, "model") == [[row["name"], *["–"] * 7] for row in report["rows"]]
    assert page.cells[0][1:] == [[row["name"], *["–"] * 7] for row in report["rows"]]


def test_sections_without_data_are_left_out() -> None:
    heads = ("Quality against latency", "Entities by type", "Samples", "Notes", "Machine", "Timings", "Command")
    full, minimal = Page(html_report(full_report())).said(), Page(html_report(minimal_report())).said()
    for head in heads:
        assert head in full
        assert head not in minimal
        assert f"## {head}\n" in markdown_report(full_report())
        assert f"## {head}\n" not in markdown_report(minimal_report())


def test_folded_sections_are_folded_and_complete() -> None:
    page = Page(html_report(full_report()))
    folded = [attributes for tag, attributes in page.tags if tag == "details"]
    assert folded == [{"open": None}, {}, {}, {}, {}]
    said = page.said()
    for words in ("Xeon 8481C", "training.epochs", "predicted_cost", "21 min 52 s", "--data ontowire"):
        assert words in said


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"certificate": None}, "report lacks certificate"),
        ({"verdict": "maybe"}, "verdict 'maybe' is not one of passed, failed"),
        ({"rows": []}, "report has no rows"),
    ],
)
def test_a_report_that_cannot_be_laid_out_writes_nothing(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        write_report(full_report() | change, tmp_path)
    assert list(tmp_path.iterdir()) == []
