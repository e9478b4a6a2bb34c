"""Which links to drop: methods side by side under the contract, raced on dev; speeds tried where none is asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from chinchilla_lm import __version__
from chinchilla_lm.errors import ContractError, InputError
from chinchilla_lm.files import json_text, read_json, sha256_text, write_atomic
from chinchilla_lm.pipeline.fastest import Effort, Trial, bisect
from chinchilla_lm.pipeline.recovery import Standing, recovery_rate
from chinchilla_lm.pipeline.timing import AgainstOriginal
from chinchilla_lm.pipeline.workbench import Workbench
from chinchilla_lm.plan import CostTable, Plan, chain
from chinchilla_lm.score.contract import NEIGHBOURS, Target, Try, fulfil
from chinchilla_lm.search import MEASURED, METHODS, Memo
from chinchilla_lm.shorten.surgery import shorten

Search = Callable[[CostTable, float], Plan]
# Seconds that a plan is timed against the original, in turn, before it is looked at.
CLOCK_SECONDS = 3.0
# Shares of the way to the target at which the frontier is drawn.
FRONTIER_SHARES = (0.25, 0.5, 0.75, 1.0)
# What `race` lets run, and how far: the lower the cost before recovery, or the lower the links, the better? The number
# of tokens is an assumption: measured is that dev F1 differs by 3.6 points after one epoch (docs/log.md).
CONTENDERS = ("refine", "top")
RACE_TOKENS = 60_000
# The first search of a target has all measurements; those with another budget, which find most of them made, this part.
LATER = 4
BASELINES = ("cosine", "one-shot", "dp")
# Of frontier.json: one written with another number is not read, but searched for again.
LAYOUT = 3


class Planner:
    """Searches plans for one job; what it measures and trains is the bench's."""

    def __init__(self, bench: Workbench) -> None:
        self.bench = bench

    def plan_for(
        self,
        table: CostTable,
        target: Target,
        memo: Memo,
        tried: list[Try],
        methods: Sequence[str],
        neighbours: int = NEIGHBOURS,
    ) -> Plan:
        """The best plan that keeps the promise; all that were timed are added to `tried`.

        Raises ContractError where no method has one.
        """
        found: list[Plan] = []
        refused: ContractError | None = None
        with self.bench.console.progress(0, "search", "measurements") as progress:
            for method in methods:
                search = self.searcher(method, memo, lambda note: progress.advance(1, note))
                try:
                    best, tries = self.fulfil(table, target, search, memo, neighbours)
                except ContractError as error:
                    refused = error
                    continue
                found.append(best.plan)
                tried += tries
        if not found and refused is not None:
            raise refused
        return self._race(found)

    def most(self, table: CostTable) -> float:
        """The speed-up that the table predicts of a model without links."""
        return table.total_us / table.predict_us([link.name for link in chain(table.num_blocks)])

    def trials(
        self, table: CostTable, memo: Memo, tried: list[Try], most: float, count: int, *, advice: bool = False
    ) -> list[Trial]:
        """Speeds below `most`, tried on dev. advice: after a test, for what to ask for the next time."""
        methods = list(self.methods())
        self._say_what_trials_cost(count, len(methods), advice)

        def attempt(speed: float) -> Trial | None:
            try:
                # No neighbours: the speed itself is what is tried.
                plan = self.plan_for(table, Target(speedup=speed), memo, tried, methods, neighbours=0)
            except ContractError as error:
                self.bench.console.say(f"trial: {error}")
                return None
            methods[:] = [plan.method]  # the first trial's race has chosen
            standing = self._briefly(plan)
            # What can be promised of it, not the middle of what was timed.
            measured = next(one.speedup.low for one in reversed(tried) if one.plan.dropped == plan.dropped)
            trial = Trial(self.signed(plan), measured, standing)
            margin = self.bench.recipe.margin
            held = "holds" if trial.holds(margin) else "may yet hold" if trial.undecided(margin) else "does not hold"
            self.bench.console.say(
                f"trial: at least {measured:.2f}× with {len(plan.kept)} links, loss on dev {standing.loss:.2f} "
                f"[{standing.low:.2f}, {standing.high:.2f}], {held} the margin of {margin:g}"
            )
            return trial

        return bisect(most, self.bench.recipe.margin, attempt, count)

    def _say_what_trials_cost(self, count: int, methods: int, advice: bool) -> None:
        recipe, recovery = self.bench.recipe, self.bench.recovery
        batches, _ = self.bench.job.calibration
        effort = Effort(
            speeds=count,
            models=count - 1 + methods,
            tokens=recovery.tokens(RACE_TOKENS),
            dev_tokens=recovery.dev_tokens,
            measures=recipe.max_measures if "refine" in self.methods() else 0,
            calibration_tokens=sum(batch.batch.tokens for batch in batches),
            token_seconds=recovery.token_seconds,
            dev_readings=recovery.dev_readings(RACE_TOKENS),
            recovery_tokens=recovery.tokens(),
            advice=advice,
        )
        self.bench.console.say(effort.words())

    @property
    def recovers_further(self) -> bool:
        """Whether the recovery of the model that is taken learns from more tokens than a trial's."""
        return self.bench.recovery.tokens() > self.bench.recovery.tokens(RACE_TOKENS)

    def methods(self) -> tuple[str, ...]:
        if self.bench.recipe.method != "race":
            return (self.bench.recipe.method,)
        return CONTENDERS if self.bench.recipe.recover.epochs > 0 else CONTENDERS[:1]

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
        how = {"tokens": RACE_TOKENS, "rate": recovery_rate(self.bench.job), "version": __version__}
        chosen = {"dropped": plan.dropped, "norms": plan.norms, **how}
        fields = ("task", "seed", "recover", "context", "max_tokens", "metric")
        identity = sha256_text(json_text({**chosen, **self.bench.inputs(*fields)}))
        done = self.bench.folder.file(f"race-{identity[:16]}.json")
        if not done.exists():
            short = shorten(self.bench.job.checkpoint.model, plan)
            state = done.with_suffix(".state")
            if self.bench.recipe.recover.epochs > 0:
                self.bench.recovery.train(
                    short, f"race: {plan.method}", tokens=RACE_TOKENS, state=state, identity=identity
                )
            write_atomic(done, json_text(asdict(self.bench.recovery.standing(short))) + "\n")
            state.unlink(missing_ok=True)
        try:
            standing = Standing.from_dict(read_json(done, "race"))
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"{done} does not say where a model stands; delete it to recover that model anew"
            ) from error
        self.bench.console.say(f"race: {plan.method}, {len(plan.kept)} links, dev {standing.dev:.4f}")
        return standing

    def searcher(self, method: str, memo: Memo, on_measure: Callable[[str], None]) -> Search:
        function, _ = METHODS[method]
        most = self.bench.recipe.max_measures

        def search(table: CostTable, budget_us: float) -> Plan:
            nonlocal most
            allowed, most = most, max(1, self.bench.recipe.max_measures // LATER)
            if method == "refine":
                return function(
                    table,
                    budget_us,
                    memo,
                    max_measures=allowed,
                    seed=self.bench.recipe.seed,
                    on_progress=lambda p: on_measure(f"{p.stage} {p.best_cost:.4f}"),
                )
            if method in MEASURED:
                return function(table, budget_us, memo, on_step=lambda step: on_measure(f"{step.link} {step.cost:.4f}"))
            return function(table, budget_us)

        return search

    def fulfil(
        self, table: CostTable, target: Target, search: Search, memo: Memo, neighbours: int = NEIGHBOURS
    ) -> tuple[Try, list[Try]]:
        """The contract, with true costs."""

        def cost(plan: Plan) -> float:
            return memo(frozenset(plan.dropped))

        return fulfil(table, target, search, self.race, self.bench.console, cost=cost, neighbours=neighbours)

    def race(self, plan: Plan) -> AgainstOriginal:
        """The assembled model against the original, in turn."""
        short = self.bench.job.serve(shorten(self.bench.job.checkpoint.model, plan, share=True))
        return AgainstOriginal(self.bench.job, {"original": self.bench.served, "short": short}, "short", CLOCK_SECONDS)

    def frontier(self, table: CostTable, memo: Memo, tried: list[Try], chosen: Plan) -> list[dict[str, Any]]:
        """Points (speed-up, cost before recovery): the baselines at shares of the target, or of `chosen`'s speed, and
        every plan that was timed. Which of these is taken in the end is for `with_chosen` to say."""
        target = self.bench.target
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
            cost = memo(frozenset(plan.dropped))
            point = _point(plan.method, ratio.value, latency_ms, cost, len(plan.kept))
            points.append({**point, "dropped": list(plan.dropped)})
        return points

    def decides(self) -> tuple[str, ...]:
        if not self.bench.target.given:
            return ("recover", "margin", "metric")
        return ("recover",) if self.bench.recipe.method == "race" else ()

    def signed(self, plan: Plan) -> Plan:
        return replace(plan, origin={**plan.origin, "model_sha256": self.bench.job.checkpoint.sha256})

    def clear(self) -> None:
        for left in self.bench.folder.path.glob("race-*"):
            left.unlink()


def with_chosen(points: Sequence[Mapping[str, Any]], plan: Plan) -> list[dict[str, Any]]:
    """Points of a frontier for a report: that of the plan which was taken in the end is marked, its last timing where
    it was timed more than once."""
    taken = (plan.method, list(plan.dropped), plan.format)
    asked = ("method", "dropped", "format")
    places = [place for place, point in enumerate(points) if tuple(map(point.get, asked)) == taken]
    return [
        {key: value for key, value in point.items() if key not in asked[1:]} | {"chosen": place in places[-1:]}
        for place, point in enumerate(points)
    ]


def _point(method: str, speed: float, latency_ms: float, cost: float, links: int) -> dict[str, Any]:
    return {
        "method": method,
        "stage": "before recovery",
        "speedup": speed,
        "latency_ms": latency_ms,
        "quality": cost,
        "low": None,
        "high": None,
        "links": links,
    }
