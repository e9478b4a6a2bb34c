"""`chinchilla compress`: the main job. Score, search, shorten, recover, certify, report, in one run folder."""

from __future__ import annotations

import argparse
import copy
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from chinchilla_lm.console import Console, duration
from chinchilla_lm.errors import InputError
from chinchilla_lm.recipe import Recipe, add_flags, command_of, from_args, require_target

if TYPE_CHECKING:
    from chinchilla_lm.commands.stages import Stages
    from chinchilla_lm.evaluate.certificate import Certificate
    from chinchilla_lm.evaluate.judge import Judged
    from chinchilla_lm.models.transformer import Transformer
    from chinchilla_lm.plan import CostTable, Plan
    from chinchilla_lm.runtime.clock import Ratio, Timing

FIELDS = (
    "model", "task", "data", "train", "dev", "test", "calibration",
    "text_column", "label_column", "group_column", "time_column", "split_by", "encoding",
    "output", "speedup", "latency_ms", "margin", "metric", "method", "max_measures",
    "device", "dtype", "backend", "threads", "batch", "tokens",
    "context", "max_tokens", "seed", "calibration_tokens", "score_loss", "recover",
)  # fmt: skip
CERTIFICATE_FAILED = 3
# Seconds that original, shortened and recovered model are timed, in turn.
FINAL_CLOCK_SECONDS = 6.0
# Words of the first test document that both models continue in the report.
PROMPT_WORDS = 12
# Tokens of that prompt at most, where words are long or not parted by spaces, and of each continuation.
PROMPT_TOKENS, SAMPLE_TOKENS = 64, 40
# Said in the report, for other programs decode tags word by word.
LEGAL_TAGS = "tags of both models are decoded as the most probable sequence that BIO allows"
# Metrics of each task, the one that is certified unless another is asked for first.
METRICS = {
    "token-classification": ("entity_f1", "token_micro", "token_macro", "token_weighted"),
    "text-classification": ("accuracy", "macro_f1", "weighted_f1"),
    "language-modeling": ("perplexity", "bits_per_byte"),
    "ranking": ("mean_squared_error",),
}
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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Every field of a recipe."""
    add_flags(parser, FIELDS)


def run(args: argparse.Namespace, console: Console) -> int:
    """Run the main job. Returns 0 where the certificate passed, 3 where it failed."""
    result = compress(from_args(args), console)
    console.result(result)
    return 0 if result["verdict"] == "passed" else CERTIFICATE_FAILED


def compress(recipe: Recipe, console: Console) -> dict[str, Any]:
    """The whole main job; everything it makes is in the recipe's output folder. Returns what `--json` prints."""
    require_target(recipe)
    known = METRICS[recipe.task]
    if recipe.metric is not None and recipe.metric not in known:
        raise InputError(f"metric {recipe.metric!r} is not one of {', '.join(known)}; pass --metric {known[0]}")
    from chinchilla_lm.commands.stages import Stages
    from chinchilla_lm.data.labels import require_classes

    begun = time.monotonic()
    stages = Stages(recipe, console)
    _warn_of_few_documents(stages)
    if recipe.recover.epochs > 0:
        stages.job.dataset.records("dev")
        require_classes(stages.job.dataset)
    _ = stages.job.labels
    table = stages.score()
    plan = stages.search(table)
    short = stages.shorten(plan)
    unrecovered = copy.deepcopy(short.model)  # recovery trains it in place
    recovered = stages.recover(short, plan)
    models = {
        "original": stages.job.checkpoint.model,
        "shortened": unrecovered,
        "recovered": recovered.model,
    }
    return finish(stages, table, plan, models, begun)


def _warn_of_few_documents(stages: Stages) -> None:
    """Say at once what the certificate would say at the end."""
    from chinchilla_lm.evaluate.certificate import MIN_DOCUMENTS

    records = stages.job.dataset.records("test")
    if stages.recipe.task == "language-modeling":  # documents count by the windows that begin in them
        records = [records[window.owners[0][0]] for window in stages.job.encode(records)]
    documents = len({record.document for record in records})
    if documents < MIN_DOCUMENTS:
        stages.console.warn(
            f"{documents} documents to test on decide nothing unless both models answer alike; a certificate needs "
            f"{MIN_DOCUMENTS}; pass more test data"
        )


