"""The stages of the main job, each by itself, in the run folder that a recipe names.

What is left out of the recipe stands in the folder's recipe.yaml, from an earlier stage.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from chinchilla_lm.console import Console
from chinchilla_lm.pipeline.stages import Stages
from chinchilla_lm.plan import CostTable, Plan
from chinchilla_lm.recipe import Recipe, read_yaml, require_target
from chinchilla_lm.results import RecoverResult, ScoreResult, SearchResult, ShortenResult


def earlier(output: str | Path | None) -> Mapping[str, Any]:
    """The recipe in a run folder; none where there is no such folder yet."""
    path = None if output is None else Path(output) / "recipe.yaml"
    return read_yaml(path) if path is not None and path.exists() else {}


def score(recipe: Recipe, console: Console) -> ScoreResult:
    """What each removal costs and saves, measured → costs.json; shown as a table."""
    stages = Stages(recipe, console)
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
    return {"costs": table.to_dict(), "file": str(stages.folder.file("costs.json"))}


def search(recipe: Recipe, console: Console) -> SearchResult:
    """costs.json and a target → plan.json, under the contract. Raises InputError where there is no target, or were no
    costs; ContractError where it cannot be reached."""
    require_target(recipe)
    stages = Stages(recipe, console)
    plan = stages.search(CostTable.load(stages.folder.require("costs.json", "score")))
    console.show(f"{len(plan.kept)} of {2 * plan.num_blocks} links kept; dropped: {' '.join(plan.dropped) or 'none'}")
    return {"plan": plan.to_dict(), "file": str(stages.folder.file("plan.json"))}


def shorten(recipe: Recipe, console: Console) -> ShortenResult:
    """plan.json, searched or edited by hand → shortened/. Raises InputError where there is no plan."""
    stages = Stages(recipe, console)
    short = stages.shorten(Plan.load(stages.folder.require("plan.json", "search")))
    parameters = sum(parameter.numel() for parameter in short.model.parameters())
    folder = stages.folder.file("shortened")
    console.show(f"{folder}: {len(short.model.link_names)} links, {parameters / 1e6:.1f} M parameters")
    return {"model": str(folder), "links": short.model.link_names, "parameters": parameters}


def recover(recipe: Recipe, console: Console) -> RecoverResult:
    """shortened/ learns from the original → model/. Raises InputError where there is no plan."""
    stages = Stages(recipe, console)
    plan = Plan.load(stages.folder.require("plan.json", "search"))
    stages.recover(stages.shorten(plan), plan)
    folder = stages.folder.file("model")
    console.show(f"{folder}: recovered")
    return {"model": str(folder)}
