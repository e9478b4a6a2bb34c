"""What the main job found, as the dictionary that the report is made of, and in the terminal."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from chinchilla_lm.console import Console, duration
from chinchilla_lm.evaluate.judged import Judged
from chinchilla_lm.evaluate.tasks import metric_label
from chinchilla_lm.models.transformer import Transformer
from chinchilla_lm.pipeline.fastest import Trial
from chinchilla_lm.pipeline.job import Served
from chinchilla_lm.pipeline.judgement import ORIGINAL, Judgement
from chinchilla_lm.pipeline.stages import Stages
from chinchilla_lm.plan import HEAD, CostTable, FormatTable, Plan
from chinchilla_lm.recipe import Recipe, command_of
from chinchilla_lm.report.words import aa_words
from chinchilla_lm.results import CompressRow, MetricInterval
from chinchilla_lm.runtime.loading import load
from chinchilla_lm.runtime.measuring import machine
from chinchilla_lm.runtime.measuring.clock import Ratio, Timing
from chinchilla_lm.runtime.packing import packed_bytes
from chinchilla_lm.score.contract import HEADROOM
from chinchilla_lm.search.mixes import DROP, mix_of_plan

# Words of the first test document that both models continue in the report.
PROMPT_WORDS = 12
# Tokens of that prompt at most, where words are long or not parted by spaces, and of each continuation.
PROMPT_TOKENS, SAMPLE_TOKENS = 64, 40
# Said in the report, for other programs decode tags word by word.
LEGAL_TAGS = "tags of both models are decoded as the most probable sequence that BIO allows"
# Fields of a recipe that `compress` does not take.
ELSEWHERE = ("bidirectional", "finetune")
# Heads of the table of comparisons; `flipped` went from right to wrong or from wrong to right.
COMPARED = ("data", "against", "difference", "same answers", "flipped", "mean KL", "margin")
CONTROL_MEANS = "which is the original trained on the same data by the same schedule"


@dataclass(frozen=True, slots=True)
class Entered:
    """A model of the last race: its links and weights, what is run, and the bytes of that."""

    model: Transformer
    served: Served
    bytes: int

    @classmethod
    def float(cls, stages: Stages, model: Transformer) -> Entered:
        """One that is not packed."""
        return cls(model, stages.job.serve(model), parameters(model) * stages.job.dtype.itemsize)


@dataclass(frozen=True, slots=True)
class PackedResult:
    """A program that is the result of the job: its folder, the hashes of its files before they were read, the table
    that its formats were chosen from, and the format of the original that it is held against besides."""

    folder: Path
    files: dict[str, str]
    formats: FormatTable
    single: str


def alone(form: str) -> str:
    """What the original in a single format is called."""
    return f"original in {form}"


def parameters(model: Transformer) -> int:
    """How many it has, a shared one once."""
    return sum(parameter.numel() for parameter in model.parameters())


def row_of(name: str, entered: Entered, judged: Judged, timing: Timing, stages: Stages) -> CompressRow:
    shape = stages.job.shape
    sums = judged.measurement.sums
    metrics: dict[str, MetricInterval] = {
        metric: {**estimate.to_dict(), "unit": sums[metric].unit}
        for metric, estimate in judged.measurement.estimates().items()
    }
    return {
        "name": name,
        "metrics": metrics,
        "latency_ms": timing.to_dict(),
        "throughput": shape.batch * (shape.new_tokens or 1) / (timing.p50 / 1000),
        "throughput_unit": "new tokens/s" if shape.new_tokens else "sequences/s",
        "parameters": parameters(entered.model),
        "bytes": entered.bytes,
        "links": len(entered.model.link_names),
    }


def add_packed(report: dict[str, Any], packed: PackedResult, plan: Plan, ratio: Ratio, stages: Stages) -> None:
    """What a packed result has of its own: formats, bytes and bits of each part, and how much faster it is than the
    original in one format. ratio: the latter."""
    last, table = report["rows"][-1], packed.formats
    matrices = stages.job.checkpoint.model.matrices()
    sizes = packed_bytes(stages.mixer.short(plan), str(stages.mixer.formats_of(plan)))[1]
    parts = []
    for what, form in mix_of_plan(plan).items():
        if form != DROP:
            names = [HEAD] if what == HEAD else [f"{what}.first", f"{what}.second"]
            weights = sum(matrices[name].weight.numel() for name in names)
            parts.append({"what": what, "format": form, "bytes": sizes[what], "bits": 8 * sizes[what] / weights})
    report["packed"] = {
        "format": str(stages.mixer.formats_of(plan)),
        "bytes": last["bytes"],
        "bits": 8 * last["bytes"] / last["parameters"],
        "memory_mb": stages.recipe.memory_mb,
        "parts": parts,
        "single": {"format": packed.single, **ratio.to_dict()},
    }
    report["headline"] += f"; {ratio.value:.2f}× as fast as the {alone(packed.single)}"
    estimated = sum(not one.measured for one in table.entries)
    report["notes"].append(
        f"costs of {estimated} of {len(table.entries)} formats on a link were not measured but taken by the ratio of "
        "squared errors of the weights from a coarser format's; every plan that was compared was measured as a whole"
    )


def hold_bytes(report: dict[str, Any], size: int, most: int | None) -> list[str]:
    """Hold a packed result to the bytes that were asked for: more fail the verdict. Returns what was added to the
    report's notes, to be said."""
    if most is None or size <= most:
        return []
    line = f"--memory {most / 1e6:g} was asked for, which the program's {size / 1e6:.6g} MB exceed"
    report["verdict"], report["headline"] = "failed", f"{line}. {report['headline']}"
    report["notes"].append(line)
    return [line]


