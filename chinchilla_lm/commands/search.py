"""`chinchilla search`: costs.json and a target → plan.json, under the contract."""

from __future__ import annotations

import argparse

from chinchilla_lm.commands.stage import add_arguments, recipe_of
from chinchilla_lm.console import Console

__all__ = ["add_arguments", "run"]


def run(args: argparse.Namespace, console: Console) -> int:
    """Search and print the plan."""
    from chinchilla_lm.pipeline.one_stage import search

    console.result(search(recipe_of(args), console))
    return 0
