from collections.abc import Callable

import pytest

from chinchilla_lm.errors import ContractError, InputError
from chinchilla_lm.plan import CostTable, Plan, chain
from chinchilla_lm.search.dp import solve
from chinchilla_lm.search.greedy import greedy
from chinchilla_lm.search.memo import Memo
from chinchilla_lm.search.refine import Progress, measure_around, refine

Measure = Callable[[frozenset[str]], float]
Interacting = Callable[..., tuple[CostTable, Measure]]
MakeTable = Callable[..., CostTable]
Subsets = Callable[[CostTable], list[frozenset[str]]]


def test_finds_the_optimum_of_most_small_instances(interacting: Interacting, subsets: Subsets) -> None:
    found = {"dp": 0, "greedy": 0, "trust-region": 0, "polish": 0}
    instances = 20
    for seed in range(instances):
        table, measure = interacting(seed, 5)
        budget = table.fixed_us + 0.55 * (table.total_us - table.fixed_us)
        optimum = min(measure(dropped) for dropped in subsets(table) if table.predict_us(dropped) <= budget)
        plan = refine(table, budget, measure, max_measures=250, seed=seed)
        for rung in plan.origin["ladder"]:
            found[rung["stage"]] += rung["true_cost"] <= optimum + 1e-9
        greedy_cost = greedy(table, budget, measure, candidates=None).origin["true_cost"]
        found["greedy"] += greedy_cost <= optimum + 1e-9
    assert found["polish"] >= 0.8 * instances
    assert found["polish"] > found["trust-region"] > found["dp"]
    assert found["polish"] > found["greedy"]


def test_trust_region_halves_until_a_change_is_truly_better(table_of: MakeTable) -> None:
    # Dropping 1.attn or 1.mlp beside 0.attn gains 1 each, both together lose: two changes are refused, one is taken.
    costs = {link.name: 10.0 for link in chain(4)} | {"0.attn": 5.0}
    table = table_of(costs, dict.fromkeys(costs, 1.0), {}, 0.0)

    def measure(dropped: frozenset[str]) -> float:
        helpers = len(dropped & {"1.attn", "1.mlp"}) if "0.attn" in dropped else 0
        others = len(dropped - {"0.attn"}) - helpers
        return 5.0 * ("0.attn" in dropped) + 10.0 * others + {0: 0.0, 1: -1.0, 2: 6.0}[helpers]

    plan = refine(table, 7.5, measure, max_measures=16)
    assert [rung["true_cost"] for rung in plan.origin["ladder"]] == [5.0, 4.0, 4.0]
    assert len(plan.dropped) == 2


def test_trust_region_keeps_a_measurement_for_the_path_it_finds(table_of: MakeTable) -> None:
    table_costs = {link.name: 10.0 for link in chain(4)} | {"0.attn": 1.0, "1.attn": 2.0}
    truth = table_costs | {"0.attn": 5.0}
    table = table_of(table_costs, dict.fromkeys(table_costs, 1.0), {}, 0.0)

    def measure(dropped: frozenset[str]) -> float:
        return sum(truth[name] for name in dropped)

    plan = refine(table, 7.5, measure, max_measures=8)  # 6 for this rung: the start, 4 of 8 links around it, the path
    assert [rung["true_cost"] for rung in plan.origin["ladder"]][:2] == [5.0, 2.0]
    assert plan.origin["ladder"][1]["measures"] == 6


def test_never_worse_than_dp_and_within_budget(interacting: Interacting) -> None:
    for seed in range(8):
        table, measure = interacting(seed, 6)
        for share in (0.2, 0.5, 0.8):
            budget = table.fixed_us + share * (table.total_us - table.fixed_us)
            for max_measures in (1, 2, 15, 60):
                plan = refine(table, budget, measure, max_measures=max_measures, seed=seed, ticks=1000)
                start = measure(frozenset(solve(table, budget, ticks=1000).dropped))
                costs = [rung["true_cost"] for rung in plan.origin["ladder"]]
                assert costs[0] == pytest.approx(start)
                assert costs == sorted(costs, reverse=True)
                assert costs[-1] == plan.origin["true_cost"] == pytest.approx(measure(frozenset(plan.dropped)))
                assert table.predict_us(plan.dropped) <= budget
                assert plan.origin["measures"] <= max_measures
                assert plan.origin["lagrangian_bound"] <= plan.origin["ladder"][0]["additive_cost"] + 1e-9


