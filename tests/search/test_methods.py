from collections.abc import Callable

import numpy as np
import pytest

from chinchilla_lm.errors import ContractError, InputError
from chinchilla_lm.plan import CostTable, Plan
from chinchilla_lm.search import MEASURED, METHODS
from chinchilla_lm.search.baselines import cosine, one_shot, top

MakeTable = Callable[..., CostTable]
Measure = Callable[[frozenset[str]], float]
Interacting = Callable[..., tuple[CostTable, Measure]]


def with_cosines(table: CostTable, cosines: dict[int, float | None]) -> CostTable:
    data = table.to_dict()
    for row in data["entries"]:
        if len(row["links"]) == 2:
            row["cosine"] = cosines[int(row["links"][0].split(".")[0])]
    return CostTable.from_dict(data)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_meets_the_budget_and_says_how(name: str, interacting: Interacting) -> None:
    table, measure = interacting(0, 6)
    function, paper = METHODS[name]
    arguments = (measure,) if name in MEASURED else ()
    assert "arXiv" in paper
    for share in (0.2, 0.5, 1.0):
        budget = table.fixed_us + share * (table.total_us - table.fixed_us)
        plan = function(table, budget, *arguments, protected={"0.attn"})
        assert plan.method == name
        assert plan.origin["budget_us"] == budget
        assert plan.origin["predicted_us"] == table.predict_us(plan.dropped) <= budget
        assert plan.origin["cost"] == table.cost_of(plan.dropped)
        assert (plan.dropped == ()) == (share == 1.0)
        assert "0.attn" in plan.kept
        assert Plan.from_dict(plan.to_dict()) == plan
    with pytest.raises(ContractError, match="least time to be had"):
        function(table, table.fixed_us, *arguments, protected={"0.attn"})


def test_cosine_drops_whole_blocks_of_smallest_distance(interacting: Interacting) -> None:
    table = with_cosines(interacting(0, 4)[0], {0: 0.9, 1: 0.2, 2: 0.1, 3: 0.3})
    two_blocks_us = sum(table.time(name) for name in ("1.attn", "1.mlp", "2.attn", "2.mlp"))
    plan = cosine(table, table.total_us - two_blocks_us + 1e-6)
    assert plan.dropped_blocks == (1, 2)
    assert len(plan.dropped) == 4
    one_block_us = table.time("1.attn") + table.time("1.mlp")
    assert cosine(table, table.total_us - one_block_us + 1e-6, protected={"2.mlp"}).dropped_blocks == (1,)


def test_cosine_needs_blocks_and_their_cosines(interacting: Interacting, table_of: MakeTable) -> None:
    table = with_cosines(interacting(0, 3)[0], {0: 0.9, 1: None, 2: 0.1})
    with pytest.raises(InputError, match="block 1 has no cosine"):
        cosine(table, table.total_us / 2)
    bare = table_of({"0.attn": 1.0, "0.mlp": 1.0}, {"0.attn": 1.0, "0.mlp": 1.0}, {}, 1.0)
    with pytest.raises(InputError, match="block 0 has no cosine"):
        cosine(bare, 2.0)


def test_cosine_cannot_split_a_block(interacting: Interacting) -> None:
    table, _ = interacting(0, 2)
    budget = table.fixed_us + table.time("0.attn") + table.time("1.attn")
    with pytest.raises(ContractError, match="by whole blocks without protected links"):
        cosine(table, budget, protected={"0.attn", "1.attn"})


def test_one_shot_goes_by_cost_per_microsecond(random_table: MakeTable) -> None:
    for seed in range(20):
        table = random_table(np.random.default_rng(seed), 5)
        budget = max(1.0, table.fixed_us + 0.5 * (table.total_us - table.fixed_us))
        dropped = one_shot(table, budget).dropped
        ratios = {name: table.cost(name) / table.time(name) for name in table.links if table.time(name) > 0}
        assert all(ratios[gone] <= min(r for n, r in ratios.items() if n not in dropped) for gone in dropped)
        last = max(dropped, key=lambda name: (ratios[name], table.links.index(name)))
        assert table.predict_us([name for name in dropped if name != last]) > budget


def test_top_drops_from_the_last_link_downwards_and_spares_the_protected(interacting: Interacting) -> None:
    table, _ = interacting(1, 3)
    budget = table.fixed_us + sum(table.time(name) for name in ("0.attn", "0.mlp", "2.mlp"))
    plan = top(table, budget, protected={"2.mlp"})
    assert "2.mlp" in plan.kept
    free = [name for name in table.links if name != "2.mlp"]
    assert plan.dropped == tuple(free[len(free) - len(plan.dropped) :])
    assert table.predict_us(plan.dropped) <= budget < table.predict_us(plan.dropped[1:])


def test_top_gives_time_that_is_left_over_to_the_lowest_links_that_fit(interacting: Interacting) -> None:
    data = interacting(1, 3)[0].to_dict()
    for row in data["entries"]:
        row["time_us"] = sum(2.0 if name.endswith("attn") else 5.0 for name in row["links"])
    data["total_us"] = data["fixed_us"] + 21.0
    table = CostTable.from_dict(data)
    assert top(table, table.fixed_us + 11).kept == ("0.attn", "0.mlp", "1.attn", "2.attn")
    assert top(table, table.fixed_us + 10).kept == ("0.attn", "0.mlp", "1.attn")
