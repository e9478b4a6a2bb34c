from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from chinchilla_lm.errors import ContractError, InputError
from chinchilla_lm.plan import CostTable
from chinchilla_lm.search.dp import lagrangian_bound, solve

MakeTable = Callable[..., CostTable]
Brute = Callable[..., float]


def draw_budget(rng: np.random.Generator, table: CostTable) -> int:
    """Whole microseconds, at least one above what is fixed and below the full time where that leaves any."""
    low = int(table.fixed_us) + 1
    return int(rng.integers(low, max(low + 1, int(table.total_us))))


def test_equals_brute_force_on_500_instances(random_table: MakeTable, brute: Brute) -> None:
    shortened = 0
    for seed in range(500):
        rng = np.random.default_rng(seed)
        table = random_table(rng, int(rng.integers(1, 7)), least=-5 if seed % 3 == 0 else 0)
        budget = draw_budget(rng, table)
        plan = solve(table, budget, ticks=budget - int(table.fixed_us))  # a tick is 1 us, so rounding takes nothing
        expected = 0.0 if table.total_us <= budget else brute(table, budget)
        assert table.cost_of(plan.dropped) == expected, seed
        assert plan.origin["cost"] == expected
        assert table.predict_us(plan.dropped) <= budget
        shortened += bool(plan.dropped)
    assert shortened > 400


def test_joint_cost_of_a_block_replaces_the_sum(table_of: MakeTable) -> None:
    costs = {"0.attn": 1.0, "0.mlp": 1.0, "1.attn": 3.0, "1.mlp": 3.0}
    times = dict.fromkeys(costs, 1.0)
    dear = table_of(costs, times, {0: 50.0}, 0.0)
    assert solve(dear, 2.0, ticks=2).origin["cost"] == 4.0  # not 2, though both links of block 0 cost 1 alone
    cheap = table_of(costs, times, {1: 0.5}, 0.0)
    assert solve(cheap, 2.0, ticks=2).dropped == ("1.attn", "1.mlp")


def test_trust_region_equals_brute_force(random_table: MakeTable, brute: Brute) -> None:
    refused = 0
    for seed in range(150):
        rng = np.random.default_rng(seed)
        table = random_table(rng, int(rng.integers(1, 6)))
        budget = draw_budget(rng, table)
        start = frozenset(name for name in table.links if rng.random() < 0.4)
        for most in range(4):
            expected = brute(table, budget, start, most)
            if table.total_us <= budget and len(start) <= most:
                expected = 0.0
            options: dict[str, Any] = {"ticks": budget - int(table.fixed_us), "incumbent": start, "max_changes": most}
            if np.isinf(expected):
                with pytest.raises(ContractError, match=r"least time to be had|pass more ticks"):
                    solve(table, budget, **options)
                refused += 1
            else:
                plan = solve(table, budget, **options)
                assert table.cost_of(plan.dropped) == expected, (seed, most)
                assert len(start.symmetric_difference(plan.dropped)) <= most
    assert 10 < refused < 500


def test_rounding_up_never_exceeds_and_costs_little(random_table: MakeTable, brute: Brute) -> None:
    for seed in range(100):
        rng = np.random.default_rng(seed)
        whole = random_table(rng, int(rng.integers(1, 6)))
        scale = float(rng.uniform(0.01, 100))
        data = whole.to_dict()
        for row in data["entries"]:
            row["time_us"] = row["time_us"] * scale * float(rng.uniform(0.5, 1.5))
        data["fixed_us"] *= scale
        table = CostTable.from_dict({**data, "total_us": 1e9})
        full_us = table.predict_us(())
        budget = table.fixed_us + float(rng.uniform(0.05, 0.99)) * (full_us - table.fixed_us)
        if not table.fixed_us < budget < full_us:
            continue
        for ticks in (20, 10_000):
            plan = solve(table, budget, ticks=ticks)
            assert table.predict_us(plan.dropped) <= budget
            spare = table.num_blocks * (budget - table.fixed_us) / ticks
            assert brute(table, budget) <= table.cost_of(plan.dropped) <= brute(table, budget - spare)


def test_optimum_is_monotone_in_the_budget(random_table: MakeTable) -> None:
    for seed in range(15):
        rng = np.random.default_rng(seed)
        table = random_table(rng, 5)
        budgets = range(int(table.fixed_us) + 1, int(table.total_us) + 2)
        costs = [solve(table, budget, ticks=budget - int(table.fixed_us)).origin["cost"] for budget in budgets]
        assert costs == sorted(costs, reverse=True)


def test_no_budget_cut_returns_the_full_plan(random_table: MakeTable) -> None:
    table = random_table(np.random.default_rng(1), 4, least=-9)  # dropping would even gain
    for budget in (table.total_us, table.total_us * 3):
        plan = solve(table, budget)
        assert plan.dropped == ()
        assert plan.origin["cost"] == 0.0


def test_measured_full_time_within_budget_is_enough(table_of: MakeTable) -> None:
    table = CostTable.from_dict(
        {**table_of({"0.attn": 1.0, "0.mlp": 1.0}, {"0.attn": 5.0, "0.mlp": 5.0}, {}, 1.0).to_dict(), "total_us": 10.5}
    )  # the parts add up to 11
    assert solve(table, 10.5).dropped == ()
    assert solve(table, 10.4).dropped != ()
    assert lagrangian_bound(table, 10.5) <= 0.0


