"""The contract: the bad end of the clock decides, the budget tightens until it is content and relaxes as far as it is,
and what cannot be had is said."""

from __future__ import annotations

import random
import re
from collections.abc import Callable

import pytest

from chinchilla_lm.console import Console
from chinchilla_lm.errors import ContractError, InputError
from chinchilla_lm.plan import CostEntry, CostTable, Plan, chain
from chinchilla_lm.runtime.measuring.clock import Median, Ratio
from chinchilla_lm.score.contract import (
    HEADROOM,
    LONGEST,
    MAX_ROUNDS,
    NEIGHBOURS,
    SHARED_STRETCHES,
    StartRace,
    Target,
    Timed,
    fulfil,
)
from chinchilla_lm.search import METHODS

BLOCKS = 10
FIXED_US, LINK_US = 100.0, 45.0
TOTAL_US = FIXED_US + 2 * BLOCKS * LINK_US  # 1 ms
CONSOLE = Console(quiet=True)
# Exact here, where all links take as long, and quicker than the shortest path.
cheapest: Callable[[CostTable, float], Plan] = METHODS["one-shot"][0]


def table() -> CostTable:
    """Twenty links of 45 µs, each a little dearer than the one before."""
    entries = [CostEntry((link.name,), 1.0 + i, 1.0, 99.0, LINK_US) for i, link in enumerate(chain(BLOCKS))]
    facts = {"device": "cpu", "dtype": "float32", "tokens": 9, "model_sha256": "m", "documents_sha256": "d"}
    shape = {"batch": 1, "tokens": 8}
    return CostTable("kl", "nats", BLOCKS, tuple(entries), TOTAL_US, FIXED_US, shape, **facts)  # type: ignore[arg-type]


class FakeRace:
    """A model that takes so many microseconds, known the better the longer it is timed."""

    def __init__(self, taken_us: float, error: float) -> None:
        self.taken_us, self.error, self.stretches = taken_us, error, 0

    def run(self, stretches: int) -> Timed:
        self.stretches += stretches
        error = self.error / self.stretches**0.5
        ratio, latency = TOTAL_US / self.taken_us, self.taken_us / 1000
        return Timed(
            Ratio(ratio, ratio * (1 - error), ratio * (1 + error)),
            Median(latency, latency * (1 - error), latency * (1 + error)),
        )


class Machine:
    """A clock on which a plan takes what the table says times its `slowness`; keeps what was timed."""

    def __init__(self, slowness: float | Callable[[Plan], float] = 1.0, error: float = 0.0) -> None:
        self.slowness, self.error = slowness, error
        self.plans: list[Plan] = []
        self.races: list[FakeRace] = []

    def taken_us(self, plan: Plan) -> float:
        slowness = self.slowness(plan) if callable(self.slowness) else self.slowness
        return FIXED_US + slowness * LINK_US * len(plan.kept)

    def __call__(self, plan: Plan) -> FakeRace:
        self.plans.append(plan)
        self.races.append(FakeRace(self.taken_us(plan), self.error))
        return self.races[-1]

    def most_links(self, target: Target) -> int:
        """How many the best of all plans that the search offers has, timed one by one."""
        plans = [cheapest(table(), FIXED_US + LINK_US * (links + 0.5)) for links in range(2 * BLOCKS + 1)]
        limit_us = target.budget_us(TOTAL_US) / (1 + HEADROOM)
        return max(len(plan.kept) for plan in plans if self.taken_us(plan) <= limit_us)


TARGETS = [Target(speedup=2.0), Target(speedup=1.3), Target(latency_ms=0.6)]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("slowness", [1.0, 0.9, 0.95, 1.05, 1.1, 1.4, 0.7])
def test_the_slowest_plan_that_holds_is_taken_however_wrong_the_table_is(target, slowness):
    machine = Machine(slowness)
    best, tries = fulfil(table(), target, cheapest, machine, CONSOLE)
    assert len(best.plan.kept) == machine.most_links(target)
    assert target.reached(best.timed).low >= 1 + HEADROOM
    assert len(tries) <= MAX_ROUNDS + NEIGHBOURS
    assert len({one.plan.dropped for one in tries}) == len(tries), "nothing is timed twice"


@pytest.mark.parametrize("seed", range(20))
def test_links_that_are_off_by_a_tenth_either_way(seed):
    draw = random.Random(seed)
    factor = {link.name: draw.uniform(0.9, 1.1) for link in chain(BLOCKS)}
    machine = Machine(lambda plan: sum(factor[name] for name in plan.kept) / max(1, len(plan.kept)))
    best, tries = fulfil(table(), Target(speedup=2.0), cheapest, machine, CONSOLE)
    assert len(best.plan.kept) == machine.most_links(Target(speedup=2.0))
    assert len(tries) <= 4


