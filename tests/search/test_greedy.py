from collections.abc import Callable

import numpy as np
import pytest

from chinchilla_lm.errors import ContractError, InputError
from chinchilla_lm.plan import CostTable
from chinchilla_lm.search.greedy import Step, greedy
from chinchilla_lm.search.memo import Memo

MakeTable = Callable[..., CostTable]
Measure = Callable[[frozenset[str]], float]
Interacting = Callable[..., tuple[CostTable, Measure]]


def naive_greedy(table: CostTable, budget_us: float, measure: Measure) -> list[str]:
    """The definition, without memory or shortcuts."""
    order: list[str] = []
    while table.predict_us(order) > budget_us:
        live = [name for name in table.links if name not in order and table.time(name) > 0]
        gains = [(measure(frozenset([*order, j])) - measure(frozenset(order))) / table.time(j) for j in live]
        order.append(live[int(np.argmin(gains))])
    return order


def test_exhaustive_equals_the_definition(interacting: Interacting) -> None:
    for seed in range(40):
        table, measure = interacting(seed, 5)
        budget = table.total_us * (0.3 + 0.6 * (seed % 7) / 7)
        plan = greedy(table, budget, measure, candidates=None)
        assert [step["link"] for step in plan.origin["trace"]] == naive_greedy(table, budget, measure)
        assert plan.origin["true_cost"] == measure(frozenset(plan.dropped))
        assert table.predict_us(plan.dropped) <= budget


def test_lazy_equals_exhaustive_where_costs_add_up(random_table: MakeTable) -> None:
    for seed in range(40):
        table = random_table(np.random.default_rng(seed), 6)
        budget = max(1.0, table.fixed_us + 0.4 * (table.total_us - table.fixed_us))

        def measure(dropped: frozenset[str], table: CostTable = table) -> float:
            return sum(table.cost(name) for name in dropped)

        lazy, full = greedy(table, budget, measure, candidates=1), greedy(table, budget, measure, candidates=None)
        assert lazy.choices == full.choices
        assert lazy.origin["measures"] < full.origin["measures"]


def test_a_link_that_was_overtaken_is_found_by_measuring_on(table_of: MakeTable) -> None:
    # After 0.attn goes, 0.mlp (cheapest by the table) is dear, and 1.attn (third) is free.
    costs = {"0.attn": 1.0, "0.mlp": 2.0, "1.attn": 4.0, "1.mlp": 3.0}
    table = table_of(costs, dict.fromkeys(costs, 1.0), {}, 0.0)

    def measure(dropped: frozenset[str]) -> float:
        extra = 10.0 * ({"0.attn", "0.mlp"} <= dropped) - 4.0 * ({"0.attn", "1.attn"} <= dropped)
        return sum(costs[name] for name in dropped) + extra

    assert greedy(table, 2.0, measure, candidates=2).dropped == ("0.attn", "1.attn")
    # With one rival only: 1.mlp beats 0.mlp, then 1.attn is the rival and wins, too.
    assert greedy(table, 2.0, measure, candidates=1).dropped == ("0.attn", "1.attn")
    early = {"0.attn": 1.0, "0.mlp": 2.0, "1.attn": 4.0, "1.mlp": 3.0}
    calm = table_of(early, dict.fromkeys(early, 1.0), {}, 0.0)

    def late(dropped: frozenset[str]) -> float:
        return sum(early[name] for name in dropped) - 4.0 * ({"0.attn", "1.attn"} <= dropped)

    assert greedy(calm, 2.0, late, candidates=1).dropped == ("0.attn", "0.mlp")  # stopped before 1.attn
    assert greedy(calm, 2.0, late, candidates=2).dropped == ("0.attn", "1.attn")


def test_a_new_best_must_withstand_all_its_rivals_again(table_of: MakeTable) -> None:
    # By the table 0.attn, 0.mlp, 1.attn, 1.mlp, 2.attn; in truth 1.attn is better than the first, 2.attn best of all.
    table_costs = {"0.attn": 1.0, "0.mlp": 2.0, "1.attn": 3.0, "1.mlp": 4.0, "2.attn": 5.0, "2.mlp": 9.0}
    truth = {"0.attn": 6.0, "0.mlp": 7.0, "1.attn": 5.0, "1.mlp": 7.0, "2.attn": 1.0, "2.mlp": 9.0}
    table = table_of(table_costs, dict.fromkeys(table_costs, 1.0), {}, 0.0)

    def measure(dropped: frozenset[str]) -> float:
        return sum(truth[name] for name in dropped)

    assert greedy(table, 5.0, measure, candidates=1).dropped == ("0.attn",)
    assert greedy(table, 5.0, measure, candidates=2).dropped == ("2.attn",)


def test_trace_and_callback_tell_each_step(interacting: Interacting) -> None:
    table, measure = interacting(3, 5)
    told: list[Step] = []
    plan = greedy(table, table.total_us / 2, measure, on_step=told.append)
    trace = plan.origin["trace"]
    assert [vars(step) for step in told] == trace
    gone: set[str] = set()
    for step in trace:
        gone.add(step["link"])
        assert step["cost"] == pytest.approx(measure(frozenset(gone)))
        assert step["predicted_us"] == table.predict_us(gone)
    assert gone == set(plan.dropped)
    assert trace[-1]["measures"] == plan.origin["measures"]


def test_no_cut_measures_only_the_full_model(interacting: Interacting) -> None:
    table, measure = interacting(0, 3)
    memo = Memo(measure)
    plan = greedy(table, table.total_us, memo)
    assert (plan.dropped, plan.origin["trace"], plan.origin["true_cost"]) == ((), [], 0.0)
    assert memo.calls == 1


def test_ends_at_the_least_time_and_refuses_less(random_table: MakeTable) -> None:
    table = random_table(np.random.default_rng(5), 4)
    least = table.predict_us([name for name in table.links if name != "2.mlp"])
    plan = greedy(table, least, len, protected={"2.mlp"})
    assert "2.mlp" in plan.kept
    assert table.predict_us(plan.dropped) == least
    with pytest.raises(ContractError, match="least time to be had"):
        greedy(table, least - 0.5, len, protected={"2.mlp"})


def test_links_that_save_no_time_are_never_dropped(table_of: MakeTable) -> None:
    table = table_of({"0.attn": 0.0, "0.mlp": 5.0}, {"0.attn": 0.0, "0.mlp": 5.0}, {}, 1.0)
    assert greedy(table, 2.0, len).dropped == ("0.mlp",)


def test_bad_input_is_refused(random_table: MakeTable) -> None:
    table = random_table(np.random.default_rng(5), 2)
    with pytest.raises(InputError, match="candidates 0"):
        greedy(table, 5.0, len, candidates=0)
    with pytest.raises(ContractError, match="cost nan of dropping nothing is not finite; score in float32"):
        greedy(table, 5.0, lambda dropped: float("nan"))


def test_memo_measures_each_set_once() -> None:
    seen: list[frozenset[str]] = []

    def measure(dropped: frozenset[str]) -> float:
        seen.append(dropped)
        return 1.0

    memo = Memo(measure)
    assert Memo.of(memo) is memo
    for _ in range(3):
        memo(frozenset({"0.attn"}))
    assert (len(seen), memo.calls) == (1, 1)
    assert frozenset({"0.attn"}) in memo
    assert frozenset() not in memo
