"""`chinchilla search`: costs.json and a target → plan.json, under the contract."""

from __future__ import annotations

import argparse

from chinchilla_lm.commands.stage import add_arguments, open_stages
from chinchilla_lm.console import Console

__all__ = ["add_arguments", "run"]


def run(args: argparse.Namespace, console: Console) -> int:
    """Search and print the plan."""
    from chinchilla_lm.plan import CostTable

    stages = open_stages(args, console, target=True)
    plan = stages.search(CostTable.load(stages.folder.require("costs.json", "score")))
    console.show(f"{len(plan.kept)} of {2 * plan.num_blocks} links kept; dropped: {' '.join(plan.dropped) or 'none'}")
    console.result({"plan": plan.to_dict(), "file": str(stages.folder.file("plan.json"))})
    return 0