@pytest.mark.parametrize("seed", range(20))
def test_whole_plans_that_are_off_by_a_tenth_either_way(seed):
    """Then a plan with more links may hold although one with fewer does not."""
    machine = Machine(lambda plan: random.Random(f"{seed} {len(plan.kept)}").uniform(0.9, 1.1))
    best, tries = fulfil(table(), Target(speedup=2.0), cheapest, machine, CONSOLE)
    assert all(one.budget_us <= best.budget_us or not one.holds for one in tries)
    assert len(best.plan.kept) == machine.most_links(Target(speedup=2.0))


def test_what_was_predicted_just_under_the_line_is_timed():
    """Six links predicted at 1.98×, truly 2.05×; five at 2.33×: the six are kept."""
    machine = Machine(lambda plan: 0.95 if len(plan.kept) == 9 else 1.0)
    target = Target(speedup=TOTAL_US / (FIXED_US + 9 * LINK_US) * 1.01)
    best, tries = fulfil(table(), target, cheapest, machine, CONSOLE)
    assert [len(one.plan.kept) for one in tries][:2] == [8, 9]
    assert len(best.plan.kept) == 9


def test_without_neighbours_the_first_that_holds_is_taken():
    best, tries = fulfil(table(), Target(speedup=2.0), cheapest, Machine(0.9), CONSOLE, neighbours=0)
    assert len(tries) == 1
    assert best.plan.dropped == tries[0].plan.dropped


def test_of_plans_that_hold_the_one_that_truly_costs_least_is_kept():
    """The table's sum prefers the plan with more links; measured together it is worse."""
    best, tries = fulfil(
        table(), Target(speedup=2.0), cheapest, Machine(0.9), CONSOLE, cost=lambda plan: len(plan.kept)
    )
    holding = [len(one.plan.kept) for one in tries if one.holds]
    assert len(holding) > 1
    assert len(best.plan.kept) == min(holding)


def test_the_lower_bound_decides_and_a_straddling_interval_is_timed_longer():
    fast = 1.04 * 2.0
    machine = Machine(lambda plan: (TOTAL_US / fast - FIXED_US) / LINK_US / len(plan.kept), error=0.03)
    best, _ = fulfil(table(), Target(speedup=2.0), cheapest, machine, CONSOLE)
    assert machine.races[0].stretches == LONGEST, "±3 % straddles 2 × 1.02, ±1.5 % does not"
    assert best.speedup.low >= 2.0 * (1 + HEADROOM)
    near = Machine(lambda plan: (TOTAL_US / 2.03 - FIXED_US) / LINK_US / max(1, len(plan.kept)), error=0.03)
    with pytest.raises(ContractError):
        fulfil(table(), Target(speedup=2.0), cheapest, near, CONSOLE)
    assert near.races[0].stretches == LONGEST
    clear = Machine(1.0, error=0.001)
    fulfil(table(), Target(speedup=2.0), cheapest, clear, CONSOLE)
    assert {race.stretches for race in clear.races} == {1}, "what is clear is not timed longer"


def test_neighbours_on_a_noisy_machine_share_what_they_may_take_and_what_is_undecided_is_said(capsys):
    machine = Machine(0.7, error=0.2)
    best, tries = fulfil(table(), Target(speedup=2.0), cheapest, machine, Console())
    assert [len(one.plan.kept) for one in tries] == [8, 9, 10, 11]
    assert len(best.plan.kept) == 10
    neighbours = [race.stretches for race in machine.races[1:]]
    assert sum(neighbours) <= len(neighbours) + SHARED_STRETCHES
    *_, last = capsys.readouterr().out.splitlines()
    assert last.startswith("contract: 11 links at 2.24× [")
    assert "undecided whether speed-up 2 holds" in last


def test_a_neighbour_that_would_not_be_kept_is_not_timed_longer(capsys):
    """Here fewer links cost less, whatever the table says."""
    machine = Machine(0.8, error=0.2)
    best, tries = fulfil(table(), Target(speedup=2.0), cheapest, machine, Console(), cost=lambda plan: len(plan.kept))
    assert len(best.plan.kept) == min(len(one.plan.kept) for one in tries)
    assert [len(one.plan.kept) for one in tries if not one.holds] == [9], "which straddles"
    assert {race.stretches for race in machine.races} == {1}
    assert "undecided" not in capsys.readouterr().out


@pytest.mark.parametrize("target", [Target(speedup=2.0), Target(latency_ms=5.0)])
def test_a_promise_holds_at_the_bad_end(target):
    holds = Timed(Ratio(2.1, 2.0, 2.2), Median(4.9, 4.8, 5.0))
    straddles = Timed(Ratio(2.1, 1.99, 2.2), Median(4.9, 4.8, 5.01))
    unknown = Timed(Ratio(2.1, float("nan"), float("nan")), Median(4.9, float("nan"), float("nan")))
    assert target.holds(holds)
    assert not target.holds(straddles)
    assert not target.holds(unknown), "one round promises nothing"


