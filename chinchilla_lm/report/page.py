"""report.html: one page that needs no network, no library and no script, for a screen, a phone and paper.

The order is that of a reader in a hurry: the verdict, what it cost, what was cut, what else could have been cut, the
detail of quality, and folded away whatever it takes to repeat the run. Every value goes through `html.escape`; besides,
the page's own policy forbids it to load anything and to run any script but the one named by its hash.
"""

from __future__ import annotations

import hashlib
from base64 import b64encode
from collections.abc import Callable, Mapping
from difflib import SequenceMatcher
from html import escape
from typing import Any

from chinchilla_lm.report import packed, words
from chinchilla_lm.report.chain import LIGHTEST, chain_figure, cost_range, shade, single_costs
from chinchilla_lm.report.drawing import WIDTHS, element, interval_figure, text_of
from chinchilla_lm.report.frontier import METHODS, drawable, frontier_figure, glyph, size_figure, style_of
from chinchilla_lm.report.numbers import (
    Report,
    duration,
    finite,
    fixed,
    flat,
    interval,
    plain,
    quality,
    signed,
    significant,
    times,
    with_unit,
)
from chinchilla_lm.report.plain_table import packed_tables, plain_table
from chinchilla_lm.report.style import SCRIPT, STYLE

MOST_WORDS = 600  # of a sample, above which no differences are marked: the comparison is quadratic
FOLDED = {"machine": "Machine", "recipe": "Recipe"}


def html_report(report: Report) -> str:
    """The whole page."""
    digest = b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; base-uri 'none'"
    body = "\n".join(filter(None, (section(report) for section in SECTIONS)))
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{text_of(str(report["verdict"]).capitalize())}: {text_of(report["title"])}</title>
<style>{STYLE}</style>
</head>
<body>
<main>
{body}
</main>
<script>{SCRIPT}</script>
</body>
</html>
"""


def figure(draw: Callable[[Report, int], str], report: Report) -> str:
    """A drawing at both widths, "" if there is nothing to draw."""
    drawn = {name: draw(report, width) for name, width in WIDTHS.items()}
    if not all(drawn.values()):
        return ""
    return "<figure>" + "".join(f'<div class="{name}">{svg}</div>' for name, svg in drawn.items()) + "</figure>"


def verdict_section(report: Report) -> str:
    """The verdict in one word, in one sentence, in four figures and as an interval."""
    passed = report["verdict"] == "passed"
    tiles = "".join(
        f'<div><dt>{text_of(name)}</dt><dd><span class="big">{text_of(value)}</span>'
        f'<span class="small">{text_of(note)}</span></dd></div>'
        for name, value, note in tile_values(report)
    )
    return f"""<section class="verdict {"passed" if passed else "failed"}">
<h1><span class="word">{"✓ Passed" if passed else "✗ Failed"}</span> {text_of(report["headline"])}</h1>
<p class="origin">{text_of(words.origin_words(report))}</p>
<dl class="tiles">{tiles}</dl>
{figure(interval_figure, report)}
<p class="said">{text_of(words.certificate_words(report))}</p>
<p class="said">Speedup {text_of(words.speedup_words(report))}</p>
<p class="said">{text_of(words.aa_words(report))}</p>
</section>"""


def tile_values(report: Report) -> list[tuple[str, str, str]]:
    """Name, value and small print of the figures at the top."""
    speedup, certificate, last = report["speedup"], report["certificate"], report["rows"][-1]
    unit = certificate.get("unit")
    limits = interval(quality(certificate.get("low"), unit), quality(certificate.get("high"), unit))
    speed_limits = interval(fixed(speedup.get("low"), 2), fixed(speedup.get("high"), 2))
    target = words.target_words(speedup).removeprefix(", ")
    size_before, size_after = (words.row_cells(report, row)[-3:-1] for row in (report["rows"][0], last))
    change = with_unit(signed(quality(certificate.get("difference"), unit)), unit if unit == "percent" else None)
    tiles = [
        ("speedup", times(speedup.get("value")), "\n".join(filter(None, (speed_limits, target)))),
        (words.metric_label(report) + (f", {plain(unit)}" if unit and unit != "percent" else ""), change, limits),
    ]
    for name, before, after in zip(("parameters", "size"), size_before, size_after, strict=True):
        tiles.append((name, after.text, f"{after.change}, from {before.text}" if after.change else ""))
    return tiles


def comparisons_section(report: Report) -> str:
    """What the result was held against, and how many answers changed."""
    compared = words.comparisons(report)
    if not compared:
        return ""
    top = "".join(f'<th scope="col">{text_of(head)}</th>' for head in words.COMPARED)
    lines = []
    for one in compared:
        first, *rest = (text_of(cell) for cell in words.comparison_cells(one))
        lines.append(f'<tr><th scope="row">{first}</th>{"".join(f"<td>{cell}</td>" for cell in rest)}</tr>')
    return f"""<section>
