"""Plans and cost tables: what becomes of every link, and what each change costs. Standard library only."""

from chinchilla_lm.plan.choices import Action, Choice, Plan
from chinchilla_lm.plan.costs import CostEntry, CostTable
from chinchilla_lm.plan.formats import HEAD, FormatEntry, FormatTable, Whole
from chinchilla_lm.plan.links import Kind, Link, Norm, chain, pair

__all__ = [
    "HEAD",
    "Action",
    "Choice",
    "CostEntry",
    "CostTable",
    "FormatEntry",
    "FormatTable",
    "Kind",
    "Link",
    "Norm",
    "Plan",
    "Whole",
    "chain",
    "pair",
]
