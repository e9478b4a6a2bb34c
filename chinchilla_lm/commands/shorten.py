"""`chinchilla shorten`: plan.json, searched or edited by hand → shortened/."""

from __future__ import annotations

import argparse

from chinchilla_lm.commands.stage import add_arguments, recipe_of
from chinchilla_lm.console import Console

__all__ = ["add_arguments", "run"]


def run(args: argparse.Namespace, console: Console) -> int:
    """Carry out the plan."""
    from chinchilla_lm.pipeline.one_stage import shorten

    console.result(shorten(recipe_of(args), console))
    return 0
