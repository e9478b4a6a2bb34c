"""What the main job found, as the dictionary that the report is made of, and in the terminal."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from chinchilla_lm.console import Console, duration
from chinchilla_lm.evaluate.certificate import Certificate
from chinchilla_lm.evaluate.judge import Judged
from chinchilla_lm.models.transformer import Transformer
from chinchilla_lm.pipeline.stages import Stages
from chinchilla_lm.plan import CostTable, Plan
from chinchilla_lm.recipe import command_of
from chinchilla_lm.results import CompressRow, MetricInterval
from chinchilla_lm.runtime.measuring import machine
from chinchilla_lm.runtime.measuring.clock import Ratio, Timing

# Words of the first test document that both models continue in the report.
PROMPT_WORDS = 12
# Tokens of that prompt at most, where words are long or not parted by spaces, and of each continuation.
PROMPT_TOKENS, SAMPLE_TOKENS = 64, 40
# Said in the report, for other programs decode tags word by word.
LEGAL_TAGS = "tags of both models are decoded as the most probable sequence that BIO allows"
METRIC_LABELS = {
    "entity_f1": "entity F1",
    "token_micro": "token micro F1",
    "token_macro": "token macro F1",
    "token_weighted": "token weighted F1",
    "accuracy": "accuracy",
    "macro_f1": "macro F1",
    "weighted_f1": "weighted F1",
    "perplexity": "perplexity",
    "bits_per_byte": "bits per byte",
    "mean_squared_error": "mean squared error",
}


def row_of(name: str, model: Transformer, judged: Judged, timing: Timing, stages: Stages) -> CompressRow:
    batch, tokens = stages.job.shape
    language = stages.recipe.task == "language-modeling"
    count = sum(parameter.numel() for parameter in model.parameters())  # a shared one once
    sums = judged.measurement.sums
    metrics: dict[str, MetricInterval] = {
        metric: {**estimate.to_dict(), "unit": sums[metric].unit}
        for metric, estimate in judged.measurement.estimates().items()
    }
    return {
        "name": name,
        "metrics": metrics,
        "latency_ms": timing.to_dict(),
        "throughput": (batch * tokens if language else batch) / (timing.p50 / 1000),
        "throughput_unit": "tokens/s" if language else "sequences/s",
        "parameters": count,
        "bytes": count * stages.job.dtype.itemsize,
        "links": len(model.link_names),
    }


def report_of(
    stages: Stages,
    table: CostTable,
    plan: Plan,
    certificate: Certificate,
    ratio: Ratio,
    rows: list[CompressRow],
    judged: dict[str, Judged],
    seconds: float,
) -> dict[str, Any]:

    recipe, job = stages.recipe, stages.job
    batch, tokens = job.shape
    metric = certificate.metric
    sums = judged["original"].measurement.sums[metric]
    return {
        "title": f"{recipe.model}, shortened",
        "verdict": "passed" if certificate.passed else "failed",
        "headline": _headline(certificate, ratio),
        "certificate": {**certificate.to_dict(), "higher_is_better": sums.higher_is_better},
        "speedup": {
            **ratio.to_dict(),
            "target": recipe.speedup,
            "shape": {"batch": batch, "tokens": tokens},
            "what": f"end-to-end latency, {table.backend} backend, {table.dtype}",
        },
        "rows": [_in_points(row) for row in rows],
        "primary_metric": {
            "name": metric,
            "label": METRIC_LABELS.get(metric, metric),
            "unit": sums.unit,
            "higher_is_better": sums.higher_is_better,
        },
        "plan": plan.to_dict(),
        "costs": [{"links": list(e.links), "cost": e.cost, "time_us": e.time_us} for e in table.entries],
        "frontier": stages.frontier(),
        "frontier_quality": {"label": f"{_cost_words(table)}, {table.unit}", "higher_is_better": False},
        "tables": _tables(judged["original"], judged["recovered"]),
        "machine": machine.describe(),
        "recipe": recipe.model_dump(exclude_none=True),
        "timings": stages.folder.timings(),
        "seconds": round(seconds + stages.folder.earlier(), 1),
        "command": command_of("compress", recipe),
        "notes": [certificate.verdict, *([LEGAL_TAGS] if job.legal_tags else []), *job.dataset.notes],
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _in_points(row: CompressRow) -> CompressRow:
    """The row with its fractions (F1, accuracy) in points, as people read them."""
    scaled: dict[str, MetricInterval] = {}
    for name, metric in row["metrics"].items():
        factor = 100 if metric["unit"] == "points" else 1
        known = (metric["value"], metric["low"], metric["high"])
        value, low, high = (None if one is None else factor * one for one in known)
        scaled[name] = {"value": value, "low": low, "high": high, "unit": metric["unit"]}
    return {**row, "metrics": scaled}


def _cost_words(table: CostTable) -> str:
    return "KL from the original before recovery" if table.metric == "kl" else "rise of the task loss before recovery"


def _headline(certificate: Certificate, ratio: Ratio) -> str:
    unit = "%" if certificate.unit == "percent" else " points"
    label = METRIC_LABELS.get(certificate.metric, certificate.metric)
    inside = "within" if certificate.passed else "not shown to be within"
    return (
        f"{ratio.value:.2f}× as fast; {label} {certificate.difference:+.2f}{unit} "
        f"[{certificate.low:+.2f}, {certificate.high:+.2f}], {inside} the margin of {certificate.margin:g}"
    )


def _tables(before: Judged, after: Judged) -> list[dict[str, Any]]:
    titles = {"entities": "Entities by type", "tokens": "Tokens by tag", "classes": "Texts by class"}
    return [
        {"title": titles.get(name, name), "before": table.rows, "after": after.measurement.tables[name].rows}
        for name, table in before.measurement.tables.items()
        if name in after.measurement.tables
    ]


def samples(stages: Stages, models: dict[str, Transformer]) -> list[dict[str, str]]:
    """One greedy continuation from both models, for a person to read."""
    config = stages.job.checkpoint.model.config
    if stages.recipe.task != "language-modeling" or not config.causal:
        return []

    paragraphs = [part.split() for part in stages.job.dataset.records("test")[0].text.split("\n\n")]
    all_words = [word for words in paragraphs for word in words]
    prose = next((words for words in paragraphs if len(words) >= 2 * PROMPT_WORDS), all_words)  # not a heading
    prompt = " ".join(prose[:PROMPT_WORDS])
    tokenizer, share = stages.job.checkpoint.tokenizer, max(1, config.max_positions // 4)
    ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    if len(ids) > min(PROMPT_TOKENS, share):
        prompt = tokenizer.decode(ids[: min(PROMPT_TOKENS, share)])
    texts = []
    for name in ("original", "recovered"):
        checkpoint = stages.job.checkpoint.with_model(models[name])
        session = stages.job.session(checkpoint)
        texts.append(session.generate(prompt, max_new_tokens=min(SAMPLE_TOKENS, share)))
    return [{"prompt": prompt, "original": str(texts[0]), "changed": str(texts[1])}]


def show(console: Console, report: dict[str, Any], stages: Stages) -> None:
    metric = report["primary_metric"]["name"]
    rows = []
    for row in report["rows"]:
        value, low, high = (row["metrics"][metric][key] for key in ("value", "low", "high"))
        quality = f"{value:.2f}" + ("" if low is None else f" [{low:.2f}, {high:.2f}]")
        latency = row["latency_ms"]
        rows.append(
            [
                row["name"], row["links"], quality, f"{latency['p50']:.2f}", f"{latency['p95']:.2f}",
                f"{row['throughput']:,.0f}", f"{row['parameters'] / 1e6:.1f} M", f"{row['bytes'] / 1e6:.0f} MB",
            ]
        )  # fmt: skip
    unit = report["rows"][0]["throughput_unit"]
    console.table(["model", "links", metric, "p50 ms", "p95 ms", unit, "parameters", "size"], rows)
    console.show(f"\n{report['verdict'].upper()}: {report['headline']}")
    console.show(f"{report['notes'][0]}")
    console.show(f"report: {stages.folder.file('report.html')}   model: {stages.folder.file('model')}")
    earlier = ", earlier attempts included" if stages.folder.earlier() else ""
    console.show(f"took {duration(report['seconds'])}{earlier}")
