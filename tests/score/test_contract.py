"""The contract: the clock decides, the budget tightens until it is content, and what cannot be had is said."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

import pytest

from chinchilla_lm.console import Console
from chinchilla_lm.errors import ContractError, InputError
from chinchilla_lm.plan import CostEntry, CostTable, Plan, chain
from chinchilla_lm.runtime.measuring.clock import Ratio
from chinchilla_lm.score.contract import HEADROOM, MAX_ROUNDS, Target, TimeAgainstOriginal, fulfil
from chinchilla_lm.search import METHODS

BLOCKS = 10
FIXED_US, LINK_US = 100.0, 45.0
TOTAL_US = FIXED_US + 2 * BLOCKS * LINK_US  # 1 ms
CONSOLE = Console(quiet=True)
greedy: Callable[[CostTable, float], Plan] = METHODS["dp"][0]


def table() -> CostTable:
    """Twenty links of 45 µs, each a little dearer than the one before."""
    entries = [CostEntry((link.name,), 1.0 + i, 1.0, 99.0, LINK_US) for i, link in enumerate(chain(BLOCKS))]
    facts = {"device": "cpu", "dtype": "float32", "tokens": 9, "model_sha256": "m", "documents_sha256": "d"}
    shape = {"batch": 1, "tokens": 8}
    return CostTable("kl", "nats", BLOCKS, tuple(entries), TOTAL_US, FIXED_US, shape, **facts)  # type: ignore[arg-type]


def machine(slowness: float = 1.0, calls: list[Plan] | None = None) -> TimeAgainstOriginal:
    """A clock on which what is kept of the links takes `slowness` times what the table says."""

    def clock(plan: Plan) -> tuple[Ratio, float]:
        if calls is not None:
            calls.append(plan)
        taken = FIXED_US + slowness * LINK_US * len(plan.kept)
        ratio = TOTAL_US / taken
        return Ratio(ratio, ratio * 0.99, ratio * 1.01), taken / 1000

    return clock


def test_a_table_that_tells_the_truth_is_searched_once():
    calls: list[Plan] = []
    found, tries = fulfil(table(), Target(speedup=2.0), greedy, machine(calls=calls), CONSOLE)
    assert len(tries) == len(calls) == 1
    assert found.speedup.value >= 2.0 * (1 + HEADROOM)
    assert found.plan.dropped == calls[0].dropped
    # One link less would still be 2×, but without headroom for the noise of the last timing.
    assert len(found.plan.kept) == math.floor((TOTAL_US / 2 / (1 + HEADROOM) - FIXED_US) / LINK_US)


def test_the_budget_tightens_until_the_promise_holds():
    calls: list[Plan] = []
    found, tries = fulfil(table(), Target(speedup=2.0), greedy, machine(1.4, calls), CONSOLE)
    budgets = [one.budget_us for one in tries]
    kept = [len(plan.kept) for plan in calls]
    assert len(tries) > 1
    assert budgets == sorted(budgets, reverse=True)
    assert kept == sorted(set(kept), reverse=True), "every plan has fewer links than the one before"
    assert all(one.speedup.value / 2.0 < 1 + HEADROOM for one in tries[:-1])
    assert found.speedup.value / 2.0 >= 1 + HEADROOM
    assert found.plan.origin["measured"] == [
        {
            "budget_us": one.budget_us,
            "speedup": one.speedup.value,
            "latency_ms": one.latency_ms,
            "links": len(one.plan.kept),
        }
        for one in tries
    ]


def test_a_miss_by_a_hair_still_drops_a_link():
    """Noise just below the promise, again and again: the loop must not stand still."""
    calls: list[Plan] = []

    def clock(plan: Plan) -> tuple[Ratio, float]:
        calls.append(plan)
        value = 1.5 * (1 + HEADROOM) * (0.9999 if len(calls) < 6 else 1.0001)
        return Ratio(value, value, value), 1.0

    _, tries = fulfil(table(), Target(speedup=1.5), greedy, clock, CONSOLE)
    kept = [len(one.plan.kept) for one in tries]
    assert kept == list(range(kept[0], kept[0] - 6, -1))


def test_a_latency_target_is_held_in_milliseconds():
    found, tries = fulfil(table(), Target(latency_ms=0.6), greedy, machine(1.3), CONSOLE)
    assert len(tries) > 1
    assert found.latency_ms * (1 + HEADROOM) <= 0.6
    assert tries[-2].latency_ms * (1 + HEADROOM) > 0.6
    easy, once = fulfil(table(), Target(latency_ms=50.0), greedy, machine(), CONSOLE)
    assert len(once) == 1
    assert easy.plan.dropped == (), "what is fast enough already is left alone"


@pytest.mark.parametrize(
    ("target", "asked", "flag"),
    [
        (Target(speedup=12.0), "speed-up 12 cannot be had", "--speedup"),
        (Target(latency_ms=0.05), "latency 0.05 ms cannot be had", "--latency"),
    ],
)
def test_what_no_plan_can_reach_is_told_with_what_can_be_had(target, asked, flag):
    calls: list[Plan] = []
    with pytest.raises(ContractError) as caught:
        fulfil(table(), target, greedy, machine(calls=calls), CONSOLE)
    message = str(caught.value)
    assert message.startswith(f"{asked}: without any link the model is 10.00× as fast (0.10 ms); ask for less, such as")
    assert [len(plan.kept) for plan in calls] == [0], "the limit is measured"
    _proposal_can_be_had(message, flag, machine())


def _proposal_can_be_had(message: str, flag: str, clock: TimeAgainstOriginal) -> None:
    found = re.search(rf"such as {flag} ([\d.]+)$", message)
    assert found is not None
    value = float(found[1])
    fulfil(table(), Target(value) if flag == "--speedup" else Target(latency_ms=value), greedy, clock, CONSOLE)


@pytest.mark.parametrize(
    ("target", "flag"), [(Target(speedup=2.0), "--speedup"), (Target(latency_ms=0.5), "--latency")]
)
def test_it_stops_after_so_many_rounds_and_proposes_less_than_was_asked(target, flag):
    """A clock that never shows more than 1.95×, although without any link the model is 10× as fast."""
    calls: list[Plan] = []

    def clock(plan: Plan) -> tuple[Ratio, float]:
        calls.append(plan)
        value = 10.0 if not plan.kept else 1.95
        return Ratio(value, value, value), TOTAL_US / value / 1000

    with pytest.raises(ContractError, match="cannot be had") as caught:
        fulfil(table(), target, greedy, clock, CONSOLE)
    assert len(calls) == MAX_ROUNDS + 1
    _proposal_can_be_had(str(caught.value), flag, clock)


def test_a_search_that_is_misused_is_not_taken_for_a_broken_promise():
    def search(table: CostTable, budget_us: float) -> Plan:
        raise InputError("no")

    with pytest.raises(InputError, match="no"):
        fulfil(table(), Target(speedup=2.0), search, machine(), CONSOLE)


def test_each_try_is_told(capsys):
    fulfil(table(), Target(speedup=2.0), greedy, machine(1.4), Console())
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 1
    assert all("misses" in line for line in lines[:-1])
    assert lines[-1].startswith("contract: ")
    assert "holds" in lines[-1]
