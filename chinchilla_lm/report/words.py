"""The rows and sentences of a report, said once, so that Markdown and HTML cannot disagree.

Plain, unescaped text, like `report.numbers`: this file knows the report dictionary, that one knows numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from chinchilla_lm.report.numbers import (
    MISSING,
    Report,
    count,
    duration,
    finite,
    fixed,
    interval,
    moment,
    parameters,
    plain,
    quality,
    signed,
    significant,
    size,
    times,
    with_unit,
)

KIND_LABELS = {"attn": "attention", "mlp": "MLP"}
SCORES = {"f1": "F1", "precision": "precision", "recall": "recall"}
AVERAGES = ("accuracy", "micro avg", "macro avg", "weighted avg")


# ---- the three rows -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cell:
    """One value of the rows table: what it is, its interval, its change against the original, and if that is good."""

    text: str
    note: str = ""
    change: str = ""
    tone: str = ""  # "better", "worse" or nothing
    exact: str = ""


def difference(value: object, base: object, unit: str | None, higher_is_better: bool) -> tuple[str, str]:
    """Change of a quality metric, at the decimals of what it changed from, and its tone."""
    number, original = finite(value), finite(base)
    if number is None or original is None:
        return "", ""
    _, _, decimals = quality(original, unit).partition(".")
    text = signed(fixed(number - original, len(decimals)) if "e" not in decimals else quality(number - original, unit))
    if not any(char in "123456789" for char in text):
        return "same", ""
    return text, "better" if (number > original) == higher_is_better else "worse"


def share(value: object, base: object) -> str:
    """Relative change in percent: `−32 %`."""
    number, original = finite(value), finite(base)
    if number is None or not original:
        return ""
    text = signed(fixed(100 * (number / original - 1), 0))
    return "same" if text == "0" else f"{text} %"


def ratio(value: object, base: object, faster_is_more: bool) -> tuple[str, str]:
    """How many times faster (or slower) a latency or a throughput is than the original's, and its tone."""
    number, original = finite(value), finite(base)
    if not number or not original:
        return "", ""
    gain = number / original if faster_is_more else original / number
    if fixed(gain, 2) == "1.00":
        return "same", ""
    return (f"{times(gain)} faster", "better") if gain > 1 else (f"{times(1 / gain)} slower", "worse")


