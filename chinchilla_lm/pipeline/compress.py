"""The main job: score, search, shorten, recover, certify, report, in one run folder."""

from __future__ import annotations

import copy
import math
import time
from typing import Any

from chinchilla_lm.console import Console
from chinchilla_lm.data.labels import require_classes
from chinchilla_lm.errors import InputError
from chinchilla_lm.evaluate.certificate import MIN_DOCUMENTS, Certificate, certify
from chinchilla_lm.evaluate.judge import Judged
from chinchilla_lm.models.transformer import Transformer
from chinchilla_lm.pipeline.issuing import artifact_of, data_of, original_of
from chinchilla_lm.pipeline.outcome import report_of, row_of, samples, show
from chinchilla_lm.pipeline.stages import Stages
from chinchilla_lm.plan import CostTable, Plan
from chinchilla_lm.recipe import Recipe, require_target
from chinchilla_lm.report.write import write_report
from chinchilla_lm.results import CompressResult
from chinchilla_lm.runtime.artifact import hashes
from chinchilla_lm.runtime.certified import Speed, issue, printable
from chinchilla_lm.runtime.measuring import machine
from chinchilla_lm.runtime.measuring.clock import Ratio, speedup
from chinchilla_lm.score.contract import Target

# Seconds that original, shortened and recovered model are timed, in turn.
FINAL_CLOCK_SECONDS = 6.0
# Metrics of each task, the one that is certified unless another is asked for first.
METRICS = {
    "token-classification": ("entity_f1", "token_micro", "token_macro", "token_weighted"),
    "text-classification": ("accuracy", "macro_f1", "weighted_f1"),
    "language-modeling": ("perplexity", "bits_per_byte"),
    "ranking": ("mean_squared_error",),
}


def compress(recipe: Recipe, console: Console) -> CompressResult:
    """The whole main job; everything it makes is in the recipe's output folder. Returns what `--json` prints."""
    require_target(recipe)
    known = METRICS[recipe.task]
    if recipe.metric is not None and recipe.metric not in known:
        raise InputError(f"metric {recipe.metric!r} is not one of {', '.join(known)}; pass --metric {known[0]}")

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
) -> CompressResult:
    """Judge and time all models, certify the last, write the report, print the verdict."""

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
    rows = [row_of(name, models[name], judged[name], timings[name], stages) for name in models]

    ratio = speedup(timings["original"], timings["recovered"])
    report = report_of(stages, table, plan, certificate, ratio, rows, judged, time.monotonic() - begun)
    _hold_to_the_promise(report, ratio, rows[-1]["latency_ms"]["p50"], stages)
    report["samples"] = samples(stages, models)
    write_report(report, stages.folder.path)
    _note_certificate(stages, certificate, judged["original"], ratio)
    stages.folder.log({"verdict": report["verdict"], "headline": report["headline"]})
    job.show(judged["recovered"], "recovered, test")
    show(console, report, stages)
    return {
        "verdict": report["verdict"],
        "certificate": certificate.decision(),
        "speedup": ratio.value,
        "rows": rows,
        "plan": plan.to_dict(),
        "seconds": report["seconds"],
    }


def _hold_to_the_promise(report: dict[str, Any], ratio: Ratio, latency_ms: float, stages: Stages) -> None:
    """The last timing has the last word: a speed that was not reached fails the verdict, or, within noise, is said."""

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


def _note_certificate(stages: Stages, certificate: Certificate, original: Judged, ratio: Ratio) -> None:
    """Put the certificate beside the weights that it is about."""

    job, folder = stages.job, stages.folder.file("model")
    batch, tokens = job.shape
    low, high = (bound if math.isfinite(bound) else None for bound in (ratio.low, ratio.high))
    cpu = printable(machine.cpu_model())
    speed = Speed(batch=batch, tokens=tokens, value=ratio.value, low=low, high=high, threads=job.threads, cpu=cpu)
    issue(
        folder,
        certificate.to_dict(),
        artifact=artifact_of(job, hashes(folder)),
        original=original_of(job),
        data=data_of(job, "test", original),
        speed=speed,
    )
