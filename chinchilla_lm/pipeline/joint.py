"""Formats in the main job: which pay here, what each costs, and the mix of drops and formats that is packed.

    score    → formats.json beside costs.json          search → plan.json, which names a format for each link
    pack     → packed/, the program of the recovered model, its weights rounded for the inputs of calibration text

Costs are true KL in float32, of the weights as a format rounds them and norms not folded in; times are the engine's
own, of the whole model in each format at the asked shape. A plan is timed as it will be packed, against the original in
the engine; what is promised is promised of the packed program.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from chinchilla_lm import __version__
from chinchilla_lm.data.records import records_sha256
from chinchilla_lm.errors import ContractError, InputError
from chinchilla_lm.files import json_text, sha256_text
from chinchilla_lm.models.checkpoint import Checkpoint
from chinchilla_lm.pack.formats import FORMATS, format_named
from chinchilla_lm.pack.mixed import Mixed, mixed, mixed_of
from chinchilla_lm.pack.quantized import Quantized
from chinchilla_lm.pack.solve import Solver
from chinchilla_lm.pack.unfinished import Unfinished
from chinchilla_lm.pipeline.calibrating import check_tokens
from chinchilla_lm.pipeline.timing import AgainstOriginal, format_times
from chinchilla_lm.pipeline.workbench import MEASURED_BY, Workbench
from chinchilla_lm.plan import HEAD, CostTable, FormatTable, Plan
from chinchilla_lm.recipe import Recipe
from chinchilla_lm.runtime.engine.compile import compile_model
from chinchilla_lm.runtime.engine.native import native_format
from chinchilla_lm.runtime.engine.served import NativeForward
from chinchilla_lm.runtime.packing import packed_bytes, write_checkpoint
from chinchilla_lm.score.contract import Try, fulfil
from chinchilla_lm.score.formats import paying, score_formats
from chinchilla_lm.score.ledger import Ledger
from chinchilla_lm.score.measure import MAX_POSITIONS, Measure
from chinchilla_lm.score.table import Circumstances
from chinchilla_lm.search import Memo
from chinchilla_lm.search.mix_refine import key_of, mix_of, refine_mix
from chinchilla_lm.search.mixes import Budget, Mixes, mix_of_plan, split, too_little
from chinchilla_lm.shorten.surgery import shorten

# Calibration tokens that mixes are measured on: a pass in float32 takes several times as long as one in bfloat16.
MEASURED_TOKENS = 4096
# Seconds that the whole model is timed in each format, in each of two turns.
FORMAT_SECONDS = 2.0
# Memory for remembered streams, in bytes: all boundaries of SmolLM2-135M for that many tokens are 0.6 GB.
STREAM_BYTES = 1_000_000_000
# Measurements of whole mixes, at most: no prefix is shared where formats differ from the first link on (assumption).
MOST_MEASURES = 80
# The first search has all measurements; those with another budget, which find most of them made, this part.
LATER = 8
# Calibration tokens that the solver reads: half of what `pack` reads by itself, for time.
SOLVED_TOKENS = 32_768
# Seconds that a plan is timed against the original, in turn, before it is looked at.
CLOCK_SECONDS = 3.0
AUTO = "auto"


def check_formats(recipe: Recipe, *, target: bool = True) -> None:
    """Raises InputError for what does not go together, before anything is read. target: whether there has to be one."""
    if recipe.formats is None:
        if recipe.memory_mb is not None:
            raise InputError(f"memory_mb {recipe.memory_mb:g} is of a packed program; pass --formats auto")
        return
    asked_formats(recipe.formats, "f32")
    if recipe.memory_mb is not None and 1e6 * recipe.memory_mb < 1:
        raise InputError(f"--memory {recipe.memory_mb:g} is less than a byte; pass megabytes, such as --memory 100")
    if target and recipe.speedup is None and recipe.latency_ms is None and recipe.memory_mb is None:
        raise InputError("formats are searched for a target; pass --speedup 2, --latency 20 or --memory 100")
    if recipe.method not in ("race", "refine"):
        raise InputError(f"method {recipe.method} drops links alone; leave it away with --formats")
    if recipe.backend == "torch" or recipe.device == "cuda":
        raise InputError("formats are timed in the native engine, on the CPU; pass --backend native --device cpu")


def asked_formats(text: str, plain: str) -> tuple[str, ...]:
    """The formats of a recipe, each once. plain: that of a model which is not packed, which auto has none wider than.

    Raises InputError for one that there is not.
    """
    if text == AUTO:
        widest = FORMATS[plain].bytes(1024, 1024)
        return tuple(name for name, one in FORMATS.items() if one.bytes(1024, 1024) <= widest)
    names = [name.strip() for name in text.split(",")]
    return tuple(dict.fromkeys(format_named(name).name for name in names))


class Mixer:
    """What searches mixes for one job; what it measures is kept in the run folder."""

    def __init__(self, bench: Workbench) -> None:
        self.bench = bench
        if bench.job.backend != "native":
            raise InputError(
                f"formats need the native engine, and this job runs on {bench.job.device} by torch; "
                "pass --backend native --device cpu"
            )
        self._measure: Measure | None = None

    @property
    def plain(self) -> str:
        """The format of a model that is not packed, as it is served."""
        return native_format(str(self.bench.job.dtype).removeprefix("torch."))

    @property
    def formats(self) -> tuple[str, ...]:
        """Those that are asked for."""
        return asked_formats(str(self.bench.recipe.formats), self.plain)

    @property
    def most_bytes(self) -> int | None:
        """Of the program, if that is limited."""
        most = self.bench.recipe.memory_mb
        return None if most is None else int(1e6 * most)

    @property
    def measure(self) -> Measure:
        """The true cost of drops and formats together."""
        if self._measure is None:
            bench = self.bench
            tokens = min(MEASURED_TOKENS, bench.recipe.calibration_tokens)
            decides = {"inputs": bench.inputs(*MEASURED_BY), "positions": MAX_POSITIONS, "tokens": tokens}
            identity = sha256_text(json_text({**decides, "numbers": "float32", "version": __version__}))
            ledger = Ledger(bench.folder.file("measurements") / f"{identity[:16]}.jsonl", identity)
            batches = bench.job.calibration_batches(tokens)
            model = bench.job.checkpoint.model.to(torch.float32)
            self._measure = Measure(model, batches, bench.recipe.score_loss, prefix_bytes=STREAM_BYTES, ledger=ledger)
        return self._measure

    def score(self, seconds: float = FORMAT_SECONDS) -> FormatTable:
        """Time every format, leave out those that do not pay, measure what the others cost."""
        job, console = self.bench.job, self.bench.console
        times, total_us = format_times(job, self.formats, seconds, console)
        offered = paying(times, memory=self.most_bytes is not None)
        idle = [form for form in times if not any(form in forms for forms in offered.values())]
        if idle:
            console.say(f"formats: {', '.join(idle)} left out, for one with more bits is as fast on every link")
        dtype = str(job.dtype).removeprefix("torch.")
        facts = Circumstances(
            job.shape.to_dict(), str(job.device), dtype, job.checkpoint.sha256, job.calibration[1], job.backend
        )
        return score_formats(self.measure, times, offered, total_us, facts, console)

    def search(self, drops: CostTable, formats: FormatTable) -> tuple[Plan, list[Try], Memo]:
        """The mix that costs least of those that keep the promise when timed, and what was timed.

        Raises ContractError where there is none.
        """
        mixes, memo = Mixes(drops, formats), self.memo(drops)
        target, most = self.bench.target, self.most_bytes
        if most is not None and most < mixes.least_bytes:
            raise ContractError(too_little(mixes, Budget(bytes=most)))  # no clock has a say in it
        tried: list[Try] = []
        with self.bench.console.progress(0, "search", "measurements") as progress:
            search = self.searcher(memo, lambda note: progress.advance(1, note))
            if target.given:
                best, tried = fulfil(
                    mixes, target, search, self.race, self.bench.console, cost=lambda plan: true_cost(memo, plan)
                )
                plan = best.plan
            else:
                plan = search(mixes, None)
        self.check_bytes(plan)
        return plan, tried, memo

    def memo(self, drops: CostTable) -> Memo:
        """True costs of mixes, by their key."""
        self.measure.norms = dict(drops.norms or {})

        def measure(key: frozenset[str]) -> float:
            dropped, kept = split(mix_of(key))
            return self.measure.cost(frozenset(dropped), formats=kept).value

        return Memo(measure)

    def searcher(self, memo: Memo, on_measure: Callable[[str], None]) -> Callable[[Mixes, float | None], Plan]:
        """What searches within a time budget, and the recipe's bytes."""
        most = min(self.bench.recipe.max_measures, MOST_MEASURES)
        allowed = most

        def search(mixes: Mixes, budget_us: float | None) -> Plan:
            nonlocal allowed
            now, allowed = allowed, max(1, most // LATER)
            return refine_mix(
                mixes,
                Budget(budget_us, self.most_bytes),
                memo,
                max_measures=now,
                seed=self.bench.recipe.seed,
                on_progress=lambda p: on_measure(f"{p.stage} {p.best_cost:.4f}"),
            )

        return search

    def race(self, plan: Plan) -> AgainstOriginal:
        """The plan's program, its weights rounded by themselves, against the original, in turn."""
        bench = self.bench
        short = shorten(bench.job.checkpoint.model, plan, share=True)
        served = NativeForward(
            compile_model(short, str(self.formats_of(plan))), short.config.head.kind, bench.job.threads
        )
        return AgainstOriginal(bench.job, {"original": bench.served, "short": served}, "short", CLOCK_SECONDS)

    def check_bytes(self, plan: Plan) -> None:
        """Raises ContractError where the plan's program is larger than was asked for."""
        if self.most_bytes is None:
            return
        size = packed_bytes(self.short(plan), str(self.formats_of(plan)))[0]
        if size > self.most_bytes:
            raise ContractError(
                f"the program has {size / 1e6:.6g} MB, more than {self.most_bytes / 1e6:g}; pass more --memory"
            )

    def short(self, plan: Plan) -> Checkpoint:
        """The plan's model, sharing the original's weights."""
        checkpoint = self.bench.job.checkpoint
        return checkpoint.with_model(shorten(checkpoint.model, plan, share=True))

    def frontier(self, formats: FormatTable, tried: Sequence[Try], memo: Memo, chosen: Plan) -> list[dict[str, Any]]:
        """Points of speed, quality and bytes: the original, each single format as a whole, and every plan timed."""
        total, whole = formats.total_us, Plan.full(formats.num_blocks)
        points = [self._point("original", total, total, 0.0, whole, self.plain)]
        with self.bench.console.progress(len(formats.wholes), "baselines", "formats") as progress:
            for one in formats.wholes:
                if one.format != self.plain:
                    cost = self.whole_cost(formats, one.format)
                    point = self._point(one.format, total, one.time_us, cost, whole, one.format)
                    points.append(point | {"style": "single"})
                progress.advance(1, one.format)
        # The table's total over the measured ratio: all points then share one clock, whenever they were timed.
        plans = [(one.plan, total / one.speedup.value) for one in tried] or [(chosen, chosen.origin["predicted_us"])]
        for plan, time_us in plans:
            point = self._point("mix", total, time_us, true_cost(memo, plan), plan, str(self.formats_of(plan)))
            points.append({**point, "dropped": list(plan.dropped), "format": plan.format})
        return points

    def _point(
        self, method: str, total_us: float, time_us: float, cost: float, plan: Plan, form: str
    ) -> dict[str, Any]:
        short = self.short(plan)
        size, count = packed_bytes(short, form)[0], sum(one.numel() for one in short.model.parameters())
        return {
            "method": method,
            "stage": "before recovery",
            "speedup": total_us / time_us,
            "latency_ms": time_us / 1000,
            "quality": cost,
            "low": None,
            "high": None,
            "links": len(plan.kept),
            "bytes": size,
            "bits": 8 * size / count,
        }

    def formats_of(self, plan: Plan) -> Mixed:
        """Those that a plan is packed in: what is left of a model without links and without a decoder has none."""
        return mixed_of(plan) or mixed(self.plain)

    def check_text(self) -> None:
        """Raises InputError where a format asked for is rounded for inputs, and the text of these is too short."""
        if any(FORMATS[name].rounding is not None for name in self.formats):
            batches = self.bench.job.calibration_batches(SOLVED_TOKENS)
            check_tokens(sum(one.batch.tokens for one in batches), SOLVED_TOKENS, self.bench.console)

    def solved_on(self, plan: Plan) -> dict[str, Any] | None:
        """What decides the inputs that the plan's matrices are rounded for: the records by hash, which of them and how
        long, and the numbers of the pass; None where no matrix is rounded."""
        if all(form.rounding is None for form in self.formats_of(plan).all()):
            return None
        job = self.bench.job
        return {
            "records": records_sha256(job.calibration_records),
            "tokens": SOLVED_TOKENS,
            "window": [job.context, job.window],
            "seed": self.bench.recipe.seed,
            "dtype": str(job.dtype),
        }

    def pack(self, checkpoint: Checkpoint, plan: Plan, folder: Path) -> None:
        """Write the program of a plan's model, its weights rounded for the inputs that calibration text gives. What is
        done is kept beside the folder: a run that was stopped goes on. The checkpoint's weights are replaced."""
        bench, formats = self.bench, self.formats_of(plan)
        data = self.solved_on(plan)
        rounded: dict[str, Quantized] = {}
        unfinished = None
        if data is not None:
            decides = (__version__, checkpoint.sha256, formats, json_text(data))
            unfinished = Unfinished(folder.with_name(f"{folder.name}.unfinished"), " ".join(map(str, decides)))
            batches = [one.batch for one in bench.job.calibration_batches(SOLVED_TOKENS)]
            solver = Solver(checkpoint.model, batches, formats, dtype=bench.job.dtype, unfinished=unfinished)
            with bench.console.progress(len(solver.roundings), "gptq", "matrices") as progress:
                solver.on_matrix = lambda name: progress.advance(1, name)
                rounded = solver.run()
        write_checkpoint(checkpoint, str(formats), folder, rounded=rounded)
        if unfinished is not None:
            unfinished.clear()

    def single(self, formats: FormatTable) -> str:
        """The one format for the whole original that does best of what was asked: that with the least cost of those
        within the target and the bytes; where none is, the fastest that is small enough, or the smallest."""
        total, most = formats.total_us, self.most_bytes or math.inf
        budget = self.bench.target.budget_us(total) if self.bench.target.given else math.inf
        small = [one for one in formats.wholes if one.bytes <= most]
        within = [one for one in small if one.time_us <= budget]
        if not within:
            chosen = min(small or formats.wholes, key=lambda one: one.time_us if small else one.bytes)
            return chosen.format
        return min(within, key=lambda one: (self.whole_cost(formats, one.format), one.bytes)).format

    def whole_cost(self, formats: FormatTable, form: str) -> float:
        """True cost of the whole original in one format."""
        everything = [*self.measure.names, *([HEAD] if formats.has_head else [])]
        return self.measure.cost(frozenset(), formats=dict.fromkeys(everything, form)).value

    def serve_original(self, form: str) -> NativeForward:
        """The original in one format, in the engine, each weight rounded by itself."""
        model = self.bench.job.checkpoint.model
        return NativeForward(compile_model(model, form), model.config.head.kind, self.bench.job.threads)

    def signed(self, plan: Plan) -> Plan:
        """The plan with the model that it is of."""
        return replace(plan, origin={**plan.origin, "model_sha256": self.bench.job.checkpoint.sha256})


def true_cost(memo: Memo, plan: Plan) -> float:
    """What a plan costs, measured as a whole."""
    return memo(key_of(mix_of_plan(plan)))
