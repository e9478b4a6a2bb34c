"""`chinchilla recover`: shortened/ learns from the original → model/."""

from __future__ import annotations

import argparse

from chinchilla_lm.commands.stage import add_arguments, recipe_of
from chinchilla_lm.console import Console

__all__ = ["add_arguments", "run"]


def run(args: argparse.Namespace, console: Console) -> int:
    """Recover the short model."""
    from chinchilla_lm.pipeline.one_stage import recover

    console.result(recover(recipe_of(args), console))
    return 0
