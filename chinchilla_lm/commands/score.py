"""`chinchilla score`: what each removal costs and saves, measured → costs.json."""

from __future__ import annotations

import argparse

from chinchilla_lm.commands.stage import add_arguments, recipe_of
from chinchilla_lm.console import Console

__all__ = ["add_arguments", "run"]


def run(args: argparse.Namespace, console: Console) -> int:
    """Score and print the table."""
    from chinchilla_lm.pipeline.one_stage import score

    console.result(score(recipe_of(args), console))
    return 0
