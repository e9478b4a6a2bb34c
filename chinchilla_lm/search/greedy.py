"""Measured greedy: drop the link that costs least per microsecond now, measure again, repeat.

With S the links dropped so far, the next to go is

    argmin over live j of  [cost(S + j) - cost(S)] / time(j) ,

the true cost of dropping them together, so that the search sees how links stand in for each other. (BlockPruner, arXiv
2406.10594, does this with perplexity and without time; SLEB, arXiv 2402.09025, with whole blocks.) Each step measures
every live link: 840 measurements for 16 of 60.

The lazy form, after Minoux's accelerated greedy (1978), starts from the table's ratios, and at each step re-measures
links in the order of their last known ratio. Minoux stops when the best fresh ratio is below every stale one, which is
exact when ratios only grow; ours grow together as the model weakens, so that rule would measure nearly all of them,
and they can fall too. Instead a step ends when the best has stood against the next `candidates` links, re-measured.
For additive costs the first is the best and the result is that of the exhaustive form.
"""

from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass

from chinchilla_lm.plan import CostTable, Plan
from chinchilla_lm.plan.strict import check_whole
from chinchilla_lm.search.budget import check_budget, fits, make_plan
from chinchilla_lm.search.memo import Measure, Memo


@dataclass(frozen=True)
class Step:
    """One link dropped: the true cost and predicted time after it, and measurements made so far."""

    link: str
    cost: float
    predicted_us: float
    measures: int


def greedy(
    table: CostTable,
    budget_us: float,
    measure: Measure,
    *,
    candidates: int | None = 8,
    protected: Collection[str] = frozenset(),
    on_step: Callable[[Step], None] | None = None,
) -> Plan:
    """The plan that measured greedy reaches; `origin["trace"]` has its steps, `origin["true_cost"]` the measured cost.

    Args:
        budget_us: microseconds per forward pass for the whole model.
        measure: true cost of dropping a set of links together.
        candidates: re-measured links that the best of a step must withstand; None re-measures all (exhaustive).
        protected: links that must be kept.
        on_step: called after each dropped link.

    Raises:
        InputError: bad budget, candidates or link names.
        ContractError: the budget cannot be met, or a measured cost is not finite.
    """
    if candidates is not None:
        check_whole(candidates, "candidates", 1)
    check_budget(table, budget_us, protected)
    memo = Memo.of(measure)
    before = memo.calls
    dropped: frozenset[str] = frozenset()
    # A link that saves no time never helps to meet the budget, however little it costs.
    ratios = {name: table.cost(name) / table.time(name) for name in table.links if table.time(name) > 0}
    ratios = {name: ratio for name, ratio in ratios.items() if name not in protected}
    trace: list[Step] = []
    while not fits(table, dropped, budget_us):
        best = _next_link(table, memo, dropped, ratios, candidates)
        del ratios[best]
        dropped |= {best}
        trace.append(Step(best, memo(dropped), table.predict_us(dropped), memo.calls - before))
        if on_step is not None:
            on_step(trace[-1])
    origin = {
        "true_cost": memo(dropped),
        "candidates": candidates,
        "protected": sorted(protected),
        "measures": memo.calls - before,
        "trace": [asdict(step) for step in trace],
    }
    return make_plan(table, dropped, "greedy", budget_us, origin)


def _next_link(
    table: CostTable, memo: Memo, dropped: frozenset[str], ratios: dict[str, float], candidates: int | None
) -> str:
    """The link to drop next. Brings the ratios of those it measures up to date; equal ratios go by chain order."""
    position = {name: index for index, name in enumerate(table.links)}
    here = memo(dropped)
    best, withstood = "", 0
    for name in sorted(ratios, key=lambda name: (ratios[name], position[name])):
        ratios[name] = (memo(dropped | {name}) - here) / table.time(name)
        if not best or (ratios[name], position[name]) < (ratios[best], position[best]):
            best, withstood = name, 0
        else:
            withstood += 1
        if withstood == candidates:
            break
    return best
