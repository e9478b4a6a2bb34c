"""Selections that look at each link alone, or at none: what papers started from. `cosine` and `one-shot` are for
comparison only; `top` is hard to beat where recovery follows, and runs in the race."""

from collections.abc import Collection, Iterable

from chinchilla_lm.errors import InputError
from chinchilla_lm.plan import CostTable, Plan, pair
from chinchilla_lm.search.budget import check_budget, fits, make_plan, too_slow


def cosine(table: CostTable, budget_us: float, *, protected: Collection[str] = frozenset()) -> Plan:
    """Whole blocks of smallest cosine distance between input and output, until the budget is met.

    ShortGPT, arXiv 2403.03853. It collapses on modern models: perplexity 5527 against 14 for measured removal at the
    same depth (Llama-3-8B, EvoPress, arXiv 2410.14649).

    Raises:
        InputError: bad budget or link names, or a block whose cosine was not measured.
        ContractError: the budget cannot be met by whole blocks free of protected links.
    """
    check_budget(table, budget_us, protected)
    distances = {block: _cosine_of(table, block) for block in range(table.num_blocks)}
    free = [block for block in distances if not any(name in protected for name in pair(block))]
    order = sorted(free, key=lambda block: (distances[block], block))
    dropped = _drop_until_it_fits(table, budget_us, (pair(block) for block in order))
    return make_plan(table, dropped, "cosine", budget_us, {"protected": sorted(protected)})


def one_shot(table: CostTable, budget_us: float, *, protected: Collection[str] = frozenset()) -> Plan:
    """Links in ascending order of cost per microsecond, measured once each, until the budget is met.

    Shortened LLaMA, arXiv 2402.02834, with single links and measured time in place of whole blocks.

    Raises:
        InputError: bad budget or link names.
        ContractError: the budget cannot be met.
    """
    check_budget(table, budget_us, protected)
    # A link that saves no time never helps to meet the budget.
    free = [name for name in table.links if name not in protected and table.time(name) > 0]
    order = sorted(free, key=lambda name: table.cost(name) / table.time(name))
    dropped = _drop_until_it_fits(table, budget_us, ((name,) for name in order))
    return make_plan(table, dropped, "one-shot", budget_us, {"protected": sorted(protected)})


def top(table: CostTable, budget_us: float, *, protected: Collection[str] = frozenset()) -> Plan:
    """Links from the last one downwards, until the budget is met; no cost is looked at. Time that is left over then
    goes to dropped links that fit into it, the lowest first.

    Poor Man's BERT (Sajjad et al., arXiv 2004.03844): on every GLUE task, dropping the top layers beat other choices
    once the model was trained again. Costs before recovery do not see what recovery can restore.

    Raises:
        InputError: bad budget or link names.
        ContractError: the budget cannot be met.
    """
    check_budget(table, budget_us, protected)
    free = [name for name in reversed(table.links) if name not in protected and table.time(name) > 0]
    dropped = _drop_until_it_fits(table, budget_us, ((name,) for name in free))
    for name in table.links:
        if name in dropped and fits(table, dropped - {name}, budget_us):
            dropped -= {name}
    return make_plan(table, dropped, "top", budget_us, {"protected": sorted(protected)})


def _cosine_of(table: CostTable, block: int) -> float:
    entry = table.block(block)
    if entry is None or entry.cosine is None:
        raise InputError(f"block {block} has no cosine in the cost table, as cosine needs; score whole blocks too")
    return entry.cosine


def _drop_until_it_fits(table: CostTable, budget_us: float, order: Iterable[tuple[str, ...]]) -> frozenset[str]:
    dropped: frozenset[str] = frozenset()
    groups = iter(order)
    while not fits(table, dropped, budget_us):
        group = next(groups, None)
        if group is None:
            least_us = table.predict_us(dropped)
            raise too_slow(table, least_us, budget_us, " by whole blocks without protected links")
        dropped = dropped.union(group)
    return dropped