def test_same_seed_same_trace(interacting: Interacting) -> None:
    table, measure = interacting(4, 6)
    budget = table.total_us / 2

    def traced(seed: int) -> tuple[Plan, list[frozenset[str]]]:
        asked: list[frozenset[str]] = []

        def telling(dropped: frozenset[str]) -> float:
            asked.append(dropped)
            return measure(dropped)

        return refine(table, budget, telling, max_measures=120, seed=seed), asked

    first, again, other = traced(7), traced(7), traced(8)
    assert first == again
    assert first[1] != other[1]
    assert len(set(first[1])) == len(first[1])  # nothing is measured twice


def test_protected_links_are_neither_dropped_nor_measured(interacting: Interacting) -> None:
    table, measure = interacting(2, 5)
    protected = {"0.attn", "3.mlp"}
    asked: set[str] = set()

    def telling(dropped: frozenset[str]) -> float:
        asked.update(dropped)
        return measure(dropped)

    plan = refine(table, table.total_us / 2, telling, protected=protected)
    assert protected <= set(plan.kept)
    assert not asked & protected
    assert len(asked) == 8


def test_no_cut_is_the_full_plan_at_once(interacting: Interacting) -> None:
    table, measure = interacting(2, 4)
    memo = Memo(measure)
    plan = refine(table, table.total_us, memo)
    assert plan.dropped == ()
    assert plan.origin["true_cost"] == 0.0
    assert memo.calls == 1


def test_all_dropped_ends(interacting: Interacting) -> None:
    table, measure = interacting(2, 3)
    plan = refine(table, table.fixed_us, measure)
    assert plan.kept == ()
    with pytest.raises(ContractError, match="least time to be had"):
        refine(table, table.fixed_us * 0.99, measure)


def test_a_memo_is_carried_to_a_tighter_search(interacting: Interacting) -> None:
    table, measure = interacting(9, 6)
    memo = Memo(measure)
    refine(table, table.total_us * 0.6, memo, max_measures=100)
    calls = memo.calls
    second = refine(table, table.total_us * 0.59, memo, max_measures=100)
    assert second.origin["measures"] == memo.calls - calls <= 100
    alone = refine(table, table.total_us * 0.59, measure, max_measures=100)
    assert second.origin["true_cost"] <= alone.origin["ladder"][0]["true_cost"]


def test_progress_is_told_of_each_measurement(interacting: Interacting) -> None:
    table, measure = interacting(1, 5)
    told: list[Progress] = []
    plan = refine(table, table.total_us / 2, measure, max_measures=50, on_progress=told.append)
    assert [one.measures for one in told] == list(range(1, plan.origin["measures"] + 1))
    assert [one.stage for one in told] == sorted(
        (one.stage for one in told), key=["dp", "trust-region", "polish"].index
    )
    assert told[0].best_cost == plan.origin["ladder"][0]["true_cost"]


def test_measure_around_turns_each_link_over(interacting: Interacting) -> None:
    _, measure = interacting(1, 3)
    here = frozenset({"0.attn", "1.mlp"})
    changes = measure_around(measure, here, ["0.attn", "2.attn"])
    assert changes == {
        "0.attn": measure(frozenset({"1.mlp"})) - measure(here),
        "2.attn": measure(here | {"2.attn"}) - measure(here),
    }


def test_bad_limits_are_refused(interacting: Interacting) -> None:
    table, measure = interacting(1, 3)
    with pytest.raises(InputError, match="max_measures 0"):
        refine(table, table.total_us, measure, max_measures=0)
    with pytest.raises(InputError, match="seed -1"):
        refine(table, table.total_us, measure, seed=-1)
