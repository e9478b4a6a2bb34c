"""What the four one-stage verbs share: the recipe of the run folder, with this command's flags on top."""

from __future__ import annotations

import argparse

from chinchilla_lm.commands.compress import FIELDS
from chinchilla_lm.recipe import Recipe, add_flags, from_args


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Every field of a recipe; what is left out stands in the run folder's recipe.yaml."""
    add_flags(parser, FIELDS)


def recipe_of(args: argparse.Namespace) -> Recipe:
    """Raises InputError in one line for the first thing that is wrong."""
    from chinchilla_lm.pipeline.one_stage import earlier

    return from_args(args, earlier(vars(args).get("output")))