def test_ties_prefer_keep(table_of: MakeTable) -> None:
    costs = dict.fromkeys(("0.attn", "0.mlp", "1.attn", "1.mlp"), 0.0)
    table = table_of(costs, {"0.attn": 1.0, "0.mlp": 6.0, "1.attn": 1.0, "1.mlp": 1.0}, {}, 0.0)
    assert solve(table, 8.0, ticks=8).dropped in (("0.attn",), ("1.attn",), ("1.mlp",))
    assert solve(table, 4.0, ticks=4).dropped == ("0.mlp",)


def test_protected_links_stay(random_table: MakeTable) -> None:
    for seed in range(30):
        rng = np.random.default_rng(seed)
        table = random_table(rng, 4)
        protected = {name for name in table.links if rng.random() < 0.3}
        least = table.predict_us([name for name in table.links if name not in protected])
        budget = max(1.0, least)
        plan = solve(table, budget, ticks=max(1, int(budget - table.fixed_us)), protected=protected)
        assert not protected.intersection(plan.dropped)
        assert lagrangian_bound(table, budget, protected=protected) <= plan.origin["cost"] + 1e-9
        if least > 1:
            with pytest.raises(
                ContractError, match=f"least time to be had, {least:g} us; ask for a speed-up of at most"
            ):
                solve(table, least - 0.5, protected=protected)


def test_what_cannot_be_had_is_refused(table_of: MakeTable) -> None:
    table = table_of({"0.attn": 1.0, "0.mlp": 1.0}, {"0.attn": 5.0, "0.mlp": 7.0}, {}, 8.0)
    with pytest.raises(ContractError, match=r"budget 7 us is below the least time to be had, 8 us; .* at most 2\.50x"):
        solve(table, 7.0)
    assert solve(table, 8.0).kept == ()
    with pytest.raises(ContractError, match="with 1 changes, 13 us"):
        solve(table, 9.0, max_changes=1)
    with pytest.raises(ContractError, match="max_changes 0 is below the number of protected links to restore, 1"):
        solve(table, 15.0, incumbent=["0.attn"], max_changes=0, protected={"0.attn"})
    with pytest.raises(ContractError, match="pass more ticks"):
        solve(table_of({"0.attn": 1.0, "0.mlp": 1.0, "1.attn": 1.0, "1.mlp": 1.0},
                       {"0.attn": 1.0, "0.mlp": 1.0, "1.attn": 1.0, "1.mlp": 1.0}, {}, 0.0),
              3.5, ticks=2, protected={"0.attn", "1.attn", "1.mlp"})  # fmt: skip


@pytest.mark.parametrize("budget", [0.0, -1.0, float("nan"), float("inf")])
def test_budget_must_be_a_time(budget: float, random_table: MakeTable) -> None:
    with pytest.raises(InputError, match="not a finite time above 0"):
        solve(random_table(np.random.default_rng(0), 2), budget)


def test_bad_options_are_refused(random_table: MakeTable) -> None:
    table = random_table(np.random.default_rng(0), 2)
    with pytest.raises(InputError, match="ticks 0"):
        solve(table, 5.0, ticks=0)
    with pytest.raises(InputError, match="max_changes -1"):
        solve(table, 5.0, max_changes=-1)
    with pytest.raises(InputError, match=r"'7\.attn' is not in this model"):
        solve(table, 5.0, protected={"7.attn"})


def test_lagrangian_bound_is_below_the_optimum(random_table: MakeTable, brute: Brute) -> None:
    met = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        table = random_table(rng, int(rng.integers(1, 6)), least=-5 if seed % 3 == 0 else 0)
        budget = draw_budget(rng, table)
        optimum = 0.0 if table.total_us <= budget else brute(table, budget)
        bound = lagrangian_bound(table, budget)
        assert bound <= optimum + 1e-9
        met += bound >= optimum - 1e-9
    assert met > 20  # where the optimum lies on the convex hull


def test_lagrangian_bound_is_the_maximum_of_the_dual(
    random_table: MakeTable, subsets: Callable[[CostTable], list[frozenset[str]]]
) -> None:
    for seed in range(20):
        rng = np.random.default_rng(seed)
        table = random_table(rng, 3)
        budget = draw_budget(rng, table)
        costs = np.array([table.cost_of(dropped) for dropped in subsets(table)])
        over = np.array([table.predict_us(dropped) - budget for dropped in subsets(table)])
        prices = np.linspace(0, 40, 4001)[:, None]
        dual = (costs + prices * over).min(axis=1).max()  # a grid of prices: just below the true maximum
        if table.total_us > budget:
            assert dual - 1e-9 <= lagrangian_bound(table, budget) <= dual + 0.01 * np.abs(over).max()


def test_plan_of_a_post_norm_model_carries_norms(random_table: MakeTable) -> None:
    table = random_table(np.random.default_rng(3), 4, post_norm=True)
    plan = solve(table, table.fixed_us + 3)
    assert set(plan.norms) == set(plan.dropped)
    whole = {f"{block}.{kind}" for block in plan.dropped_blocks for kind in ("attn", "mlp")}
    assert {name for name, norm in plan.norms.items() if norm == "lose"} == whole
