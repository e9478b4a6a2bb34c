"""What the four one-stage verbs share: the recipe of the run folder, with this command's flags on top."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from chinchilla_lm.commands.compress import FIELDS
from chinchilla_lm.console import Console
from chinchilla_lm.recipe import add_flags, from_args, read_yaml

if TYPE_CHECKING:
    from chinchilla_lm.pipeline.stages import Stages


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Every field of a recipe; what is left out stands in the run folder's recipe.yaml."""
    add_flags(parser, FIELDS)


def open_stages(args: argparse.Namespace, console: Console, *, target: bool = False) -> Stages:
    """The run folder's stages. With `target`, raises InputError unless a speed is asked for."""
    from chinchilla_lm.pipeline.stages import Stages
    from chinchilla_lm.recipe import require_target

    output = vars(args).get("output")
    earlier = Path(output) / "recipe.yaml" if output else None
    base = read_yaml(earlier) if earlier is not None and earlier.exists() else {}
    recipe = from_args(args, base)
    if target:
        require_target(recipe)
    return Stages(recipe, console)
