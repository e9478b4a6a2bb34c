"""What came of a race, for people: a table for the terminal and for Markdown, and a chart."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from chinchilla_lm.peers.leads import MEASURES
from chinchilla_lm.peers.table import OURS
from chinchilla_lm.runtime.measuring.roof import share_text

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
    found = {"engine": row["engine"], "format": row["format"]}
    bits = row.get("bits_per_weight")
    found["bits a weight"] = "" if bits is None else f"{bits:.2f}"
    found |= {"keys, values": row.get("cache", ""), "threads": _threads(row.get("threads", {}))}
    for key, name in COLUMNS.items():
        low, high = row.get("spread", {}).get(key, (None, None))
        spread = "" if low is None else f" [{low:,.0f}, {high:,.0f}]"
        found[name] = "" if row.get(key) is None else f"{row[key]:,.0f}{spread}"
    latency = row.get("latency_ms", {})
    found["p50 ms"], found["p95 ms"] = (f"{latency[p]:.2f}" if p in latency else "" for p in ("p50", "p95"))
    found["first token ms"] = f"{row['first_token_ms']['p50']:.1f}" if "first_token_ms" in row else ""
    shares = row.get("roofline", {})
    found["of bandwidth"], found["of products"] = (share_text(shares, name) for name in ("bandwidth", "gemm"))
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
    found |= {"rounds": _rounds(row.get("rounds", {})), "note": _note(row), "failed": row.get("error") or ""}
    return found


def _threads(threads: dict[str, int]) -> str:
    """One number, or those of each measure."""
    if len(set(threads.values())) <= 1:
        return "".join(str(one) for one in set(threads.values()))
    return ", ".join(f"{MEASURES[measure]} {number}" for measure, number in threads.items())


def _rounds(rounds: dict[str, int]) -> str:
    """As many as all measures had, or the least and the most."""
    if not rounds:
        return ""
    least, most = min(rounds.values()), max(rounds.values())
    return str(least) if least == most else f"{least} to {most}"


def _note(row: Row) -> str:
    """What the row has to say, and where its quartiles stayed wide."""
    wide = [
        f"{MEASURES[measure]}: quartiles {100 * share:.0f} % of the median apart after {row['rounds'][measure]} rounds"
        for measure, share in row.get("wide", {}).items()
    ]
    return "; ".join([*([row["note"]] if row.get("note") else []), *wide])


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
    left, bar, step, width = 330, 18, 28, 880
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
        colour = "#1f5f8b" if row["engine"] == OURS else "#a9bccb"
        bits = row.get("bits_per_weight")
        name = f"{row['engine']} {row['format']}" + ("" if bits is None else f", {bits:.1f} bits")
        name += f", {row['cache']} keys" if row.get("cache") else ""
        parts.append(f'<text x="{left - 8}" y="{y + 14}" text-anchor="end">{escape(name[:50])}</text>')
        parts.append(f'<rect x="{left}" y="{y}" width="{row[key] * scale:.1f}" height="{bar}" fill="{colour}"/>')
        end = row[key]
        if key in row.get("spread", {}):
            low, high = row["spread"][key]
            end = max(end, high)
            whisker = f"M{left + low * scale:.1f} {y + bar / 2}H{left + high * scale:.1f}"
            parts.append(f'<path d="{whisker}" stroke="#222222" stroke-width="2"/>')
        parts.append(f'<text x="{left + end * scale + 6:.1f}" y="{y + 14}">{row[key]:,.0f}</text>')
    return "\n".join([*parts, "</svg>", ""])
