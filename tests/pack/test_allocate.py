"""The knapsack of formats against trying every choice."""

from __future__ import annotations

import random
from itertools import product

import pytest

from chinchilla_lm.pack.allocate import Option, allocate, worthwhile


def some_items(source: random.Random, step: int = 1) -> list[list[Option]]:
    """One to five items, of one to four options each, in any order; sizes on multiples of `step`."""
    return [
        [
            Option(str(index), step * source.randint(1, 30), source.choice([0.0, 0.5, source.random()]))
            for index in range(source.randint(1, 4))
        ]
        for _ in range(source.randint(1, 5))
    ]


def totals(chosen) -> tuple[int, float]:
    return sum(one.size for one in chosen), sum(one.cost for one in chosen)


def cheapest(items: list[list[Option]], budget: int) -> float | None:
    costs = [cost for size, cost in map(totals, product(*items)) if size <= budget]
    return min(costs) if costs else None


@pytest.mark.parametrize("seed", range(300))
def test_no_choice_within_the_budget_costs_less(seed: int):
    source = random.Random(seed)
    items = some_items(source, step=source.choice([1, 7, 64]))
    least = sum(min(one.size for one in options) for options in items)
    most = sum(max(one.size for one in options) for options in items)
    for budget in (least - 1, least, source.randint(least, most), most, 2 * most):
        chosen, wanted = allocate(items, budget), cheapest(items, budget)
        assert (chosen is None) == (wanted is None)
        if chosen is not None:
            size, cost = totals(chosen)
            assert size <= budget
            assert cost == pytest.approx(wanted)
            assert all(one in options for one, options in zip(chosen, items, strict=True))
            worth = [worthwhile(options) for options in items]
            assert totals(allocate(worth, budget) or ())[1] == pytest.approx(wanted), "nothing of use is left out"


@pytest.mark.parametrize("ticks", [5, 20, 1 << 18])
@pytest.mark.parametrize("seed", range(40))
def test_coarse_ticks_never_exceed_the_budget_and_more_room_is_never_worse(seed: int, ticks: int):
    items = some_items(random.Random(seed), step=3)
    costs: list[float] = []
    for budget in range(0, 400, 7):
        chosen = allocate(items, budget, ticks)
        if chosen is None:
            assert not costs, "more room, and no choice"
            assert cheapest(items, budget) is None, "the smallest always fit"
            continue
        size, cost = totals(chosen)
        assert size <= budget
        costs.append(cost)
    assert costs == sorted(costs, reverse=True)


def test_of_equal_costs_the_smaller_option_is_taken():
    chosen = allocate([[Option("large", 9, 0.0), Option("small", 4, 0.0), Option("tiny", 1, 1.0)]], 20)
    assert chosen == [Option("small", 4, 0.0)]


def test_what_another_option_beats_is_left_out():
    options = [Option("a", 4, 1.0), Option("b", 4, 0.5), Option("c", 5, 0.5), Option("d", 6, 0.1), Option("e", 7, 0.2)]
    assert [one.name for one in worthwhile(options)] == ["b", "d"]
