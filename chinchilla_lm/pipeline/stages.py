"""The stages of the main job, each from the run folder's files to the run folder's files.

score    → costs.json                 search → plan.json, frontier.json
shorten  → shortened/                 recover → model/
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from typing import Any

import torch

from chinchilla_lm import __version__
from chinchilla_lm.console import Console, duration
from chinchilla_lm.errors import ContractError, InputError
from chinchilla_lm.files import json_text, read_json, sha256_of, sha256_text, user_path, write_atomic
from chinchilla_lm.models.checkpoint import Checkpoint, load, save
from chinchilla_lm.models.transformer import Transformer
from chinchilla_lm.pipeline.fastest import TRIALS, Trial, bisect, candidates
from chinchilla_lm.pipeline.folder import RunFolder
from chinchilla_lm.pipeline.job import Job, Served
from chinchilla_lm.pipeline.recovery import Recovery, Standing
from chinchilla_lm.plan import CostTable, Plan, chain
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
# Speeds that are tried below one that failed.
ADVICE_TRIALS = 3
# Forward passes that a token of recovery takes as long as: the teacher's, the student's, and twice that backwards.
TRAINING_PASSES = 4
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

    @property
    def target(self) -> Target:
        """The speed that is asked for, if any."""
        return Target(self.recipe.speedup, self.recipe.latency_ms)

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
            memo, tried = Memo(self.measure), list[Try]()
            target = self.target
            trials: list[Trial] = []
            if target.given:
                winner = self._plan_for(table, target, memo, tried, self._methods())
            else:
                trials = candidates(self._trials(table, memo, tried, self._most(table), TRIALS), self.recipe.margin)
                winner = trials[0].plan
            plan = self._signed(winner)
            frontier = self._frontier(table, memo, tried, plan)
            write_atomic(self.folder.file("frontier.json"), json_text(frontier, indent=1) + "\n")
            if trials:
                write_atomic(self.folder.file("trials.json"), json_text([trial.to_dict() for trial in trials]) + "\n")
            plan.save(path)
            self._clear_trials()
            return plan

        # A plan that a person has edited stands, so its hash is not held; where it is missing, nothing is done yet.
        if not path.exists():
            self.folder.file("frontier.json").unlink(missing_ok=True)
        outputs = ["frontier.json", *([] if self.target.given else ["trials.json"])]
        plan = self.folder.stage("search", inputs, outputs, work, lambda: Plan.load(path))
        self.console.say(f"plan: {plan.strip()}")
        return plan

    def _race_fields(self) -> tuple[str, ...]:
        if not self.target.given:
            return ("recover", "margin", "metric")
        return ("recover",) if self.recipe.method == "race" else ()

    def _signed(self, plan: Plan) -> Plan:
        return replace(plan, origin={**plan.origin, "model_sha256": self.job.checkpoint.sha256})

    def _clear_trials(self) -> None:
        for left in self.folder.path.glob("race-*"):
            left.unlink()

    def _plan_for(self, table: CostTable, target: Target, memo: Memo, tried: list[Try], methods: Sequence[str]) -> Plan:
        """The best plan that keeps the promise; all that were timed are added to `tried`.

        Raises ContractError where no method has one.
        """
        found: list[Plan] = []
        refused: ContractError | None = None
        with self.console.progress(0, "search", "measurements") as progress:
            for method in methods:
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
        return self._race(found)

    def _most(self, table: CostTable) -> float:
        """The speed-up that the table predicts of a model without links."""
        return table.total_us / table.predict_us([link.name for link in chain(table.num_blocks)])

    def _trials(self, table: CostTable, memo: Memo, tried: list[Try], most: float, count: int) -> list[Trial]:
        """Speeds below `most`, tried on dev."""
        methods = list(self._methods())
        self._say_what_trials_cost(table, count)

        def attempt(speed: float) -> Trial | None:
            try:
                plan = self._plan_for(table, Target(speedup=speed), memo, tried, methods)
            except ContractError as error:
                self.console.say(f"trial: {error}")
                return None
            methods[:] = [plan.method]  # the first trial's race has chosen
            standing = self._briefly(plan)
            measured = next(one.speedup.value for one in reversed(tried) if one.plan.dropped == plan.dropped)
            trial = Trial(self._signed(plan), measured, standing)
            held = "holds" if trial.holds(self.recipe.margin) else "does not hold"
            self.console.say(
                f"trial: {measured:.2f}× with {len(plan.kept)} links, loss on dev {standing.loss:.2f} "
                f"[{standing.low:.2f}, {standing.high:.2f}], {held} the margin of {self.recipe.margin:g}"
            )
            return trial

        return bisect(most, self.recipe.margin, attempt, count)

    def _say_what_trials_cost(self, table: CostTable, count: int) -> None:
        batch, tokens = table.shape["batch"], table.shape["tokens"]
        seconds = TRAINING_PASSES * RACE_TOKENS * table.total_us / 1e6 / (batch * tokens)
        races = count - 1 + len(self._methods())
        self.console.say(
            f"{count} speeds are tried on dev, {races} short recoveries of about {duration(seconds)} each; "
            "the test data are looked at once, at the end"
        )

    def trials(self) -> list[Trial]:
        """What the search without a target found to hold on dev, the fastest first; empty where there is a target."""
        if self.target.given:
            return []
        path = self.folder.require("trials.json", "search")
        values = read_json(path, "trials")
        try:
            return [Trial.from_dict(value) for value in values]
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path} is not a list of trials; delete it and run the search again") from error

    def advice(self, table: CostTable, most: float) -> Trial | None:
        """The fastest of some slower speeds whose interval on dev lies within the margin; None where none does."""
        inputs = {"most": most, **self._inputs("method", "max_measures", "seed", "recover", "margin", "metric")}
        path = self.folder.file("advice.json")

        def work() -> list[Trial]:
            self.measure.norms = dict(table.norms or {})
            made = self._trials(table, Memo(self.measure), [], most, ADVICE_TRIALS)
            shown = sorted((t for t in made if t.shows(self.recipe.margin)), key=lambda trial: -trial.speedup)
            write_atomic(path, json_text([trial.to_dict() for trial in shown[:1]]) + "\n")
            self._clear_trials()
            return shown[:1]

        def read() -> list[Trial]:
            return [Trial.from_dict(value) for value in read_json(path, "advice")]

        return next(iter(self.folder.stage("advice", inputs, ["advice.json"], work, read)), None)

    def _methods(self) -> tuple[str, ...]:
        if self.recipe.method != "race":
            return (self.recipe.method,)
        return CONTENDERS if self.recipe.recover.epochs > 0 else CONTENDERS[:1]

    def _race(self, plans: list[Plan]) -> Plan:
        """The plan that is best on dev after a short recovery: costs before it do not see what it can restore."""
        distinct = {plan.dropped: plan for plan in reversed(plans)}
        if len(distinct) == 1:
            return plans[0]
        results = [(self._briefly(plan).dev, plan) for plan in distinct.values()]
        _, winner = max(results, key=lambda result: result[0])
        course = [{"method": plan.method, "dev": dev} for dev, plan in results]
        return replace(winner, origin={**winner.origin, "race": course, "race_tokens": RACE_TOKENS})

    def _briefly(self, plan: Plan) -> Standing:
        """Where the plan's model stands on dev after the short recovery; what is done stays in the folder until the
        search is."""
        chosen = {"dropped": plan.dropped, "norms": plan.norms, "tokens": RACE_TOKENS, "version": __version__}
        fields = ("task", "seed", "recover", "context", "max_tokens", "metric")
        identity = sha256_text(json_text({**chosen, **self._inputs(*fields)}))
        done = self.folder.file(f"race-{identity[:16]}.json")
        if not done.exists():
            short = shorten(self.job.checkpoint.model, plan)
            state = done.with_suffix(".state")
            if self.recipe.recover.epochs > 0:
                self.recovery.train(short, f"race: {plan.method}", tokens=RACE_TOKENS, state=state, identity=identity)
            write_atomic(done, json_text(asdict(self.recovery.standing(short))) + "\n")
            state.unlink(missing_ok=True)
        standing = Standing(**read_json(done, "race"))
        self.console.say(f"race: {plan.method}, {len(plan.kept)} links, dev {standing.dev:.4f}")
        return standing

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
        target = self.target
        budget_us = target.budget_us(table.total_us) if target.given else table.predict_us(chosen.dropped)
        full = table.total_us / budget_us
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

    def control(self) -> Checkpoint:
        """The original, trained on the same data by the same schedule as the short model; in `control/`."""
        path = self.folder.file("control")
        inputs = self._inputs("task", "seed", "recover", "context", "max_tokens")
        state = self.folder.file("control.state")

        def work() -> Checkpoint:
            trained = self.job.checkpoint.with_model(copy.deepcopy(self.job.checkpoint.model))
            identity = sha256_text(json_text(inputs))
            self.recovery.train(trained.model, "control", state=state, identity=identity)
            save(trained, path, {})
            state.unlink(missing_ok=True)
            return trained

        def read() -> Checkpoint:
            return load(str(path), task=self.recipe.task, device=str(self.job.device))

        return self.folder.stage("control", inputs, ["control/model.safetensors"], work, read)

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