def report_of(
    stages: Stages,
    table: CostTable,
    plan: Plan,
    judgement: Judgement,
    ratio: Ratio,
    rows: list[CompressRow],
    seconds: float,
) -> dict[str, Any]:
    """The report's dictionary (report/write.py says what it holds), but for the samples."""
    recipe, job = stages.recipe, stages.job
    judged, certificate = judgement.judged, judgement.certificate
    metric = certificate.metric
    sums = judged[ORIGINAL].measurement.sums[metric]
    return {
        "title": f"{recipe.model}, shortened",
        "verdict": "passed" if judgement.passed else "failed",
        "headline": _headline(judgement, ratio),
        "certificate": {**certificate.to_dict(), "higher_is_better": sums.higher_is_better},
        "comparisons": [comparison.to_dict() for comparison in judgement.comparisons],
        "speedup": {
            **ratio.to_dict(),
            "target": recipe.speedup,
            "shape": job.shape.to_dict(),
            "what": f"{'whole requests' if job.shape.new_tokens else 'passes'}, {table.backend} backend, {table.dtype}",
        },
        "rows": [_in_points(row) for row in rows],
        "primary_metric": {
            "name": metric,
            "label": metric_label(metric),
            "unit": sums.unit,
            "higher_is_better": sums.higher_is_better,
        },
        "plan": plan.to_dict(),
        "costs": [{"links": list(e.links), "cost": e.cost, "time_us": e.time_us} for e in table.entries],
        "frontier": stages.frontier(plan),
        "frontier_quality": {"label": f"{_cost_words(table)}, {table.unit}", "higher_is_better": False},
        "tables": _tables(judged[ORIGINAL], judged[rows[-1]["name"]]),
        "machine": machine.describe(),
        "recipe": recipe.model_dump(exclude_none=True),
        "timings": stages.folder.timings(),
        "seconds": round(seconds + stages.folder.earlier(), 1),
        "command": command_of("compress", recipe, ELSEWHERE),
        "notes": [*_verdicts(judgement), *([LEGAL_TAGS] if job.legal_tags else []), *job.dataset.notes],
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


def _headline(judgement: Judgement, ratio: Ratio) -> str:
    """`2.03× as fast; entity F1 -0.26 points [-0.83, +0.26], within the margin of 1`, and the same of the guard."""
    said = [f"{ratio.value:.2f}× as fast"]
    for comparison in judgement.comparisons:
        certificate = comparison.certificate
        unit = "%" if certificate.unit == "percent" else " points"
        label = metric_label(certificate.metric)
        where = "" if comparison.data == "test" else f" on the {comparison.data}"
        than = "" if comparison.against == ORIGINAL else f" from the {comparison.against}"
        inside = "within" if certificate.passed else "not shown to be within"
        said.append(
            f"{label}{where} {certificate.difference:+.2f}{unit}{than} "
            f"[{certificate.low:+.2f}, {certificate.high:+.2f}], {inside} the margin of {certificate.margin:g}"
        )
    return "; ".join(said)


def _verdicts(judgement: Judgement) -> list[str]:
    """A sentence for each comparison, the certificate's as it is."""
    first, *others = judgement.comparisons
    than = "" if first.against == ORIGINAL else f"; held against the {first.against}, {CONTROL_MEANS}"
    rest = [f"{other.data}, against the {other.against}: {other.certificate.verdict}" for other in others]
    return [first.certificate.verdict + than, *rest]


def advice_words(trial: Trial | None, recipe: Recipe) -> str:
    """What to ask for after a certificate failed, by what dev shows."""
    if trial is None:
        return "what would pass: none of the slower speeds that were tried lies within the margin on dev"
    speed = math.floor(100 * trial.speedup / (1 + HEADROOM)) / 100
    asked = recipe.model_copy(update={"speedup": max(1.01, speed), "latency_ms": None})
    standing = trial.standing
    unseen = ", the guard not looked at" if recipe.guard is not None else ""
    return (
        f"what would pass: {trial.speedup:.2f}× with {len(trial.plan.kept)} links, whose loss on dev is "
        f"{standing.loss:.2f} [{standing.low:.2f}, {standing.high:.2f}] after a short recovery{unseen}; "
        f"run {command_of('compress', asked, ELSEWHERE)}; that is a second look at the test data"
    )


def _tables(before: Judged, after: Judged) -> list[dict[str, Any]]:
    titles = {"entities": "Entities by type", "tokens": "Tokens by tag", "classes": "Texts by class"}
    return [
        {"title": titles.get(name, name), "before": table.rows, "after": after.measurement.tables[name].rows}
        for name, table in before.measurement.tables.items()
        if name in after.measurement.tables
    ]


def samples(stages: Stages, result: Transformer, packed: Path | None) -> list[dict[str, str]]:
    """One greedy continuation from both models, for a person to read. packed: the result's folder, where it is one."""
    config = stages.job.checkpoint.model.config
    if not stages.job.task.whole_passes or not config.causal:
        return []

    paragraphs = [part.split() for part in stages.job.dataset.records("test")[0].text.split("\n\n")]
    all_words = [word for words in paragraphs for word in words]
    prose = next((words for words in paragraphs if len(words) >= 2 * PROMPT_WORDS), all_words)  # not a heading
    prompt = " ".join(prose[:PROMPT_WORDS])
    tokenizer, share = stages.job.checkpoint.tokenizer, max(1, config.max_positions // 4)
    ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    if len(ids) > min(PROMPT_TOKENS, share):
        prompt = tokenizer.decode(ids[: min(PROMPT_TOKENS, share)])
    original = stages.job.session(stages.job.checkpoint)
    if packed is None:
        changed = stages.job.session(stages.job.checkpoint.with_model(result))
    else:
        changed = load(str(packed), backend="native", threads=stages.job.threads)
    texts = [one.generate(prompt, max_new_tokens=min(SAMPLE_TOKENS, share)) for one in (original, changed)]
    return [{"prompt": prompt, "original": str(texts[0]), "changed": str(texts[1])}]


def show(console: Console, report: dict[str, Any], stages: Stages, folder: Path) -> None:
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
    console.table(COMPARED, [comparison_row(comparison) for comparison in report["comparisons"]])
    console.show(aa_words(report))
    console.show(f"\n{report['verdict'].upper()}: {report['headline']}")
    for note in report["notes"][: len(report["comparisons"])]:
        console.show(note)
    console.show(f"report: {stages.folder.file('report.html')}   model: {folder}")
    earlier = ", earlier attempts included" if stages.folder.earlier() else ""
    console.show(f"took {duration(report['seconds'])}{earlier}")


def comparison_row(comparison: dict[str, Any]) -> list[str]:
    """A comparison under the heads of COMPARED; an en dash where there is nothing."""
    unit = "%" if comparison["unit"] == "percent" else " points"
    bounds = (comparison["low"], comparison["high"])
    interval = "" if None in bounds else f" [{bounds[0]:+.2f}, {bounds[1]:+.2f}]"
    agreement = comparison["agreement"]
    shares = ["–"] * 3
    if agreement is not None:
        shares = [f"{100 * agreement[name]['value']:.2f} %" for name in ("same", "flipped")]
        shares.append(f"{agreement['kl']['value']:.4f}")
    change = "–" if comparison["difference"] is None else f"{comparison['difference']:+.2f}{unit}{interval}"
    return [comparison["data"], comparison["against"], change, *shares, "passed" if comparison["passed"] else "failed"]
