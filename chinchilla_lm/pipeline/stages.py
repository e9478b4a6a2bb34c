"""The stages of the main job, each from the run folder's files to the run folder's files.

score    → costs.json                 search → plan.json, frontier.json
shorten  → shortened/                 recover → model/
With formats, score → formats.json too, and pack → packed/.
"""

from __future__ import annotations

import copy
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from chinchilla_lm import __version__
from chinchilla_lm.data.records import records_sha256
from chinchilla_lm.errors import InputError
from chinchilla_lm.files import json_text, read_json, sha256_of, sha256_text, write_atomic
from chinchilla_lm.models.checkpoint import Checkpoint, load, save
from chinchilla_lm.models.meta import adapted
from chinchilla_lm.pack.mixed import mixed_of
from chinchilla_lm.pipeline.fastest import TRIALS, Trial, candidates
from chinchilla_lm.pipeline.joint import FORMAT_SECONDS, Mixer
from chinchilla_lm.pipeline.planning import LAYOUT, Planner, with_chosen
from chinchilla_lm.pipeline.recovery import recovery_rate
from chinchilla_lm.pipeline.timing import link_times
from chinchilla_lm.pipeline.workbench import MEASURED_BY, Workbench
from chinchilla_lm.plan import CostTable, FormatTable, Plan
from chinchilla_lm.runtime.artifact import deciding_files, hashes
from chinchilla_lm.runtime.measuring import machine
from chinchilla_lm.score.contract import Try
from chinchilla_lm.score.table import Circumstances, score
from chinchilla_lm.search import Memo
from chinchilla_lm.shorten.surgery import shorten

# Seconds that the links are timed.
LINK_SECONDS = 4.0
# Speeds that are tried below one that failed.
ADVICE_TRIALS = 3


