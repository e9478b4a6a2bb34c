"""What all searches share: the time budget they are given, and the plan they give back.

A budget is a promise about microseconds per forward pass at the cost table's shape. Searches compare it with the
*predicted* time; whoever assembles the model measures it and searches again with a tighter budget where they differ.
"""

import math
from collections.abc import Collection, Mapping
from typing import Any

from chinchilla_lm.errors import ContractError, InputError
from chinchilla_lm.plan import CostTable, Plan
from chinchilla_lm.plan.strict import check_known


def fits(table: CostTable, dropped: Collection[str], budget_us: float) -> bool:
    """Whether the model without these links is predicted to meet the budget.

    The full model also fits where its *measured* time does, whatever the prediction adds up to.
    """
    return table.predict_us(dropped) <= budget_us or (not dropped and table.total_us <= budget_us)


def check_budget(table: CostTable, budget_us: float, protected: Collection[str] = frozenset()) -> None:
    """Refuse a budget that cannot be met even by dropping every link that is not protected.

    Raises:
        InputError: the budget is not a finite number above 0, or a protected link is unknown.
        ContractError: the least time to be had is above the budget.
    """
    if not 0 < budget_us < float("inf"):
        raise InputError(f"budget {budget_us} us is not a finite time above 0; give microseconds per forward pass")
    check_known(protected, table.links)
    least_us = table.predict_us([name for name in table.links if name not in protected])
    if least_us > budget_us and not fits(table, (), budget_us):
        raise too_slow(table, least_us, budget_us)


def too_slow(table: CostTable, least_us: float, budget_us: float, why: str = "") -> ContractError:
    """The error that says that `least_us` is the least time to be had; `why` says what is in the way."""
    rule = f"the least time to be had{why}, {least_us:.6g} us"
    most = math.floor(100 * table.total_us / least_us) / 100  # rounded down, so that asking for it succeeds
    remedy = f"ask for a speed-up of at most {most:.2f}x"
    return ContractError(f"budget {budget_us:.6g} us is below {rule}; {remedy}")


def make_plan(
    table: CostTable, dropped: Collection[str], method: str, budget_us: float, origin: Mapping[str, Any]
) -> Plan:
    """The plan that drops these links, with what was asked and what is predicted in `origin` beside the given keys.

    `cost` is the additive cost from the table; what was truly measured is in the keys that the search adds.
    """
    common = {
        "metric": table.metric,
        "unit": table.unit,
        "budget_us": budget_us,
        "predicted_us": table.predict_us(dropped),
        "full_us": table.total_us,
        "cost": table.cost_of(dropped),
    }
    return Plan.from_dropped(table.num_blocks, dropped, table.norms, method, {**common, **origin})