def test_the_budget_tightens_until_the_promise_holds_and_the_plan_says_what_was_timed():
    machine = Machine(1.4)
    best, tries = fulfil(table(), Target(speedup=2.0), cheapest, machine, CONSOLE)
    first = next(place for place, one in enumerate(tries) if one.holds)
    assert first > 0
    assert [len(one.plan.kept) for one in tries[: first + 1]] == sorted(
        {len(one.plan.kept) for one in tries[: first + 1]}, reverse=True
    )
    assert best.plan.origin["measured"] == [one.facts() for one in tries]
    assert [facts["holds"] for facts in best.plan.origin["measured"]] == [one.holds for one in tries]


def test_a_miss_by_a_hair_still_drops_a_link():
    """Noise just below the promise, again and again: the loop must not stand still."""
    seen: list[Plan] = []

    class Hair:
        def run(self, stretches: int) -> Timed:
            value = 1.5 * (1 + HEADROOM) * (0.9999 if len(seen) < 6 else 1.0001)
            return Timed(Ratio(value, value, value), Median(1.0, 1.0, 1.0))

    def start(plan: Plan) -> Hair:
        seen.append(plan)
        return Hair()

    _, tries = fulfil(table(), Target(speedup=1.5), cheapest, start, CONSOLE)
    kept = [len(one.plan.kept) for one in tries]
    assert kept[:6] == list(range(kept[0], kept[0] - 6, -1))


def test_what_is_fast_enough_already_is_left_alone():
    easy, once = fulfil(table(), Target(latency_ms=50.0), cheapest, Machine(), CONSOLE)
    assert len(once) == 1
    assert easy.plan.dropped == ()


@pytest.mark.parametrize(
    ("target", "asked", "flag"),
    [
        (Target(speedup=12.0), "speed-up 12 cannot be had", "--speedup"),
        (Target(latency_ms=0.05), "latency 0.05 ms cannot be had", "--latency"),
    ],
)
def test_what_no_plan_can_reach_is_told_with_what_can_be_had(target, asked, flag):
    machine = Machine()
    with pytest.raises(ContractError) as caught:
        fulfil(table(), target, cheapest, machine, CONSOLE)
    message = str(caught.value)
    assert message.startswith(f"{asked}: without any link the model is 10.00× as fast (0.10 ms); ask for less, such as")
    assert [len(plan.kept) for plan in machine.plans] == [0], "the limit is measured"
    _proposal_can_be_had(message, flag, Machine())


def _proposal_can_be_had(message: str, flag: str, start: StartRace) -> None:
    found = re.search(rf"such as {flag} ([\d.]+)$", message)
    assert found is not None
    value = float(found[1])
    fulfil(table(), Target(value) if flag == "--speedup" else Target(latency_ms=value), cheapest, start, CONSOLE)


@pytest.mark.parametrize(
    ("target", "flag"), [(Target(speedup=2.0), "--speedup"), (Target(latency_ms=0.5), "--latency")]
)
def test_it_stops_after_so_many_rounds_and_proposes_less_than_was_asked(target, flag):
    """A clock that never shows more than 1.95×, although without any link the model is 10× as fast."""

    def stuck(plan: Plan) -> float:
        return (TOTAL_US / 1.95 - FIXED_US) / LINK_US / len(plan.kept) if plan.kept else 1.0

    machine = Machine(stuck)
    with pytest.raises(ContractError, match="cannot be had") as caught:
        fulfil(table(), target, cheapest, machine, CONSOLE)
    assert len(machine.plans) == MAX_ROUNDS + 1
    _proposal_can_be_had(str(caught.value), flag, Machine(stuck))


def test_a_search_that_is_misused_is_not_taken_for_a_broken_promise():
    def search(table: CostTable, budget_us: float) -> Plan:
        raise InputError("no")

    with pytest.raises(InputError, match="no"):
        fulfil(table(), Target(speedup=2.0), search, Machine(), CONSOLE)


def test_each_try_is_told_as_predicted_and_as_measured(capsys):
    _, tries = fulfil(table(), Target(speedup=2.0), cheapest, Machine(1.4), Console())
    *lines, last = capsys.readouterr().out.splitlines()
    assert len(lines) == len(tries) > 1
    for line, one in zip(lines, tries, strict=True):
        assert f"predicted {TOTAL_US / one.predicted_us:.2f}×" in line
        assert f"measured {one.speedup.value:.2f}× [" in line
        assert line.endswith("(holds)") == one.holds
    assert last.startswith("contract: ")
    assert f"{len(tries)} plans" in last