def finish(
    stages: Stages, table: CostTable, plan: Plan, models: dict[str, Transformer], begun: float
) -> dict[str, Any]:
    """Judge and time all models, certify the last, write the report, print the verdict."""
    from chinchilla_lm.evaluate.certificate import certify
    from chinchilla_lm.evaluate.report import write_report

    recipe, job, console = stages.recipe, stages.job, stages.console
    judge = job.judge("test")
    judged: dict[str, Judged] = {}
    served = {name: job.serve(model) for name, model in models.items()}
    with console.progress(len(models), "evaluate", "models") as progress:
        for name, one in served.items():
            judged[name] = judge(one)
            progress.advance(1, name)
    timings = job.time(served, FINAL_CLOCK_SECONDS)
    metric = recipe.metric or judged["original"].primary.name
    measured = {name: one.measurement.sums.get(metric) for name, one in judged.items()}
    before, after = measured["original"], measured["recovered"]
    if before is None or after is None:
        known = ", ".join(judged["original"].measurement.sums)
        raise InputError(f"metric {metric!r} is not one of {known}; pass --metric {judged['original'].primary.name}")
    certificate = certify(before, after, recipe.margin, judged["original"].measurement.n)
    rows = [_row(name, models[name], judged[name], timings[name], stages) for name in models]
    from chinchilla_lm.runtime.clock import speedup

    ratio = speedup(timings["original"], timings["recovered"])
    report = _report(stages, table, plan, certificate, ratio, rows, judged, time.monotonic() - begun)
    _hold_to_the_promise(report, ratio, rows[-1]["latency_ms"]["p50"], stages)
    report["samples"] = _samples(stages, models)
    write_report(report, stages.folder.path)
    _note_certificate(stages, certificate)
    stages.folder.log({"verdict": report["verdict"], "headline": report["headline"]})
    job.show(judged["recovered"], "recovered, test")
    _print(console, report, stages)
    keys = ("metric", "difference", "low", "high", "margin", "n", "unit")
    return {
        "verdict": report["verdict"],
        "certificate": {key: value for key, value in certificate.to_dict().items() if key in keys},
        "speedup": ratio.value,
        "rows": rows,
        "plan": plan.to_dict(),
        "seconds": report["seconds"],
    }


def _hold_to_the_promise(report: dict[str, Any], ratio: Ratio, latency_ms: float, stages: Stages) -> None:
    """The last timing has the last word: a speed that was not reached fails the verdict, or, within noise, is said."""
    from chinchilla_lm.score.contract import Target

    target = Target(stages.recipe.speedup, stages.recipe.latency_ms)
    reached = target.reached(ratio, latency_ms)
    if reached >= 1:
        return
    within_noise = reached * ratio.high / ratio.value >= 1
    line = f"{target.words()} was asked for; the last timing gave {ratio.value:.2f}× and {latency_ms:.2f} ms"
    if not within_noise:
        report["verdict"] = "failed"
        report["headline"] = f"{line}. {report['headline']}"
    stages.console.warn(line)
    report["notes"].append(line)


def _row(name: str, model: Transformer, judged: Judged, timing: Timing, stages: Stages) -> dict[str, Any]:
    batch, tokens = stages.job.shape
    language = stages.recipe.task == "language-modeling"
    count = sum(parameter.numel() for parameter in model.parameters())  # a shared one once
    sums = judged.measurement.sums
    metrics = {
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


def _report(
    stages: Stages,
    table: CostTable,
    plan: Plan,
    certificate: Certificate,
    ratio: Ratio,
    rows: list[dict[str, Any]],
    judged: dict[str, Judged],
    seconds: float,
) -> dict[str, Any]:
    from chinchilla_lm.runtime import machine

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


def _in_points(row: dict[str, Any]) -> dict[str, Any]:
    """The row with its fractions (F1, accuracy) in points, as people read them."""
    scaled = {}
    for name, metric in row["metrics"].items():
        factor = 100 if metric["unit"] == "points" else 1
        values = {key: None if metric[key] is None else factor * metric[key] for key in ("value", "low", "high")}
        scaled[name] = {**metric, **values}
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


def _samples(stages: Stages, models: dict[str, Transformer]) -> list[dict[str, str]]:
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


def _note_certificate(stages: Stages, certificate: Certificate) -> None:
    """Put the certificate beside the weights it is about, with the hashes of all that it rests on."""
    from chinchilla_lm.files import json_text, read_json, sha256_of, write_atomic

    weights = stages.folder.file("model") / "model.safetensors"
    hashes = {
        "weights": sha256_of(weights),
        "original": stages.job.checkpoint.sha256,
        "data": stages.job.data_sha256,
    }
    path = stages.folder.file("model") / "chinchilla.json"
    meta = read_json(path, "model description")
    write_atomic(path, json_text({**meta, "certificate": certificate.to_dict(), "sha256": hashes}, indent=1) + "\n")


def _print(console: Console, report: dict[str, Any], stages: Stages) -> None:
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