<h2>Held against</h2>
<p class="lead">{text_of(words.COMPARED_LEAD)}</p>
<div class="others scroll"><table><thead><tr>{top}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>
</section>"""


def rows_section(report: Report) -> str:
    """The models side by side, baseline first, and their other metrics."""
    heads = words.headers(report)
    lines = []
    for row in report["rows"]:
        cells = zip(heads[1:], words.row_cells(report, row), strict=True)
        body = "".join(_value_cell(head, cell) for head, cell in cells)
        lines.append(f'<tr><th scope="row">{text_of(row["name"])}</th>{body}</tr>')
    top = "".join(f'<th scope="col">{text_of(head)}</th>' for head in heads)
    return f"""<section>
<h2>What it gained, what it cost</h2>
<p class="lead">p50 and p95 are latencies. In brackets 95 % intervals, below them the change from the original.</p>
<div class="rows scroll"><table><thead><tr>{top}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>
{_other_metrics(report)}
</section>"""


def _value_cell(head: str, cell: words.Cell) -> str:
    small = f"<small>{text_of(cell.note)}</small>" if cell.note else ""
    small += f'<small class="{cell.tone}">{text_of(cell.change)}</small>' if cell.change else ""
    exact = f' title="{text_of(cell.exact)}"' if cell.exact else ""
    return f'<td data-head="{text_of(head)}"{exact}><span class="value">{text_of(cell.text)}</span>{small}</td>'


def _other_metrics(report: Report) -> str:
    """A line for each further metric, a column for each model."""
    names = words.other_metrics(report)
    if not names:
        return ""
    top = "".join(f'<th scope="col">{text_of(row["name"])}</th>' for row in report["rows"])
    lines = []
    for name in names:
        cells = [words.metric_cell(report, row, name, None) for row in report["rows"]]
        head = words.other_head(report, name)
        body = "".join(_value_cell(plain(row["name"]), cell) for row, cell in zip(report["rows"], cells, strict=True))
        lines.append(f'<tr><th scope="row">{text_of(head)}</th>{body}</tr>')
    return f"""<h3>Other metrics</h3>
<div class="others scroll"><table><thead><tr><th></th>{top}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>"""


def chain_section(report: Report) -> str:
    """The strip of links with its legend."""
    drawn = figure(chain_figure, report)
    if not drawn:
        return ""
    return f"""<section>
