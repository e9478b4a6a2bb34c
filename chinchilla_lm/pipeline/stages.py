"""The stages of the main job, each from the run folder's files to the run folder's files.

score    → costs.json                 search → plan.json, frontier.json
shorten  → shortened/                 recover → model/
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch

from chinchilla_lm import __version__
from chinchilla_lm.console import Console
from chinchilla_lm.errors import ContractError, InputError
from chinchilla_lm.files import json_text, read_json, sha256_of, sha256_text, user_path, write_atomic
from chinchilla_lm.models.checkpoint import Checkpoint, load, save
from chinchilla_lm.models.transformer import Transformer
from chinchilla_lm.pipeline.folder import RunFolder
from chinchilla_lm.pipeline.job import Job, Served
from chinchilla_lm.pipeline.recovery import Recovery
from chinchilla_lm.plan import CostTable, Plan
from chinchilla_lm.recipe import Recipe
from chinchilla_lm.runtime.engine.packed import is_packed
from chinchilla_lm.runtime.engine.served import NativeForward
from chinchilla_lm.runtime.measuring import machine
from chinchilla_lm.runtime.measuring.clock import Ratio, speedup
from chinchilla_lm.score.contract import Search, Target, Try, fulfil
from chinchilla_lm.score.ledger import Ledger
from chinchilla_lm.score.measure import MAX_POSITIONS, Measure
from chinchilla_lm.score.table import Circumstances, score
from chinchilla_lm.score.timing import time_links, time_native_links
from chinchilla_lm.search import MEASURED, METHODS, Memo
from chinchilla_lm.shorten.surgery import shorten

# Seconds that the links are timed.
LINK_SECONDS = 4.0
# Seconds that a plan is timed against the original, in turn.
CLOCK_SECONDS = 3.0
# Shares of the way to the target at which the frontier is drawn.
FRONTIER_SHARES = (0.25, 0.5, 0.75, 1.0)
# What `race` lets run, and how far: the lower the cost before recovery, or the lower the links, the better? The number
# of tokens is an assumption: measured is that dev F1 differs by 3.6 points after one epoch (docs/log.md).
CONTENDERS = ("refine", "top")
RACE_TOKENS = 60_000
# What decides the cost of a removal.
MEASURED_BY = ("task", "calibration_tokens", "score_loss", "seed", "context", "max_tokens")
BASELINES = ("cosine", "one-shot", "dp")


class Stages:
    """One job in one run folder."""

    def __init__(self, recipe: Recipe, console: Console) -> None:
        if is_packed(user_path(recipe.model)):
            raise InputError(
                f"{recipe.model} is packed, its weights rounded for the engine; pass the model that it came from"
            )
        self.recipe, self.console = recipe, console
        self.folder = RunFolder.of(recipe, console)
        self.job = Job(recipe, console)

    @cached_property
    def original(self) -> Transformer:
        """The original as torch would serve it: what quality is measured on."""
        if self.job.checkpoint.model.dropped:
            raise InputError(f"{self.recipe.model} is shortened already; start from the original")
        return self.job.ready(self.job.checkpoint.model)

    @cached_property
    def _served(self) -> Served:
        """The original as it would be served."""
        return self.job.served()

    @cached_property
    def measure(self) -> Measure:
        """The quality cost of any set of dropped links, on calibration data."""
        batches, _ = self.job.calibration
        decides = {"inputs": self._inputs(*MEASURED_BY), "positions": MAX_POSITIONS, "version": __version__}
        identity = sha256_text(json_text(decides))
        ledger = Ledger(self.folder.file("measurements") / f"{identity[:16]}.jsonl", identity)
        return Measure(self.original, batches, self.recipe.score_loss, ledger=ledger)

    @cached_property
    def recovery(self) -> Recovery:
        """What trains short models on the original's outputs."""
        return Recovery(self.job, self.original)

    def _inputs(self, *fields: str) -> dict[str, Any]:
        job = self.job
        given = {
            "model": job.checkpoint.sha256,
            "data": job.data_sha256,
            "dtype": str(job.dtype),
            "device": str(job.device),
        }
        return {**given, "recipe": self.recipe.model_dump(include=set(fields))}

    def score(self) -> CostTable:
        """Measure what each removal costs and saves."""
        path = self.folder.file("costs.json")
        inputs = self._inputs(*MEASURED_BY, "batch", "tokens")
        # Times are this machine's, this release's and this many threads'.
        inputs["clock"] = [self.job.backend, torch.get_num_threads(), machine.cpu_model(), __version__]

        def work() -> CostTable:
            job = self.job
            _, documents = job.calibration
            served, timed = self._served, job.timed_batch()
            if isinstance(served, NativeForward):
                times = time_native_links(job.checkpoint.model, served, timed, seconds=LINK_SECONDS)
            else:
                times = time_links(served, timed, seconds=LINK_SECONDS)
            batch, tokens = job.shape
            dtype = str(job.dtype).removeprefix("torch.")
            facts = Circumstances(batch, tokens, str(job.device), dtype, job.checkpoint.sha256, documents, job.backend)
            table = score(self.measure, times, facts, self.console)
            table.save(path)
            return table

        return self.folder.stage("score", inputs, ["costs.json"], work, lambda: CostTable.load(path))

    def search(self, table: CostTable) -> Plan:
        """Choose what to drop, under the contract; also the frontier of plans with the baselines on it."""
        if table.model_sha256 != self.job.checkpoint.sha256:
            costs = self.folder.file("costs.json")
            raise InputError(f"{costs} holds another model's costs; run chinchilla score -o {self.folder.path} first")
        path = self.folder.file("plan.json")
        inputs = {
            "costs": sha256_of(self.folder.require("costs.json", "score")),
            **self._inputs("speedup", "latency_ms", "method", "max_measures", "seed", *self._race_fields()),
        }

        def work() -> Plan:
            self.measure.norms = dict(table.norms or {})
            memo = Memo(self.measure)
            target = Target(self.recipe.speedup, self.recipe.latency_ms)
            found: list[Plan] = []
            tried: list[Try] = []
            refused: ContractError | None = None
            with self.console.progress(0, "search", "measurements") as progress:
                for method in self._methods():
                    search = self.searcher(method, memo, lambda note: progress.advance(1, note))
                    try:
                        best, tries = fulfil(table, target, search, self.clock, self.console)
                    except ContractError as error:
                        refused = error
                        continue
                    found.append(best.plan)
                    tried += tries
            if not found and refused is not None:
                raise refused
            winner = self._race(found)
            plan = replace(winner, origin={**winner.origin, "model_sha256": self.job.checkpoint.sha256})
            frontier = self._frontier(table, memo, tried, plan)
            write_atomic(self.folder.file("frontier.json"), json_text(frontier, indent=1) + "\n")
            plan.save(path)
            for left in self.folder.path.glob("race-*"):
                left.unlink()
            return plan

        # A plan that a person has edited stands, so its hash is not held; where it is missing, nothing is done yet.
        if not path.exists():
            self.folder.file("frontier.json").unlink(missing_ok=True)
        plan = self.folder.stage("search", inputs, ["frontier.json"], work, lambda: Plan.load(path))
        self.console.say(f"plan: {plan.strip()}")
        return plan

    def _race_fields(self) -> tuple[str, ...]:
        return ("recover",) if self.recipe.method == "race" else ()

    def _methods(self) -> tuple[str, ...]:
        if self.recipe.method != "race":
            return (self.recipe.method,)
        return CONTENDERS if self.recipe.recover.epochs > 0 else CONTENDERS[:1]

    def _race(self, plans: list[Plan]) -> Plan:
        """The plan that is best on dev after a short recovery: costs before it do not see what it can restore."""
        distinct = {plan.dropped: plan for plan in reversed(plans)}
        if len(distinct) == 1:
            return plans[0]
        results = [(self._run_in_race(plan), plan) for plan in distinct.values()]
        _, winner = max(results, key=lambda result: result[0])
        course = [{"method": plan.method, "dev": dev} for dev, plan in results]
        return replace(winner, origin={**winner.origin, "race": course, "race_tokens": RACE_TOKENS})

    def _run_in_race(self, plan: Plan) -> float:
        """The dev metric after the short recovery; what is done stays in the folder until the search is."""
        chosen = {"dropped": plan.dropped, "norms": plan.norms, "tokens": RACE_TOKENS, "version": __version__}
        fields = ("task", "seed", "recover", "context", "max_tokens")
        identity = sha256_text(json_text({**chosen, **self._inputs(*fields)}))
        done = self.folder.file(f"race-{identity[:16]}.json")
        if not done.exists():
            short = shorten(self.job.checkpoint.model, plan)
            state = done.with_suffix(".state")
            self.recovery.train(short, f"race: {plan.method}", tokens=RACE_TOKENS, state=state, identity=identity)
            write_atomic(done, json_text({"dev": self.recovery.dev(short)}) + "\n")
            state.unlink(missing_ok=True)
        dev = float(read_json(done, "race")["dev"])
        self.console.say(f"race: {plan.method}, {len(plan.kept)} links, dev {dev:.4f}")
        return dev

    def searcher(self, method: str, memo: Memo, on_measure: Callable[[str], None]) -> Search:
        function, _ = METHODS[method]

        def search(table: CostTable, budget_us: float) -> Plan:
            if method == "refine":
                return function(
                    table,
                    budget_us,
                    memo,
                    max_measures=self.recipe.max_measures,
                    seed=self.recipe.seed,
                    on_progress=lambda p: on_measure(f"{p.stage} {p.best_cost:.4f}"),
                )
            if method in MEASURED:
                return function(table, budget_us, memo, on_step=lambda step: on_measure(f"{step.link} {step.cost:.4f}"))
            return function(table, budget_us)

        return search

    def clock(self, plan: Plan) -> tuple[Ratio, float]:
        """The assembled model against the original, in turn: how many times as fast, and its median milliseconds."""
        short = self.job.serve(shorten(self.job.checkpoint.model, plan, share=True))
        timings = self.job.time({"original": self._served, "short": short}, CLOCK_SECONDS)
        return speedup(timings["original"], timings["short"]), timings["short"].p50

    def _frontier(self, table: CostTable, memo: Memo, tried: list[Try], chosen: Plan) -> list[dict[str, Any]]:
        """Points (speed-up, cost before recovery): the baselines at shares of the target, and every plan that was
        timed."""
        target = Target(self.recipe.speedup, self.recipe.latency_ms)
        full = table.total_us / target.budget_us(table.total_us)
        points = [_point("original", 1.0, table.total_us / 1000, 0.0, 2 * table.num_blocks)]
        for name in BASELINES:
            for share in FRONTIER_SHARES:
                try:
                    plan = METHODS[name][0](table, table.total_us / (1 + (full - 1) * share))
                except ContractError:
                    continue
                predicted = table.predict_us(plan.dropped)
                cost = memo(frozenset(plan.dropped))
                points.append(_point(name, table.total_us / predicted, predicted / 1000, cost, len(plan.kept)))
        for one in tried:
            plan, ratio = one.plan, one.speedup
            # The table's total over the measured ratio: all points then share one clock, whenever they were timed.
            latency_ms = table.total_us / 1000 / ratio.value
            is_chosen = (plan.method, plan.dropped) == (chosen.method, chosen.dropped)
            cost = memo(frozenset(plan.dropped))
            points.append(_point(plan.method, ratio.value, latency_ms, cost, len(plan.kept), is_chosen))
        return points

    def shorten(self, plan: Plan) -> Checkpoint:
        """Carry out the plan; the short model, not yet recovered, is in `shortened/`."""
        if plan.num_blocks != self.job.checkpoint.model.config.num_blocks:
            blocks = self.job.checkpoint.model.config.num_blocks
            raise InputError(f"the plan has {plan.num_blocks} blocks, the model {blocks}; search again for this model")
        if plan.origin.get("model_sha256", self.job.checkpoint.sha256) != self.job.checkpoint.sha256:
            raise InputError(f"the plan is another model's; run chinchilla search -o {self.folder.path} again")
        inputs = self._meta(plan)
        path = self.folder.file("shortened")

        def work() -> Checkpoint:
            short = self.job.checkpoint.with_model(shorten(self.job.checkpoint.model, plan))
            save(short, path, self._meta(plan))
            return short

        def read() -> Checkpoint:
            return load(str(path), task=self.recipe.task, device=str(self.job.device))

        return self.folder.stage("shorten", inputs, ["shortened/model.safetensors"], work, read)

    def recover(self, short: Checkpoint, plan: Plan) -> Checkpoint:
        """Train the short model on the original's outputs; the product is in `model/`."""
        path = self.folder.file("model")
        inputs = {**self._meta(plan), **self._inputs("task", "seed", "recover")}
        state = self.folder.file("recover.state")

        def work() -> Checkpoint:
            if self.recipe.recover.epochs > 0:
                identity = sha256_text(json_text(inputs))
                self.recovery.train(short.model, "recover", state=state, identity=identity)
            for name in ("report.json", "report.md", "report.html"):  # they speak of the model that is replaced
                self.folder.file(name).unlink(missing_ok=True)
            save(short, path, self._meta(plan))
            state.unlink(missing_ok=True)
            return short

        def read() -> Checkpoint:
            return load(str(path), task=self.recipe.task, device=str(self.job.device))

        return self.folder.stage("recover", inputs, ["model/model.safetensors"], work, read)

    def _meta(self, plan: Plan) -> dict[str, Any]:
        window = {"context": self.job.context, "max_tokens": self.job.window}
        tags = {"tags": "BIO"} if self.job.checkpoint.legal_tags else {}
        return {"plan": plan.to_dict(), "window": window, "original": self.job.checkpoint.sha256, **tags}

    def frontier(self) -> list[dict[str, Any]]:
        """What the search stage wrote."""
        path = self.folder.require("frontier.json", "search")
        points = read_json(path, "frontier")
        if not isinstance(points, list):
            raise InputError(f"{path} is not a list of points; run chinchilla search -o {self.folder.path} again")
        return points


def _point(
    method: str, speed: float, latency_ms: float, cost: float, links: int, chosen: bool = False
) -> dict[str, Any]:
    return {
        "method": method,
        "stage": "before recovery",
        "speedup": speed,
        "latency_ms": latency_ms,
        "quality": cost,
        "low": None,
        "high": None,
        "links": links,
        "chosen": chosen,
    }
