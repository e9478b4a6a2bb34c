"""`chinchilla recover`: shortened/ learns from the original → model/."""

from __future__ import annotations

import argparse

from chinchilla_lm.commands.stage import add_arguments, open_stages
from chinchilla_lm.console import Console

__all__ = ["add_arguments", "run"]


def run(args: argparse.Namespace, console: Console) -> int:
    """Recover the short model."""
    from chinchilla_lm.plan import Plan

    stages = open_stages(args, console)
    plan = Plan.load(stages.folder.require("plan.json", "search"))
    stages.recover(stages.shorten(plan), plan)
    folder = stages.folder.file("model")
    console.show(f"{folder}: recovered")
    console.result({"model": str(folder)})
    return 0