class Stages(Workbench):
    """One job in one run folder, stage by stage."""

    @cached_property
    def planner(self) -> Planner:
        """What searches."""
        return Planner(self)

    @cached_property
    def mixer(self) -> Mixer:
        """What searches drops and formats together."""
        return Mixer(self)

    def _timed_inputs(self, *fields: str) -> dict[str, Any]:
        inputs = self.inputs(*MEASURED_BY, "batch", "tokens", "new_tokens", *fields)
        # Times are this machine's, this release's and this many threads'.
        inputs["clock"] = [self.job.backend, torch.get_num_threads(), machine.cpu_model(), __version__]
        return inputs

    def score_formats(self) -> FormatTable:
        """Measure which formats pay, and what each costs."""
        path = self.folder.file("formats.json")
        inputs = self._timed_inputs("formats")
        inputs["bytes"] = self.mixer.most_bytes is not None

        def work() -> FormatTable:
            table = self.mixer.score(FORMAT_SECONDS)
            table.save(path)
            return table

        return self.folder.stage("formats", inputs, ["formats.json"], work, lambda: FormatTable.load(path))

    def score(self) -> CostTable:
        """Measure what each removal costs and saves."""
        path = self.folder.file("costs.json")
        inputs = self._timed_inputs()

        def work() -> CostTable:
            job = self.job
            _, documents = job.calibration
            times = link_times(job, self.served, LINK_SECONDS)
            dtype, shape = str(job.dtype).removeprefix("torch."), job.shape.to_dict()
            facts = Circumstances(shape, str(job.device), dtype, job.checkpoint.sha256, documents, job.backend)
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
            "layout": LAYOUT,
            **self.inputs("speedup", "latency_ms", "method", "max_measures", "seed", *self.planner.decides()),
        }

        def work() -> Plan:
            self.measure.norms = dict(table.norms or {})
            memo, tried = Memo(self.measure), list[Try]()
            self._forget_reports()
            target = self.target
            trials: list[Trial] = []
            if target.given:
                winner = self.planner.plan_for(table, target, memo, tried, self.planner.methods())
            else:
                made = self.planner.trials(table, memo, tried, self.planner.most(table), TRIALS)
                trials = candidates(made, self.recipe.margin, further=self.planner.recovers_further)
                winner = trials[0].plan
                if trials[0].undecided(self.recipe.margin):
                    self.console.say(
                        f"{trials[0].speedup:.2f}× misses the margin by no more than its interval after a short "
                        "recovery; it is recovered in full first"
                    )
            plan = self.planner.signed(winner)
            frontier = self.planner.frontier(table, memo, tried, plan)
            write_atomic(self.folder.file("frontier.json"), json_text(frontier, indent=1) + "\n")
            if trials:
                write_atomic(self.folder.file("trials.json"), json_text([trial.to_dict() for trial in trials]) + "\n")
            plan.save(path)
            self.planner.clear()
            return plan

        # A plan that a person has edited stands, so its hash is not held; where it is missing, nothing is done yet.
        if not path.exists():
            self.folder.file("frontier.json").unlink(missing_ok=True)
        outputs = ["frontier.json", *([] if self.target.given else ["trials.json"])]
        plan = self.folder.stage("search", inputs, outputs, work, lambda: Plan.load(path))
        self.console.say(f"plan: {plan.strip()}")
        return plan

    def search_mix(self, costs: CostTable, formats: FormatTable) -> Plan:
        """Choose what to drop and how to pack the rest, under the contract; also the frontier, with single formats.

        A plan that a person has edited stands, where it is one of this model and its program is as small as was asked.
        """
        self._check_scored(costs, formats)
        path = self.folder.file("plan.json")
        inputs = {
            "costs": sha256_of(self.folder.require("costs.json", "score")),
            "formats": sha256_of(self.folder.require("formats.json", "score")),
            "layout": LAYOUT,
            "asked": self.mixer.formats,
            **self.inputs("speedup", "latency_ms", "memory_mb", "max_measures", "seed"),
        }

        def work() -> Plan:
            self._forget_reports()
            found, tried, memo = self.mixer.search(costs, formats)
            plan = self.mixer.signed(found)
            frontier = self.mixer.frontier(formats, tried, memo, plan)
            write_atomic(self.folder.file("frontier.json"), json_text(frontier, indent=1) + "\n")
            plan.save(path)
            return plan

        if not path.exists():
            self.folder.file("frontier.json").unlink(missing_ok=True)
        plan = self.folder.stage("search", inputs, ["frontier.json"], work, lambda: Plan.load(path))
        if mixed_of(plan) is None and plan.kept:
            raise InputError(f"{path} names no formats, as it must with --formats; delete it to search again")
        if plan.head is not None and not formats.has_head:
            raise InputError(f"{path} has head {plan.head!r}, and the model no head that is packed; make it null")
        if plan.head is None and formats.has_head:
            raise InputError(f"{path} has head null, and the model's head is packed too; name its format, such as int8")
        self.mixer.check_bytes(plan)
        self.console.say(f"plan: {plan.strip()}, {self.mixer.formats_of(plan)}")
        return plan

    def _check_scored(self, costs: CostTable, formats: FormatTable) -> None:
        """Raises InputError for tables of another model, or of other formats than are asked for."""
        again = f"run chinchilla score -o {self.folder.path} first"
        for table, name in ((costs, "costs.json"), (formats, "formats.json")):
            if table.model_sha256 != self.job.checkpoint.sha256:
                raise InputError(f"{self.folder.file(name)} holds another model's costs; {again}")
        scored, asked = {one.format for one in formats.wholes}, self.mixer.formats
        if scored != set(asked):
            there = ", ".join(sorted(scored))
            raise InputError(f"{self.folder.file('formats.json')} is of {there}, not of {', '.join(asked)}; {again}")

    def trials(self) -> list[Trial]:
        """What the search without a target leaves to be recovered, in this order; empty where there is a target."""
        if self.target.given:
            return []
        path = self.folder.require("trials.json", "search")
        values = read_json(path, "trials")
        try:
            return [Trial.from_dict(value) for value in values]
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path} is not a list of trials; delete it and run the search again") from error

    def advice(self, table: CostTable, plan: Plan, most: float) -> Trial | None:
        """The fastest of some speeds below `most`, which the table predicts of the plan, whose interval on dev lies
        within the margin; None where none does."""
        decides = ("task", "context", "max_tokens", "method", "max_measures", "seed", "recover", "margin", "metric")
        inputs = {
            "costs": sha256_of(self.folder.file("costs.json")),
            "layout": LAYOUT,
            "dropped": plan.dropped,
            **self.inputs(*decides),
        }
        path = self.folder.file("advice.json")

        def work() -> list[Trial]:
            self.measure.norms = dict(table.norms or {})
            made = self.planner.trials(table, Memo(self.measure), [], most, ADVICE_TRIALS, advice=True)
            shown = sorted((t for t in made if t.shows(self.recipe.margin)), key=lambda trial: -trial.speedup)
            write_atomic(path, json_text([trial.to_dict() for trial in shown[:1]]) + "\n")
            self.planner.clear()
            return shown[:1]

        def read() -> list[Trial]:
            return [Trial.from_dict(value) for value in read_json(path, "advice")]

        return next(iter(self.folder.stage("advice", inputs, ["advice.json"], work, read)), None)

    def shorten(self, plan: Plan) -> Checkpoint:
        """Carry out the plan; the short model, not yet recovered, is in `shortened/`."""
        if plan.num_blocks != self.job.checkpoint.model.config.num_blocks:
            blocks = self.job.checkpoint.model.config.num_blocks
            raise InputError(f"the plan has {plan.num_blocks} blocks, the model {blocks}; search again for this model")
        if plan.origin.get("model_sha256", self.job.checkpoint.sha256) != self.job.checkpoint.sha256:
            raise InputError(f"the plan is another model's; run chinchilla search -o {self.folder.path} again")
        inputs = self._meta(plan, taught=False)
        path = self.folder.file("shortened")

        def work() -> Checkpoint:
            short = self.job.checkpoint.with_model(shorten(self.job.checkpoint.model, plan))
            save(short, path, inputs)
            return short

        def read() -> Checkpoint:
            return load(str(path), task=self.recipe.task, device=str(self.job.device))

        return self.folder.stage("shorten", inputs, ["shortened/model.safetensors"], work, read)

    def recover(self, short: Checkpoint, plan: Plan) -> Checkpoint:
        """Train the short model on the original's outputs; the product is in `model/`."""
        path = self.folder.file("model")
        trains = self.recipe.recover.epochs > 0 and lost(plan)
        meta = self._meta(plan, taught=self.recipe.adapts and trains)
        inputs = {**meta, "rate": recovery_rate(self.job), **self.inputs("task", "seed", "recover")}
        state = self.folder.file("recover.state")

        def work() -> Checkpoint:
            if trains:
                identity = sha256_text(json_text(inputs))
                self.recovery.train(short.model, "recover", state=state, identity=identity)
            self._forget_reports()
            save(short, path, meta)
            state.unlink(missing_ok=True)
            return short

        def read() -> Checkpoint:
            return load(str(path), task=self.recipe.task, device=str(self.job.device))

        return self.folder.stage("recover", inputs, lambda: self._product("model"), work, read)

    def pack(self, plan: Plan) -> Path:
        """Pack `model/` in the plan's formats; the product is in `packed/`."""
        path, model = self.folder.file("packed"), self.folder.file("model")
        inputs = {
            "model": hashes(model),
            "format": str(self.mixer.formats_of(plan)),
            "calibrated_on": self.mixer.solved_on(plan),
            "version": __version__,
        }

        def work() -> Path:
            self._forget_reports()
            self.mixer.pack(load(str(model), task=self.recipe.task), plan, path)
            return path

        return self.folder.stage("pack", inputs, lambda: self._product("packed"), work, lambda: path)

    def _forget_reports(self) -> None:
        """They speak of the plan or model that is replaced."""
        for name in ("report.json", "report.md", "report.html", "advice.json"):
            self.folder.file(name).unlink(missing_ok=True)

    def _product(self, name: str) -> list[str]:
        """The files of `model/`, or `packed/`, that decide what it says."""
        folder = self.folder.file(name)
        return [f"{name}/{file}" for file in deciding_files(folder)] if folder.exists() else [f"{name}/config.json"]

    def control(self) -> Checkpoint:
        """The original, trained on the same data by the same schedule as the short model; in `control/`."""
        path = self.folder.file("control")
        meta = self._kept_meta(taught=self.recipe.adapts)
        inputs = {
            **meta,
            "rate": recovery_rate(self.job),
            **self.inputs("task", "seed", "recover", "context", "max_tokens"),
        }
        state = self.folder.file("control.state")

        def work() -> Checkpoint:
            trained = self.job.checkpoint.with_model(copy.deepcopy(self.job.checkpoint.model))
            identity = sha256_text(json_text(inputs))
            self.recovery.train(trained.model, "control", state=state, identity=identity)
            save(trained, path, meta)
            state.unlink(missing_ok=True)
            return trained

        def read() -> Checkpoint:
            return load(str(path), task=self.recipe.task, device=str(self.job.device))

        return self.folder.stage("control", inputs, ["control/model.safetensors"], work, read)

    def _meta(self, plan: Plan, *, taught: bool) -> dict[str, Any]:
        kept = self._kept_meta(taught=taught)
        # In this order, as the stages of earlier run folders have it.
        return {"plan": plan.to_dict(), "window": kept.pop("window"), "original": self.job.checkpoint.sha256, **kept}

    def _kept_meta(self, *, taught: bool) -> dict[str, Any]:
        """What a model that is made of the original takes over from it, and, where it is taught by the answers of the
        training data, that it was."""
        job = self.job
        window = {"context": job.context, "max_tokens": job.window}
        tags: dict[str, Any] = {"tags": "BIO"} if job.checkpoint.legal_tags else {}
        records = records_sha256(job.training_records) if taught else None
        return {"window": window, **tags, **adapted(job.checkpoint.meta, records)}

    def frontier(self, plan: Plan) -> list[dict[str, Any]]:
        """What the search stage wrote, with the plan marked that was taken in the end."""
        path = self.folder.require("frontier.json", "search")
        points = read_json(path, "frontier")
        if not isinstance(points, list) or not all(isinstance(point, dict) for point in points):
            raise InputError(f"{path} is not a list of points; run chinchilla search -o {self.folder.path} again")
        return with_chosen(points, plan)


def lost(plan: Plan) -> bool:
    """Whether there is something to recover: a plan that drops no link and packs the rest is the original, packed."""
    return bool(plan.dropped) or not plan.packed