<h2>What is left of the chain</h2>
<p class="lead">{text_of(words.chain_words(report))}</p>
{drawn}
<ul class="legend">{"".join(f"<li>{item}</li>" for item in _chain_legend(report))}</ul>
{packed_tables(report)}
</section>"""


def _chain_legend(report: Report) -> list[str]:
    limits = cost_range(single_costs(report))
    actions = [(choice["action"], choice.get("norm")) for choice in words.choices(report).values()]
    items = []
    items += [text_of(f"{letter} {form}") for form, letter in packed.letters(report).items()]
    if limits is None:
        items.append(_swatches(["solid"], [1.0]) + "kept")
    elif limits[0] == limits[1]:
        items.append(_swatches(["solid"], [1.0]) + f"kept; dropping it would cost {significant(limits[1], 2)}")
    else:
        low, high = limits
        steps = [low * (high / low) ** (index / 4) for index in range(5)]
        scale = _swatches(["solid"] * 5, [shade(step, limits) for step in steps])
        ends = (significant(low, 2), significant(high, 2))
        items.append(f"kept, by what dropping it would cost: {ends[0]} {scale} {ends[1]}")
    if any(action == "drop" and norm != "keep" for action, norm in actions):
        items.append(_swatches(["hollow"], [LIGHTEST]) + "dropped")
    if ("drop", "keep") in actions:
        items.append(_swatches(["hollow"], [LIGHTEST], norm=True) + "dropped, its norm kept")
    return items


def _swatches(roles: list[str], opacities: list[float], norm: bool = False) -> str:
    """Small cells as in the strip."""
    cells = []
    for index, (role, opacity) in enumerate(zip(roles, opacities, strict=True)):
        box: dict[str, object] = {
            "x": 0.5 + 16 * index,
            "y": 0.5,
            "width": 14.0,
            "height": 14.0,
            "rx": 2,
            "class": role,
        }
        cells.append(element("rect", {**box, "fill-opacity": f"{opacity:.3f}"}))
    if norm:
        cells.append(element("rect", {"x": 4.0, "y": 6.5, "width": 7.0, "height": 2.0, "class": "norm"}))
    return element("svg", {"width": 16 * len(roles), "height": 15, "aria-hidden": "true"}, *cells)


def frontier_section(report: Report) -> str:
    """The scatter of plans with its legend."""
    drawn = figure(frontier_figure, report)
    if not drawn:
        return ""
    styles = [style_of(item) for item in drawable(report)]
    items = []
    for style, (_, name, side) in METHODS.items():
        if style in styles:
            tail = " (baseline)" if side == "baseline" else ""
            items.append(_key(style, False) + text_of(name + tail))
    if "other" in styles:
        items.append(_key("other", False) + "other")
    ring = "The ring marks the chosen one; the" if any(item.get("chosen") for item in drawable(report)) else "The"
    stages = {str(item.get("stage")) for item in drawable(report) if item.get("method") != "original"}
    if len(stages) > 1:
        items += [_key("stage", True) + "before recovery", _key("stage", False) + "after recovery"]
    return f"""<section>
<h2>Quality against latency</h2>
<p class="lead">Plans that were tried, timed; baselines at the time that the cost table predicts.
{ring} arrows on the axes point to better.</p>
{drawn}
<ul class="legend">{"".join(f"<li>{item}</li>" for item in items)}</ul>
{_by_size(report)}
</section>"""


def _by_size(report: Report) -> str:
    """The same points against their size, where that is known, with a table of all figures."""
    drawn = figure(size_figure, report)
    if not drawn:
        return ""
    rows = []
    for point in sorted(drawable(report), key=lambda point: -float(point["latency_ms"])):
        name = plain(point.get("method")) + (" (chosen)" if point.get("chosen") else "")
        figures = (times(point.get("speedup")), significant(point["latency_ms"]), significant(point["quality"]))
        rows.append([name, *figures, *packed.size_cells(point), plain(point.get("links"))])
    heads = ("plan", "speedup", "latency, ms", "quality", "size", "bits a weight", "links")
    return f"<h3>Quality against size</h3>\n{drawn}\n{plain_table(heads, rows)}"


def _key(style: str, hollow: bool) -> str:
    return element("svg", {"width": 18, "height": 18, "aria-hidden": "true"}, glyph(style, 9.0, 9.0, hollow))


def tables_section(report: Report) -> str:
    """Tables by label, before and after."""
    tables = [_tag_table(table) for table in report.get("tables") or []]
    return f"<section>\n{''.join(tables)}\n</section>" if tables else ""


def _tag_table(table: Mapping[str, Any]) -> str:
    rows = words.paired(table)
    decimals = words.table_decimals(rows)
    groups = "".join(f'<th colspan="3" class="group" scope="colgroup">{name}</th>' for name in words.SCORES.values())
    heads = '<th class="first">before</th><th>after</th><th>change</th>' * len(words.SCORES)
    lines = []
    for row, following in zip(rows, [*rows[1:], None], strict=True):
        last = following is not None and following.label in words.AVERAGES and row.label not in words.AVERAGES
        cells = "".join(_score_cells(row, key, decimals) for key in words.SCORES)
        role = ' class="last-label"' if last else ""
        lines.append(f'<tr{role}><th scope="row">{text_of(row.label)}</th><td>{row.support}</td>{cells}</tr>')
    return f"""<h2>{text_of(table["title"])}</h2>
