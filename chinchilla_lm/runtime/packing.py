"""Writing a packed model: the program, and beside it all files of the model folder but its weights.

Its tokenizer is written out in full, so that it needs none of the rules by which transformers reads the folder's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from chinchilla_lm.errors import InputError
from chinchilla_lm.files import building
from chinchilla_lm.models import checkpoint as checkpoints
from chinchilla_lm.models.checkpoint import Checkpoint
from chinchilla_lm.models.tokenizer import save_plain
from chinchilla_lm.models.transformer import Transformer
from chinchilla_lm.pack.formats import FORMATS
from chinchilla_lm.pack.quantized import Quantized
from chinchilla_lm.runtime.card import Card
from chinchilla_lm.runtime.engine.compile import draft
from chinchilla_lm.runtime.engine.packed import PROGRAM, is_packed
from chinchilla_lm.runtime.engine.program import Draft, cached_in, write_program

Size = tuple[str, int, int]


def refuse_packed(model: str | Path) -> None:
    """Raises InputError for a model that is packed already."""
    if is_packed(model):
        raise InputError(f"{model} is packed already, and packing twice loses twice; pack the model that it came from")


def write_packed(
    model: str | Path, form: str, folder: Path, task: str | None = None, cache: str = "auto"
) -> list[Size]:
    """Pack a model into a folder, wholly or not at all, each weight rounded by itself; (what, bytes, weights) of its
    parts. cache: of keys and values.

    Raises InputError for a model that cannot be read, has no trained head, or is packed already.
    """
    return write_checkpoint(trained(model, task), form, folder, cache)


def trained(model: str | Path, task: str | None = None) -> Checkpoint:
    """A model that may be packed, in memory. Raises InputError as `write_packed` does."""
    refuse_packed(model)
    checkpoint = checkpoints.load(model, task=task)
    if checkpoint.fresh:
        raise InputError(f"{model} has no trained head for {task}; run chinchilla finetune first")
    return checkpoint


def shapes(model: Transformer) -> dict[str, tuple[int, int]]:
    """Outputs and inputs of each large matrix as a program has it: of gate and up each is filled up to whole panels."""
    header, found = draft(model, "bf16").header, {}
    parts = {f"{one['name']}.{place}": one.get(place) for one in header["operations"] for place in ("first", "second")}
    parts["head"] = header["head"]["output"]
    for name in model.matrices():
        part = parts[name]
        found[name] = (part["outputs"], part["inputs"])
    return found


def write_checkpoint(
    checkpoint: Checkpoint,
    form: str,
    folder: Path,
    cache: str = "auto",
    rounded: Mapping[str, Quantized] | None = None,
) -> list[Size]:
    """The same of a model in memory. rounded: its large matrices, where a solver has rounded them."""
    laid = draft(checkpoint.model, form, rounded=rounded)
    card = Card.of(checkpoint)
    header = laid.header | {"card": card.to_dict()}
    if cache != "auto":
        header = cached_in(header, cache)
    with building(folder) as temporary:
        checkpoints.write_rest(checkpoint, temporary)
        save_plain(card.tokenizer, temporary)
        write_program(Draft(header, laid.parts), temporary / PROGRAM)
    return _sizes(laid.header)


def _sizes(header: dict[str, Any]) -> list[Size]:
    totals: dict[str, list[int]] = {}

    def add(what: str, part: dict[str, Any] | None) -> None:
        if part is None:
            return
        if "rows" in part:
            weights = part["rows"] * part["size"]
            size = weights * (4 if part["format"] == "f32" else 2)
        else:
            weights = part["outputs"] * part["inputs"]
            form = next(one for one in FORMATS.values() if one.matches(part))
            size = form.bytes(part["outputs"], part["inputs"])
        total = totals.setdefault(what, [0, 0])
        total[0] += size
        total[1] += weights

    for name in ("tokens", "positions", "segments", "project"):
        add("embedding", header["embedding"][name])
    for operation in header["operations"]:
        for place in ("first", "second"):
            add(operation["kind"], operation.get(place))
    for name in ("dense", "output"):
        add("head", header["head"][name])
    return [(what, size, weights) for what, (size, weights) in totals.items()]
