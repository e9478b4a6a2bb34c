"""The main verbs for Python: the fields of a recipe as keywords, the object of `--json` as the result."""

from __future__ import annotations

from typing import Any

from chinchilla_lm.console import Console
from chinchilla_lm.recipe import make_recipe


def compress(model: str, *, task: str, data: str, out: str, quiet: bool = False, **fields: Any) -> dict[str, Any]:
    """Shorten a model to a target speed and certify it; see `chinchilla compress --help` for the fields.

    Raises InputError for bad input, ContractError where the speed cannot be had.
    """
    from chinchilla_lm.pipeline.compress import compress as run

    return run(_recipe(model, task, data, out, fields), Console(quiet=quiet))


def finetune(model: str, *, task: str, data: str, out: str, quiet: bool = False, **fields: Any) -> dict[str, Any]:
    """Train a pretrained model for a task; see `chinchilla finetune --help` for the fields.

    Raises InputError for bad input.
    """
    from chinchilla_lm.pipeline.finetune import finetune as run

    return run(_recipe(model, task, data, out, fields), Console(quiet=quiet))


def _recipe(model: str, task: str, data: str, out: str, fields: dict[str, Any]) -> Any:
    return make_recipe({**fields, "model": model, "task": task, "data": data, "output": out})