<p class="lead">Before is the original, after is the result.</p>
<div class="tags scroll"><table>
<thead><tr><th rowspan="2"></th><th rowspan="2">count</th>{groups}</tr><tr>{heads}</tr></thead>
<tbody>{"".join(lines)}</tbody></table></div>"""


def _score_cells(row: words.Paired, key: str, decimals: int) -> str:
    change = row.change(key)
    text = signed(fixed(change, decimals))
    visible = any(digit in "123456789" for digit in text)
    tone, after = "soft", ""
    if key == "f1":  # the one that counts is the one in colour
        tone, after = "" if change is None or not visible else "better" if change > 0 else "worse", "key"
    return (
        f'<td class="first">{fixed(row.before.get(key), decimals)}</td>'
        f'<td class="{after}">{fixed(row.after.get(key), decimals)}</td><td class="{tone}">{text}</td>'
    )


def samples_section(report: Report) -> str:
    """What both models wrote, with the words that only one of them has marked."""
    samples = []
    for sample in report.get("samples") or []:
        left, right = marked(plain(sample.get("original")), plain(sample.get("changed")))
        samples.append(
            f'<div class="sample"><h3>{text_of(sample.get("prompt"))}</h3><div class="pair">'
            f"<div><h4>original</h4><p>{left}</p></div><div><h4>changed</h4><p>{right}</p></div></div></div>"
        )
    if not samples:
        return ""
    lead = '<p class="lead">Underlined where the two differ.</p>'
    return f"<section>\n<h2>Samples</h2>\n{lead}\n{''.join(samples)}\n</section>"


def marked(original: str, changed: str) -> tuple[str, str]:
    """Both texts as markup, the words that differ in `<mark>`."""
    left, right = original.split(" "), changed.split(" ")
    if max(len(left), len(right)) > MOST_WORDS:
        return escape(original), escape(changed)
    sides: tuple[list[str], list[str]] = ([], [])
    for tag, i1, i2, j1, j2 in SequenceMatcher(None, left, right, autojunk=False).get_opcodes():
        for side, piece in ((sides[0], left[i1:i2]), (sides[1], right[j1:j2])):
            text = escape(" ".join(piece))
            if piece:
                side.append(text if tag == "equal" else f"<mark>{text}</mark>")
    return " ".join(sides[0]), " ".join(sides[1])


def notes_section(report: Report) -> str:
    """What the reader should know besides."""
    notes = "".join(f"<li>{text_of(note)}</li>" for note in report.get("notes") or [])
    return f'<section>\n<h2>Notes</h2>\n<ul class="notes">{notes}</ul>\n</section>' if notes else ""


def folded_section(report: Report) -> str:
    """Machine, recipe, timings, the plan's origin and the command, each folded."""
    parts = [_facts(name, report.get(key)) for key, name in FOLDED.items()]
    origin = {"method": report["plan"].get("method"), **(report["plan"].get("origin") or {})}
    parts += [_facts("Where the plan came from", origin), _timings(report)]
    if report.get("command"):
        command = f"<pre>{text_of(report['command'])}</pre>"
        parts.insert(0, f"<details open><summary>Command</summary>{command}</details>")
    return f'<section class="folded">\n{"".join(parts)}\n</section>'


def _facts(name: str, facts: Mapping[str, Any] | None) -> str:
    if not facts:
        return ""
    lines = "".join(f"<dt>{text_of(key)}</dt><dd>{text_of(value)}</dd>" for key, value in flat(facts))
    return f'<details><summary>{name}</summary><dl class="facts">{lines}</dl></details>'


def _timings(report: Report) -> str:
    """Seconds of each stage, with bars."""
    timings = report.get("timings") or {}
    longest = max((finite(value) or 0 for value in timings.values()), default=0) or 1
    lines = []
    for stage, seconds in timings.items():
        width = 160 * max(0.0, finite(seconds) or 0) / longest
        bar = f'<span class="share" style="width:{width:.0f}px"></span>'
        lines.append(f"<dt>{text_of(stage)}</dt><dd>{text_of(duration(seconds))}{bar}</dd>")
    if not lines:
        return ""
    total = f"<dt>all</dt><dd>{text_of(duration(report.get('seconds')))}</dd>"
    return f'<details><summary>Timings</summary><dl class="facts">{"".join(lines)}{total}</dl></details>'


SECTIONS: tuple[Callable[[Report], str], ...] = (
    verdict_section,
    comparisons_section,
    rows_section,
    chain_section,
    frontier_section,
    tables_section,
    samples_section,
    notes_section,
    folded_section,
)
