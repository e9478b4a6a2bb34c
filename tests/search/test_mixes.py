"""The cheapest mix of drops and formats against all mixes that there are, on small random tables."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest

from chinchilla_lm.errors import ContractError, InputError
from chinchilla_lm.plan import HEAD, FormatEntry, FormatTable, Plan, chain, pair
from chinchilla_lm.search.dp import TICKS
from chinchilla_lm.search.memo import Memo
from chinchilla_lm.search.mix_refine import key_of, mix_of, refine_mix
from chinchilla_lm.search.mixes import DROP, Budget, Found, Mixes, cheapest_mix, mix_with, solve_mix

FORMATS = ("fine", "middle", "coarse")
INSTANCES = 500


def instance(rng: np.random.Generator, random_table, num_blocks: int) -> Mixes:
    """Whole times, bytes and costs; not every link has every format."""
    drops = random_table(rng, num_blocks)
    names = [link.name for link in chain(num_blocks)] + ([HEAD] if rng.random() < 0.5 else [])
    entries = []
    for name in names:
        some = [form for form in FORMATS if rng.random() < 0.8] or ["middle"]
        for form in some:
            cost, time, size = (float(rng.integers(0, 12)), float(rng.integers(0, 9)), int(rng.integers(1, 40)))
            error = 10.0 ** -(3 - FORMATS.index(form))
            entries.append(FormatEntry(name, form, cost, cost, cost, time, size, error))
    fixed = float(rng.integers(1, 5))
    table = FormatTable(
        "kl", "nats/token", num_blocks, tuple(entries), (), 100.0, fixed, 3, dict(drops.shape), 4096, "m", "d"
    )
    return Mixes(drops, table)


def whole(mixes: Mixes) -> dict[str, str]:
    """Everything kept in its finest format."""
    return {name: mixes.formats.finest(name).format for name in mixes.names}


def all_mixes(mixes: Mixes) -> list[dict[str, str]]:
    choices = [mixes.choices(name) for name in mixes.names]
    return [dict(zip(mixes.names, some, strict=True)) for some in product(*choices)]


def least(mixes: Mixes, budget: Budget) -> float:
    """By brute force, from the tables alone: cost, time and bytes of every mix, summed block by block."""
    parts = [pair(block) for block in range(mixes.drops.num_blocks)] + ([(HEAD,)] if HEAD in mixes.names else [])
    sums = np.array([[0.0, mixes.formats.fixed_us, mixes.formats.fixed_bytes]])
    for names in parts:
        found = []
        for some in product(*(mixes.choices(name) for name in names)):
            mix = dict(zip(names, some, strict=True))
            kept = [mixes.formats.entry(*one) for one in mix.items() if one[1] != DROP]
            dropped = [name for name in names if mix[name] == DROP]
            cost = mixes.drops.cost_of(dropped) + sum(one.cost for one in kept)
            found.append([cost, sum(one.time_us for one in kept), sum(one.bytes for one in kept)])
        sums = (sums[:, None] + np.array(found)[None]).reshape(-1, 3)
    most = [math.inf if one is None else one for one in (budget.time_us, budget.bytes)]
    return float(min(sums[(sums[:, 1:] <= most).all(1), 0], default=math.inf))


def ticks_of(mixes: Mixes, budget: Budget) -> int:
    """As many as the room has whole microseconds, or bytes where they alone are limited, so that nothing is rounded."""
    if budget.time_us is not None:
        return max(1, int(budget.time_us - mixes.formats.fixed_us))
    return TICKS if budget.bytes is None else max(1, budget.bytes - mixes.formats.fixed_bytes)


def test_time_alone_is_exact(random_table) -> None:
    rng = np.random.default_rng(0)
    for _ in range(INSTANCES):
        mixes = instance(rng, random_table, int(rng.integers(1, 4)))
        budget = Budget(time_us=mixes.formats.fixed_us + float(rng.integers(1, 30)))
        best = least(mixes, budget)
        if math.isinf(best):
            with pytest.raises(ContractError, match="below the least time to be had"):
                solve_mix(mixes, budget, ticks=ticks_of(mixes, budget))
            continue
        found = solve_mix(mixes, budget, ticks=ticks_of(mixes, budget))
        assert found.cost == found.bound == pytest.approx(best)
        assert mixes.cost(found.mix) == pytest.approx(best)
        assert mixes.fits(found.mix, budget)


@pytest.mark.parametrize("timed", [True, False])
def test_bytes_too_are_kept_and_the_bound_is_one(random_table, timed: bool) -> None:
    rng = np.random.default_rng(1)
    exact = within = solved = 0
    for _ in range(INSTANCES):
        mixes = instance(rng, random_table, int(rng.integers(1, 4)))
        budget = Budget(
            mixes.formats.fixed_us + float(rng.integers(3, 30)) if timed else None,
            int(rng.integers(4, 40 * len(mixes.names) // 2)),
        )
        best = least(mixes, budget)
        if math.isinf(best):
            with pytest.raises(ContractError):
                solve_mix(mixes, budget, ticks=ticks_of(mixes, budget))
            continue
        found = solve_mix(mixes, budget, ticks=ticks_of(mixes, budget))
        assert mixes.fits(found.mix, budget)
        assert mixes.cost(found.mix) == pytest.approx(found.cost)
        assert found.bound <= best + 1e-9 <= found.cost + 2e-9
        solved += 1
        exact += found.cost <= best + 1e-9
        within += found.cost <= 1.5 * best + 1
    assert solved > INSTANCES // 2
    # Where both are limited: half a dozen links, the hull has few corners, a whole model has many.
    assert exact > 0.6 * solved if timed else exact == solved
    assert within > 0.85 * solved


def test_of_many_links_the_gap_is_small(random_table) -> None:
    rng = np.random.default_rng(2)
    for _ in range(10):
        mixes = instance(rng, random_table, 20)
        finest = whole(mixes)
        budget = Budget(0.6 * mixes.time(finest), int(0.6 * mixes.bytes(finest)))
        found = solve_mix(mixes, budget)
        assert mixes.fits(found.mix, budget)
        assert found.bound <= found.cost <= found.bound + 12 + 1e-9  # what the dearest format of one link costs


def test_no_budget_gives_the_cheapest_of_all(random_table) -> None:
    rng = np.random.default_rng(3)
    for _ in range(20):
        mixes = instance(rng, random_table, 2)
        assert solve_mix(mixes, Budget()).cost == least(mixes, Budget())


def test_formats_are_refilled_for_a_set_of_dropped_links(random_table) -> None:
    rng = np.random.default_rng(4)
    for _ in range(100):
        mixes = instance(rng, random_table, 2)
        dropped = frozenset(name for name in mixes.drops.links if rng.random() < 0.4)
        budget = Budget(mixes.formats.fixed_us + float(rng.integers(3, 30)))
        found = mix_with(mixes, dropped, budget, ticks=ticks_of(mixes, budget))
        fitting = [
            mixes.cost(mix)
            for mix in all_mixes(mixes)
            if {name for name in mix if mix[name] == DROP} == dropped and mixes.fits(mix, budget)
        ]
        assert (found is None) == (not fitting)
        assert found is None or (found.cost == pytest.approx(min(fitting)) and mixes.fits(found.mix, budget))


def test_at_most_so_many_links_are_turned_over(random_table) -> None:
    rng = np.random.default_rng(5)
    for _ in range(60):
        mixes = instance(rng, random_table, 2)
        mixed = all_mixes(mixes)
        start = mixed[int(rng.integers(len(mixed)))]
        costs = {(name, choice): float(rng.integers(-9, 9)) for name in mixes.names for choice in mixes.choices(name)}
        budget = Budget(mixes.formats.fixed_us + float(rng.integers(3, 30)))
        most = int(rng.integers(0, 3))
        found = cheapest_mix(mixes, mixes.blocks(costs, start), budget, ticks=ticks_of(mixes, budget), max_changes=most)

        def turned(mix: dict[str, str], start: dict[str, str] = start) -> int:
            return sum((mix[name] == DROP) != (start[name] == DROP) for name in mix)

        fitting = [
            sum(costs[one] for one in mix.items()) for mix in mixed if turned(mix) <= most and mixes.fits(mix, budget)
        ]
        assert (found is None) == (not fitting)
        assert found is None or (found.cost == min(fitting) and turned(found.mix) <= most)


def interacting(rng: np.random.Generator, mixes: Mixes) -> Memo:
    """½‖Σ u‖²: drops correlated, roundings small and apart, so that tables are right of formats and wrong of drops."""
    drop = {name: rng.normal(size=3) @ rng.normal(size=(3, 8)) for name in mixes.drops.links}

    def measure(key: frozenset[str]) -> float:
        mix = mix_of(key)
        total = sum((drop[name] for name in sorted(mix) if mix[name] == DROP), np.zeros(8))
        kept = sum(mixes.formats.entry(name, mix[name]).cost for name in sorted(mix) if mix[name] != DROP)
        return 0.5 * float(total @ total) + 0.05 * kept

    return Memo(measure)


def test_repair_is_never_worse_than_the_path_and_often_better(random_table) -> None:
    rng = np.random.default_rng(6)
    better = 0
    for seed in range(20):
        mixes = instance(rng, random_table, 4)
        budget = Budget(mixes.formats.fixed_us + 0.4 * (mixes.time(whole(mixes)) - mixes.formats.fixed_us) + 1)
        measure = interacting(rng, mixes)
        try:
            start = solve_mix(mixes, budget)
        except ContractError:
            continue
        plan = refine_mix(mixes, budget, measure, max_measures=60, seed=seed)
        mix = dict.fromkeys(plan.dropped, DROP) | plan.formats | ({HEAD: plan.head} if plan.head else {})
        assert measure(key_of(mix)) == plan.origin["true_cost"] <= measure(key_of(start.mix))
        assert mixes.fits(mix, budget)
        assert plan.origin["measures"] <= 60
        assert [rung["stage"] for rung in plan.origin["ladder"]] == ["dp", "trust-region", "polish"]
        assert Plan.from_dict(plan.to_dict()) == plan
        better += plan.origin["true_cost"] < measure(key_of(start.mix))
    assert better > 5


def test_the_same_seed_gives_the_same_plan(random_table) -> None:
    plans = []
    for _ in range(2):
        rng = np.random.default_rng(7)
        mixes = instance(rng, random_table, 4)
        budget = Budget(0.5 * mixes.time(whole(mixes)) + 3, mixes.bytes(whole(mixes)))
        plans.append(refine_mix(mixes, budget, interacting(rng, mixes), max_measures=40, seed=3))
    assert plans[0] == plans[1]


@pytest.mark.parametrize("budget", [(0.0, None), (math.inf, None), (math.nan, None), (None, 0), (5.0, -1)])
def test_a_budget_is_finite_and_above_0(budget) -> None:
    with pytest.raises(InputError, match="is not a finite number above 0"):
        Budget(*budget)


def test_tables_of_two_models_do_not_go_together(random_table) -> None:
    rng = np.random.default_rng(8)
    one, other = instance(rng, random_table, 2), instance(rng, random_table, 3)
    with pytest.raises(InputError, match="num_blocks of the cost table is 2, of the table of formats 3"):
        Mixes(one.drops, other.formats)


def test_too_little_says_what_there_is(random_table) -> None:
    mixes = instance(np.random.default_rng(9), random_table, 2)
    with pytest.raises(ContractError, match=r"budget 2e-06 MB is below the least to be had, .* pass more --memory"):
        solve_mix(mixes, Budget(bytes=2))
    assert isinstance(solve_mix(mixes, Budget(bytes=10_000)), Found)
