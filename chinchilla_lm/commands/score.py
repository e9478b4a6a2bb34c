"""`chinchilla score`: what each removal costs and saves, measured → costs.json."""

from __future__ import annotations

import argparse

from chinchilla_lm.commands.stage import add_arguments, open_stages
from chinchilla_lm.console import Console

__all__ = ["add_arguments", "run"]


def run(args: argparse.Namespace, console: Console) -> int:
    """Score and print the table."""
    stages = open_stages(args, console)
    table = stages.score()
    rows = [
        [
            entry.what,
            f"{entry.cost:.4f}",
            f"[{entry.low:.4f}, {entry.high:.4f}]",
            f"{entry.time_us:.0f}",
            entry.norm or "",
        ]
        for entry in table.entries
    ]
    console.table(["dropped", table.unit, "95 % interval", "saves µs", "norm"], rows, "cost of each removal")
    shape = f"{table.shape['batch']} × {table.shape['tokens']} tokens"
    if new_tokens := table.shape.get("new_tokens"):
        shape += f" read and {new_tokens} written"
    console.show(f"whole model: {table.total_us:.0f} µs at {shape}, {table.fixed_us:.0f} µs of it no link")
    console.result({"costs": table.to_dict(), "file": str(stages.folder.file("costs.json"))})
    return 0
