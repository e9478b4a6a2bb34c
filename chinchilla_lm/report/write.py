"""The report of a run: one plain dictionary, written as data (report.json), text (report.md) and a page (report.html).

The dictionary is the contract; whoever ran the stages fills it, and nothing is computed here but layout, so that the
three files say the same. Both texts are made from what report.json holds, not from what was handed in.

    title, verdict ("passed" | "failed"), headline    what it is, what came out, in one sentence
    certificate   {metric, difference, low, high, margin, n, unit, passed, more_examples, higher_is_better}
    speedup       {value, low, high, target, shape: {batch, tokens, new_tokens}, what}, a shape without new_tokens where
                  nothing is written; and aa {value, low, high, against}, the original against itself in the same
                  rounds, or against a model that is built alike, which `against` names (control; else left out);
                  latency {value, low, high, target} in milliseconds
    rows          [{name, metrics: {NAME: {value, low, high, unit}}, latency_ms: {p50, p95}, throughput,
                  throughput_unit, parameters, bytes, links}], the original first, the result last
    primary_metric  {name, label, unit, higher_is_better}
    plan          {num_blocks, method, choices: [{link, action, norm, format}], origin, head}
    machine, recipe, timings (seconds by stage), seconds (of all attempts), command, created (ISO 8601)

and, each left out with its section where there is none:

    costs         [{links, cost, time_us}]: shades the chain
    comparisons   [{data, against, the keys of certificate, verdict, agreement: {answers, same, flipped, kl:
                  {value, low, high}} or null}], that of the certificate first
    packed        {format, bytes, bits, memory_mb, parts: [{what, format, bytes, bits}], single: {format, value, low,
                  high}}, of a result that is a program: what its links and head are packed in, and how many times as
                  fast it is as the original in one format
    frontier      [{method, stage, speedup, latency_ms, quality, low, high, links, chosen}], with
                  frontier_quality {label, higher_is_better}; of plans with formats bytes and bits too, and style, where
                  several methods are drawn alike
    tables        [{title, before: [{label, precision, recall, f1, support}], after}]
    samples       [{prompt, original, changed}]
    notes         [text]

A number that is missing, null or NaN is shown as an en dash.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from chinchilla_lm.files import json_text, write_atomic
from chinchilla_lm.report.markdown import markdown_report
from chinchilla_lm.report.page import html_report

VERDICTS = ("passed", "failed")
REQUIRED = ("title", "verdict", "headline", "certificate", "speedup", "rows", "primary_metric", "plan")


def write_report(report: Mapping[str, Any], folder: Path) -> None:
    """Writes report.json, report.md and report.html into `folder`, each atomically.

    Raises ValueError, before anything is written, where a required key is missing, the verdict is neither "passed" nor
    "failed", or there is no row.
    """
    check(report)
    # ASCII, so that not even half a surrogate pair in a model's answer can stop the report at the end of a run.
    text = json_text(dict(report), indent=2, ascii_only=True) + "\n"
    stored = json.loads(text)
    pages = {"report.md": markdown_report(stored), "report.html": html_report(stored)}
    write_atomic(folder / "report.json", text)
    for name, page in pages.items():
        write_atomic(folder / name, page)


def check(report: Mapping[str, Any]) -> None:
    """Raises ValueError for a report that cannot be laid out."""
    missing = [key for key in REQUIRED if report.get(key) is None]
    if missing:
        raise ValueError(f"report lacks {', '.join(missing)}; required are {', '.join(REQUIRED)}")
    if report["verdict"] not in VERDICTS:
        raise ValueError(f"verdict {report['verdict']!r} is not one of {', '.join(VERDICTS)}")
    if not report["rows"]:
        raise ValueError("report has no rows; the original is the first")
