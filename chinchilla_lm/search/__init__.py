"""Cost table + time budget → plan. Sees nothing but the plan room; tested against brute force.

Every method takes (table, budget_us) and the keyword `protected`, links that must be kept; those in MEASURED take
`measure` third, the true cost of dropping a set of links together.
"""

from collections.abc import Callable

from chinchilla_lm.plan import Plan
from chinchilla_lm.search import baselines, dp, greedy, refine
from chinchilla_lm.search.memo import Measure, Memo

METHODS: dict[str, tuple[Callable[..., Plan], str]] = {
    "refine": (
        refine.refine,
        "shortest path, trust region, swaps of EvoPress (Sieberling et al., arXiv 2410.14649)",
    ),
    "greedy": (greedy.greedy, "BlockPruner (Zhong et al., arXiv 2406.10594), per microsecond"),
    "dp": (dp.solve, "shortest path over ticks, as in SPDY (Frantar and Alistarh, arXiv 2201.13096), rounded up"),
    "one-shot": (baselines.one_shot, "Shortened LLaMA (Kim et al., arXiv 2402.02834), single links"),
    "top": (baselines.top, "Poor Man's BERT (Sajjad et al., arXiv 2004.03844), single links"),
    "cosine": (baselines.cosine, "ShortGPT (Men et al., arXiv 2403.03853)"),
}

MEASURED = frozenset({"refine", "greedy"})

__all__ = ["MEASURED", "METHODS", "Measure", "Memo"]