def metric(row: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A metric of a row; empty where the row has none of that name."""
    found: Mapping[str, Any] = (row.get("metrics") or {}).get(name) or {}
    return found


def metric_cell(report: Report, row: Mapping[str, Any], name: str, higher_is_better: bool | None) -> Cell:
    """A metric of a row, with interval and change. Nothing is called better where the direction is not known."""
    found = metric(row, name)
    base = report["rows"][0]
    unit = found.get("unit")
    change, tone = "", ""
    if row is not base:
        before = metric(base, name).get("value")
        change, tone = difference(found.get("value"), before, unit, bool(higher_is_better))
    limits = interval(quality(found.get("low"), unit), quality(found.get("high"), unit))
    return Cell(quality(found.get("value"), unit), limits, change, tone if higher_is_better is not None else "")


def headers(report: Report) -> list[str]:
    """Column heads of the rows table."""
    primary = report["primary_metric"]
    unit = primary.get("unit")
    head = plain(primary["label"]) + (f", {plain(unit)}" if unit else "")
    rate = next((row.get("throughput_unit") for row in report["rows"] if row.get("throughput_unit")), "throughput")
    return ["model", head, "p50, ms", "p95, ms", plain(rate), "parameters", "size", "links"]


def row_cells(report: Report, row: Mapping[str, Any]) -> list[Cell]:
    """The cells of one row, in the order of `headers`, the name apart."""
    base = report["rows"][0]
    primary = report["primary_metric"]
    first = row is base
    cells = [metric_cell(report, row, primary["name"], bool(primary["higher_is_better"]))]
    for key in ("p50", "p95"):
        value, before = ((each.get("latency_ms") or {}).get(key) for each in (row, base))
        cells.append(Cell(significant(value), "", *(("", "") if first else ratio(value, before, False))))
    speed = row.get("throughput")
    cells.append(Cell(significant(speed), "", *(("", "") if first else ratio(speed, base.get("throughput"), True))))
    for key, show in (("parameters", parameters), ("bytes", size), ("links", count)):
        value = row.get(key)
        cells.append(Cell(show(value), "", "" if first else share(value, base.get(key)), "", count(value)))
    return cells


def other_metrics(report: Report) -> list[str]:
    """Names of the metrics that are not the primary one, in order of appearance."""
    primary = report["primary_metric"]["name"]
    return list(dict.fromkeys(name for row in report["rows"] for name in row.get("metrics") or {} if name != primary))


def other_head(report: Report, name: str) -> str:
    """What a further metric is called, with its unit."""
    units = (metric(row, name).get("unit") for row in report["rows"])
    unit = next(filter(None, units), None)
    return plain(name).replace("_", " ") + (f", {plain(unit)}" if unit else "")


# ---- the verdict in words -------------------------------------------------------------------------------------------


def metric_label(report: Report) -> str:
    """What people call the metric of the certificate."""
    name, primary = report["certificate"]["metric"], report["primary_metric"]
    return plain(primary["label"] if name == primary["name"] else name)


def margin_line(report: Report) -> float | None:
    """Where the margin lies on the axis of differences: below zero where higher is better, else above."""
    certificate = report["certificate"]
    margin = finite(certificate.get("margin"))
    if margin is None:
        return None
    higher = certificate.get("higher_is_better", report["primary_metric"]["higher_is_better"])
    return -abs(margin) if higher else abs(margin)


def origin_words(report: Report) -> str:
    """What was done, when, and how long it took."""
    facts = [plain(report["title"])]
    if report.get("created"):
        facts.append(moment(report["created"]))
    if finite(report.get("seconds")) is not None:
        facts.append(f"made in {duration(report['seconds'])}")
    return " · ".join(facts)


def certificate_words(report: Report) -> str:
    """What was compared, what came out, and whether the margin holds."""
    certificate = report["certificate"]
    unit = certificate.get("unit")
    change = with_unit(signed(quality(certificate.get("difference"), unit)), unit)
    limits = interval(quality(certificate.get("low"), unit), quality(certificate.get("high"), unit)) or "unknown"
    result = plain(report["rows"][-1]["name"]) if report["rows"] else "result"
    compared = comparisons(report)
    against = plain(compared[0].get("against") or "original") if compared else "original"
    label = metric_label(report)
    examples = f"on the same {count(certificate.get('n'))} examples"
    return (
        f"{label[:1].upper()}{label[1:]}, {result} against {against}, {examples}: "
        f"{change}, 95 % interval {limits}. {margin_words(report)}"
    )


COMPARED = ("data", "against", "change", "same answers", "flipped", "mean KL, nats", "margin")
COMPARED_LEAD = (
    "The result against each. Same answers: the share of labels, tags or most probable next tokens that did not "
    "change; flipped: the share that went from right to wrong or from wrong to right; mean KL: how far its "
    "probabilities are from the other model's. In brackets 95 % intervals."
)


def comparisons(report: Report) -> list[dict[str, Any]]:
    """What the result was held against, that of the certificate first; none in a report that has only the one."""
    return list(report.get("comparisons") or [])


def comparison_cells(comparison: Mapping[str, Any]) -> list[str]:
    """A comparison under the heads of COMPARED."""
    unit = comparison.get("unit")
    change = with_unit(signed(quality(comparison.get("difference"), unit)), unit)
    limits = interval(quality(comparison.get("low"), unit), quality(comparison.get("high"), unit))
    agreement = comparison.get("agreement") or {}
    shares = [_share_cell(agreement.get(name)) for name in ("same", "flipped")]
    divergence = significant((agreement.get("kl") or {}).get("value"))
    verdict = "passed" if comparison.get("passed") else "failed"
    named = [plain(comparison.get(key)) for key in ("data", "against")]
    return [*named, " ".join(filter(None, (change, limits))), *shares, divergence, verdict]


def _share_cell(estimate: Mapping[str, Any] | None) -> str:
    if estimate is None or finite(estimate.get("value")) is None:
        return MISSING
    value, low, high = (finite(estimate.get(key)) for key in ("value", "low", "high"))
    assert value is not None
    limits = "" if low is None or high is None else f" [{100 * low:.2f}, {100 * high:.2f}]"
    return f"{100 * value:.2f} %{limits}"


def margin_words(report: Report) -> str:
    """How the interval lies to the margin, and how much more data would settle an open case."""
    certificate = report["certificate"]
    line, low, high = margin_line(report), finite(certificate.get("low")), finite(certificate.get("high"))
    if line is None or low is None or high is None:
        return "There is no interval to hold against the margin."
    place = with_unit(signed(quality(line, certificate.get("unit"))), certificate.get("unit"))
    if certificate.get("passed"):
        return f"The whole interval is on the good side of the margin, {place}."
    beyond = high < line if line < 0 else low > line
    words = "The whole interval lies beyond" if beyond else "The interval crosses"
    more = finite(certificate.get("more_examples"))
    tail = f" About {count(more)} more examples would decide." if more else ""
    return f"{words} the margin, {place}.{tail}"


def speedup_words(report: Report) -> str:
    """The speedup with its interval, its target and what was timed."""
    speedup = report["speedup"]
    limits = interval(fixed(speedup.get("low"), 2), fixed(speedup.get("high"), 2))
    timed = ", ".join(filter(None, (plain(speedup.get("what") or "latency"), shape_words(speedup))))
    return " ".join(filter(None, (times(speedup.get("value")), limits, f"({timed}){target_words(speedup)}."))).strip()


def shape_words(speedup: Mapping[str, Any]) -> str:
    """`batch 1 × 128 tokens`, and how many are written, or nothing where it is not known."""
    shape = speedup.get("shape") or {}
    if not shape:
        return ""
    read = f"batch {plain(shape.get('batch'))} × {plain(shape.get('tokens'))} tokens"
    return f"{read} of prompt and {plain(shape['new_tokens'])} to write" if shape.get("new_tokens") else read


def target_words(speedup: Mapping[str, Any]) -> str:
    """Whether the asked speedup or latency was reached by the bad end of its interval, or nothing where none was
    asked."""
    target, low = finite(speedup.get("target")), finite(speedup.get("low"))
    if target is not None:
        return f", target {times(target)} {'reached' if low is not None and low >= target else 'missed'}"
    latency = speedup.get("latency") or {}
    target, high = finite(latency.get("target")), finite(latency.get("high"))
    if target is None:
        return ""
    return f", target {significant(target)} ms {'reached' if high is not None and high <= target else 'missed'}"


def aa_words(report: Report) -> str:
    """What the clock makes of the original against itself, or against a model that is built alike; nothing where
    neither was timed."""
    again = report["speedup"].get("aa") or {}
    if finite(again.get("value")) is None:
        return ""
    limits = interval(fixed(again.get("low"), 2), fixed(again.get("high"), 2))
    itself = f"the {again['against']}, which is built alike" if again.get("against") else "itself"
    return f"The original against {itself} (A/A), in the same rounds: {times(again['value'])} {limits}".strip() + "."


# ---- the chain ------------------------------------------------------------------------------------------------------


def choices(report: Report) -> dict[str, Mapping[str, Any]]:
    """The plan's choices by link name."""
    return {choice["link"]: choice for choice in report["plan"]["choices"]}


def chain_words(report: Report) -> str:
    """How much of the chain is left, and which blocks vanished whole."""
    chosen, blocks = choices(report), int(report["plan"]["num_blocks"])
    dropped = {name for name, choice in chosen.items() if choice["action"] == "drop"}
    whole = [str(block) for block in range(blocks) if all(f"{block}.{kind}" in dropped for kind in KIND_LABELS)]
    if not dropped:
        return f"All {len(chosen)} links are kept."
    parts = []
    for kind, label in KIND_LABELS.items():
        number = sum(name.endswith("." + kind) for name in dropped)
        parts.append(f"{number} {label}" if number else "")
    words = f"{len(chosen) - len(dropped)} of {len(chosen)} links kept; dropped: {' and '.join(filter(None, parts))}."
    if whole:
        words += f" Gone whole: block{'s' if len(whole) > 1 else ''} {', '.join(whole)}."
    return words


# ---- tables before and after ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Paired:
    """One label before and after: precision, recall and F1, and how many gold items it has."""

    label: str
    support: str
    before: Mapping[str, Any]
    after: Mapping[str, Any]

    def change(self, key: str) -> float | None:
        """After minus before."""
        before, after = finite(self.before.get(key)), finite(self.after.get(key))
        return None if before is None or after is None else after - before


def paired(table: Mapping[str, Any]) -> list[Paired]:
    """Rows of a table before and after, matched by label; a label that only one side has keeps its row."""
    before = {row["label"]: row for row in table.get("before") or []}
    after = {row["label"]: row for row in table.get("after") or []}
    rows = []
    for label in dict.fromkeys([*before, *after]):
        left, right = before.get(label, {}), after.get(label, {})
        rows.append(Paired(plain(label), count(left.get("support", right.get("support"))), left, right))
    return rows


def table_decimals(rows: Sequence[Paired]) -> int:
    """Two decimals for a table in points, four for one in fractions of one: the values are shown as they came."""
    values = [finite(side.get(key)) for row in rows for side in (row.before, row.after) for key in SCORES]
    return 4 if all(value is None or abs(value) <= 1 for value in values) else 2
