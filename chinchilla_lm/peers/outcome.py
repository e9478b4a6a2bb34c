"""What came of a race, for people: a table for the terminal and for Markdown, and a chart."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from chinchilla_lm.peers.table import OURS

Row = dict[str, Any]

COLUMNS = {
    "prefill_tokens_per_s": "prefill tokens/s",
    "decode_tokens_per_s": "decode tokens/s",
    "decode_long_tokens_per_s": "decode at 1,024",
    "decode_batch_tokens_per_s": "8 together",
    "sequences_per_s": "texts/s",
}
CHARTED = ("decode_tokens_per_s", "sequences_per_s", "prefill_tokens_per_s")


def table(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Headings, and a row of cells for each engine and format; only columns in which somebody has a figure."""
    cells = [_cells(row) for row in rows]
    names = [name for name in cells[0] if any(one.get(name) for one in cells)]
    return names, [[one.get(name, "") for name in names] for one in cells]


def _cells(row: Row) -> dict[str, str]:
    found = {"engine": row["engine"], "format": row["format"], "threads": str(row.get("threads") or "")}
    for key, name in COLUMNS.items():
        low, high = row.get("spread", {}).get(key, (None, None))
        spread = "" if low is None else f" [{low:,.0f}, {high:,.0f}]"
        found[name] = "" if row.get(key) is None else f"{row[key]:,.0f}{spread}"
    latency = row.get("latency_ms", {})
    found["p50 ms"], found["p95 ms"] = (f"{latency[p]:.2f}" if p in latency else "" for p in ("p50", "p95"))
    found["first token ms"] = f"{row['first_token_ms']['p50']:.1f}" if "first_token_ms" in row else ""
    shares = row.get("roofline", {})
    found["of bandwidth"], found["of GEMM"] = (
        f"{shares[key]:.0%}" if key in shares else "" for key in ("bandwidth_share", "gemm_share")
    )
    metrics = row.get("metrics", {})
    found |= {"perplexity": "", "entity F1": ""}
    if "perplexity" in metrics:
        found["perplexity"] = f"{metrics['perplexity']:.3f}" + ("*" if "metrics_of" in row else "")
    if "entity_f1" in metrics:
        found["entity F1"] = f"{100 * metrics['entity_f1']:.2f}"
    for key, name, form in (
        ("bytes", "weights MB", "{:.0f}"),
        ("peak_mb", "peak MB", "{:.0f}"),
        ("load_s", "load s", "{:.2f}"),
    ):
        scale = 1e6 if key == "bytes" else 1
        found[name] = form.format(row[key] / scale) if row.get(key) else ""
    found["failed"] = row.get("error") or ""
    return found


def markdown_table(names: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    """A table as Markdown has it."""
    rows = (names, ["---"] * len(names), *([cell.replace("|", "\\|") for cell in row] for row in cells))
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def document(title: str, tables: Sequence[str], notes: Sequence[str]) -> str:
    """Tables and what is to be said of them, as Markdown."""
    return "\n\n".join([f"# {title}", *tables, "\n".join(f"- {note}" for note in notes)]) + "\n"


def chart(title: str, rows: Sequence[Row]) -> str:
    """Bars of what counts most of the model, as SVG: ours dark, the others light, the quartiles as whiskers."""
    key = next(key for key in CHARTED if any(row.get(key) for row in rows))
    shown = sorted((row for row in rows if row.get(key)), key=lambda row: -row[key])
    most = max(max(row[key], *row.get("spread", {}).get(key, [0])) for row in shown)
    left, bar, step, width = 210, 18, 28, 760
    scale = (width - left - 90) / most
    height = 56 + step * len(shown)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        'font-family="system-ui, sans-serif" font-size="13">',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        f'<text x="12" y="24" font-size="15" font-weight="600">{escape(title)}: {COLUMNS[key]}</text>',
    ]
    for place, row in enumerate(shown):
        y = 44 + step * place
        colour, name = "#1f5f8b" if row["engine"] == OURS else "#a9bccb", f"{row['engine']} {row['format']}"
        parts.append(f'<text x="{left - 8}" y="{y + 14}" text-anchor="end">{escape(name[:30])}</text>')
        parts.append(f'<rect x="{left}" y="{y}" width="{row[key] * scale:.1f}" height="{bar}" fill="{colour}"/>')
        end = row[key]
        if key in row.get("spread", {}):
            low, high = row["spread"][key]
            end = max(end, high)
            whisker = f"M{left + low * scale:.1f} {y + bar / 2}H{left + high * scale:.1f}"
            parts.append(f'<path d="{whisker}" stroke="#222222" stroke-width="2"/>')
        parts.append(f'<text x="{left + end * scale + 6:.1f}" y="{y + 14}">{row[key]:,.0f}</text>')
    return "\n".join([*parts, "</svg>", ""])
