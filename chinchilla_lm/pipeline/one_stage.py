"""The stages of the main job, each by itself, in the run folder that a recipe names.

What is left out of the recipe stands in the folder's recipe.yaml, from an earlier stage.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from chinchilla_lm.console import Console
from chinchilla_lm.pipeline.joint import check_formats
from chinchilla_lm.pipeline.stages import Stages
from chinchilla_lm.plan import CostTable, FormatTable, Plan
from chinchilla_lm.recipe import Recipe, read_yaml, require_target
from chinchilla_lm.results import RecoverResult, ScoreResult, SearchResult, ShortenResult


def earlier(output: str | Path | None) -> Mapping[str, Any]:
    """The recipe in a run folder; none where there is no such folder yet."""
    path = None if output is None else Path(output) / "recipe.yaml"
    return read_yaml(path) if path is not None and path.exists() else {}


def score(recipe: Recipe, console: Console) -> ScoreResult:
    """What each removal costs and saves, measured → costs.json, and with formats what each of these does →
    formats.json; shown as tables."""
    check_formats(recipe, target=False)
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
    if recipe.formats is not None:
        _show_formats(stages.score_formats(), console)
    return {"costs": table.to_dict(), "file": str(stages.folder.file("costs.json"))}


def _show_formats(table: FormatTable, console: Console) -> None:
    rows = [
        [one.what, one.format, f"{one.cost:.5f}" + ("" if one.measured else " *"), f"{one.time_us:.0f}", one.bytes]
        for one in table.entries
    ]
    console.table(["kept", "format", table.unit, "takes µs", "bytes"], rows, "cost of each format that pays")
    console.show("* by the ratio of squared errors of the weights, from a coarser format's")


def search(recipe: Recipe, console: Console) -> SearchResult:
    """costs.json and a target → plan.json, under the contract. Raises InputError where there is no target, or were no
    costs; ContractError where it cannot be reached. With formats, of formats.json too."""
    check_formats(recipe)
    if recipe.formats is None:
        require_target(recipe)
    stages = Stages(recipe, console)
    costs = CostTable.load(stages.folder.require("costs.json", "score"))
    if recipe.formats is None:
        plan = stages.search(costs)
    else:
        plan = stages.search_mix(costs, FormatTable.load(stages.folder.require("formats.json", "score")))
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
