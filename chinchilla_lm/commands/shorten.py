"""`chinchilla shorten`: plan.json, searched or edited by hand → shortened/."""

from __future__ import annotations

import argparse

from chinchilla_lm.commands.stage import add_arguments, open_stages
from chinchilla_lm.console import Console

__all__ = ["add_arguments", "run"]


def run(args: argparse.Namespace, console: Console) -> int:
    """Carry out the plan."""
    from chinchilla_lm.plan import Plan

    stages = open_stages(args, console)
    short = stages.shorten(Plan.load(stages.folder.require("plan.json", "search")))
    parameters = sum(parameter.numel() for parameter in short.model.parameters())
    folder = stages.folder.file("shortened")
    console.show(f"{folder}: {len(short.model.link_names)} links, {parameters / 1e6:.1f} M parameters")
    console.result({"model": str(folder), "links": short.model.link_names, "parameters": parameters})
    return 0
