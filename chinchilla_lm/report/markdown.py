"""report.md: the same report for a terminal, a pull request or a mail, with the same numbers as report.html.

Text from outside is escaped so that it stays text: HTML by entities, Markdown's own signs by backslashes, pipes too, as
most of it stands in tables.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from chinchilla_lm.report import packed, words
from chinchilla_lm.report.chain import per_line
from chinchilla_lm.report.drawing import WIDTHS
from chinchilla_lm.report.numbers import (
    MISSING,
    Report,
    duration,
    finite,
    fixed,
    flat,
    interval,
    plain,
    signed,
    significant,
    times,
)

KEPT, DROPPED, BARE = "■", "□", "▫"


def markdown(value: object) -> str:
    """Text as Markdown that shows just this text, on one line."""
    text = " ".join(plain(value).split())
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = re.sub(r"([\\`*|~$])", r"\\\1", text)
    text = re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", text)  # inside a word it is no sign
    text = text.replace("](", "]\\(").replace("][", "]\\[")
    text = re.sub(r"^(\d+)([.)])(?=\s|$)", r"\1\\\2", text)  # a numbered list
    return re.sub(r"^(#+(?=\s|$)|[+-](?=\s|$)|-+$|=+$)", r"\\\1", text)  # a heading, a list, a rule


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], texts: int = 1) -> str:
    """A table whose first `texts` columns are text and whose others are numbers. Cells are Markdown already."""
    lines = [heads, [*["---"] * texts, *["---:"] * (len(heads) - texts)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def fenced(text: str) -> str:
    """A code block that its content cannot end."""
    text = "\n".join(plain(text).splitlines())
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text}\n{fence}"


def markdown_report(report: Report) -> str:
    """The whole document, the verdict first."""
    return "\n\n".join(filter(None, (section(report) for section in SECTIONS))) + "\n"


def verdict_section(report: Report) -> str:
    """The verdict in the title, then what it rests on."""
    again = words.aa_words(report)
    return "\n\n".join(
        (
            f"# {'✓ Passed' if report['verdict'] == 'passed' else '✗ Failed'}: {markdown(report['headline'])}",
            markdown(words.origin_words(report)),
            f"**Quality.** {markdown(words.certificate_words(report))}",
            f"**Speedup.** {markdown(words.speedup_words(report))}",
            *([f"**A/A.** {markdown(again)}"] if again else []),
        )
    )


def comparisons_section(report: Report) -> str:
    """What the result was held against, and how many answers changed."""
    compared = words.comparisons(report)
    if not compared:
        return ""
    lines = [[markdown(cell) for cell in words.comparison_cells(one)] for one in compared]
    heads = [markdown(head) for head in words.COMPARED]
    return "\n\n".join(("## Held against", markdown(words.COMPARED_LEAD), table(heads, lines, texts=2)))


def rows_section(report: Report) -> str:
    """The models side by side, baseline first; in parentheses the change against the original."""
    lines = []
    for row in report["rows"]:
        lines.append([markdown(row["name"]), *(_cell(cell) for cell in words.row_cells(report, row))])
    parts = ["## What it gained, what it cost", table([markdown(head) for head in words.headers(report)], lines)]
    others = words.other_metrics(report)
    if others:
        heads = ["other metrics", *(markdown(row["name"]) for row in report["rows"])]
        parts.append(table(heads, [_other_line(report, name) for name in others]))
    return "\n\n".join(parts)


def _other_line(report: Report, name: str) -> list[str]:
    cells = (_cell(words.metric_cell(report, row, name, None)) for row in report["rows"])
    return [markdown(words.other_head(report, name)), *cells]


def _cell(cell: words.Cell) -> str:
    change = f"({cell.change})" if cell.change else ""
    return " ".join(filter(None, (markdown(cell.text), markdown(cell.note) if cell.note else "", markdown(change))))


def chain_section(report: Report) -> str:
    """The strip in block characters, and the dropped links by name."""
    chosen, blocks = words.choices(report), int(report["plan"]["num_blocks"])
    named = packed.letters(report)
    signs = {name: named[plain(part["format"])] for name, part in packed.parts(report).items()}
    columns = per_line(blocks, WIDTHS["wide"]) if blocks else 1
    lines = []
    for start in range(0, blocks, columns):
        span = range(start, min(start + columns, blocks))
        for kind, label in words.KIND_LABELS.items():
            cells = (chosen.get(f"{block}.{kind}") for block in span)
            drawn = "".join(" " if c is None else signs.get(c["link"]) or _sign(c) for c in cells)
            lines.append(f"{label:<10}{drawn}  blocks {span[0]} to {span[-1]}")
    dropped = [markdown(name) for name, choice in chosen.items() if choice["action"] == "drop"]
    kept = ", ".join(f"{letter} {markdown(form)}" for form, letter in named.items()) or f"{KEPT} kept"
    legend = f"{kept}, {DROPPED} dropped" + (f", {BARE} dropped but for its norm" if BARE in "".join(lines) else "")
    parts = ["## What is left of the chain", markdown(words.chain_words(report)), fenced("\n".join(lines)), legend]
    return "\n\n".join([*parts, *(["Dropped: " + ", ".join(dropped)] if dropped else [])])


def _sign(choice: Mapping[str, Any]) -> str:
    return KEPT if choice["action"] != "drop" else BARE if choice.get("norm") == "keep" else DROPPED


def packed_section(report: Report) -> str:
    """What each part is packed in."""
    if not packed.parts(report):
        return ""
    tables = ((packed.FORMATS_HEADS, packed.format_rows(report), 1), (packed.PARTS_HEADS, packed.part_rows(report), 2))
    drawn = [table(heads, [[markdown(cell) for cell in row] for row in rows], texts) for heads, rows, texts in tables]
    return "\n\n".join(("## What it is packed in", markdown(packed.packed_words(report)), *drawn))


def frontier_section(report: Report) -> str:
    """Every measured plan, fastest last."""
    points = report.get("frontier") or []
    if not points:
        return ""
    label = (report.get("frontier_quality") or {}).get("label") or "quality"
    lines, sized = [], packed.has_sizes(report)
    for point in sorted(points, key=lambda point: -(finite(point.get("latency_ms")) or 0)):
        name = markdown(point.get("method")) + (" **(chosen)**" if point.get("chosen") else "")
        limits = interval(significant(point.get("low")), significant(point.get("high")))
        quality = " ".join(filter(None, (significant(point.get("quality")), limits)))
        numbers = (
            times(point.get("speedup")),
            significant(point.get("latency_ms")),
            quality,
            plain(point.get("links")),
        )
        sizes = packed.size_cells(point) if sized else ()
        cells = (markdown(number) for number in (*numbers, *sizes))
        lines.append([name, markdown(point.get("stage") or MISSING), *cells])
    heads = ["method", "stage", "speedup", "latency, ms", markdown(label), "links"]
    heads += ["size", "bits a weight"] if sized else []
    return "## Quality against latency\n\n" + table(heads, lines, texts=2)


def tables_section(report: Report) -> str:
    """Tables by label, before and after."""
    parts = []
    heads = ["label", "count"]
    heads += [f"{name} {when}" for name in words.SCORES.values() for when in ("before", "after", "change")]
    for each in report.get("tables") or []:
        rows = words.paired(each)
        decimals = words.table_decimals(rows)
        lines = []
        for row in rows:
            line = [markdown(row.label), row.support]
            for key in words.SCORES:
                line += [fixed(row.before.get(key), decimals), fixed(row.after.get(key), decimals)]
                line.append(markdown(signed(fixed(row.change(key), decimals))))
            lines.append(line)
        parts.append(f"## {markdown(each['title'])}\n\n{table(heads, lines)}")
    return "\n\n".join(parts)


def samples_section(report: Report) -> str:
    """What both models wrote."""
    parts = []
    for sample in report.get("samples") or []:
        both = "\n\n".join(f"{side}:\n\n{fenced(sample.get(side))}" for side in ("original", "changed"))
        parts.append(f"**{markdown(sample.get('prompt'))}**\n\n{both}")
    return "\n\n".join(["## Samples", *parts]) if parts else ""


def notes_section(report: Report) -> str:
    """What the reader should know besides."""
    notes = [f"- {markdown(note)}" for note in report.get("notes") or []]
    return "## Notes\n\n" + "\n".join(notes) if notes else ""


def facts_section(report: Report) -> str:
    """Command, machine, recipe, the plan's origin and timings."""
    parts = [f"## Command\n\n{fenced(report['command'])}"] if report.get("command") else []
    origin = {"method": report["plan"].get("method"), **(report["plan"].get("origin") or {})}
    groups = {"Machine": report.get("machine"), "Recipe": report.get("recipe"), "Where the plan came from": origin}
    for name, facts in groups.items():
        if facts:
            lines = [[markdown(key), markdown(value)] for key, value in flat(facts)]
            parts.append(f"## {name}\n\n{table(['', ''], lines, texts=2)}")
    timings = [[markdown(stage), duration(seconds)] for stage, seconds in (report.get("timings") or {}).items()]
    if timings:
        timings.append(["all", duration(report.get("seconds"))])
        parts.append(f"## Timings\n\n{table(['stage', 'time'], timings)}")
    return "\n\n".join(parts)


SECTIONS: tuple[Callable[[Report], str], ...] = (
    verdict_section,
    comparisons_section,
    rows_section,
    chain_section,
    packed_section,
    frontier_section,
    tables_section,
    samples_section,
    notes_section,
    facts_section,
)
