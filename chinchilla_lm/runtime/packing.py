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
from chinchilla_lm.pack.formats import format_of
from chinchilla_lm.pack.quantized import Quantized
from chinchilla_lm.runtime.card import Card
from chinchilla_lm.runtime.engine.compile import draft
from chinchilla_lm.runtime.engine.demand import screen_bytes
from chinchilla_lm.runtime.engine.native import NativeModel
from chinchilla_lm.runtime.engine.packed import PROGRAM, is_packed
from chinchilla_lm.runtime.engine.program import Draft, Header, cached_in, file_bytes, read_program, write_program
from chinchilla_lm.runtime.engine.screening import check_screened, moments, with_screen

Size = tuple[str, int, int]


def refuse_packed(model: str | Path) -> None:
    """Raises InputError for a model that is packed already."""
    if is_packed(model):
        raise InputError(f"{model} is packed already, and packing twice loses twice; pack the model that it came from")


def write_packed(
    model: str | Path, form: str, folder: Path, task: str | None = None, cache: str = "auto", screen: bool = False
) -> list[Size]:
    """Pack a model into a folder, wholly or not at all, each weight rounded by itself; (what, bytes, weights) of its
    parts. cache: of keys and values; screen: with one for the decoder (`screening`).

    Raises InputError for a model that cannot be read, has no trained head or no use for a screen, or is packed already.
    """
    return write_checkpoint(trained(model, task), form, folder, cache, screen=screen)


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


def check_screen(checkpoint: Checkpoint, form: str) -> None:
    """Raises InputError where the head would have no use for a screen in these formats, before anything is packed."""
    check_screened(draft(checkpoint.model, form).header)


def write_checkpoint(
    checkpoint: Checkpoint,
    form: str,
    folder: Path,
    cache: str = "auto",
    rounded: Mapping[str, Quantized] | None = None,
    screen: bool = False,
) -> list[Size]:
    """The same of a model in memory. rounded: its large matrices, where a solver has rounded them."""
    laid = _draft(checkpoint, form, cache, rounded)
    header = laid.header
    if screen:
        check_screened(header)
    with building(folder) as temporary:
        checkpoints.write_rest(checkpoint, temporary)
        save_plain(Card.of(checkpoint).tokenizer, temporary)
        write_program(laid, temporary / PROGRAM)
        if screen:
            header = _add_screen(temporary / PROGRAM)
    return _sizes(header)


def _add_screen(path: Path) -> Header:
    """Give the program of a file a screen, and its header."""
    program = read_program(path)
    screened = with_screen(program, moments(NativeModel(program)))
    grown = path.with_suffix(".screened")
    write_program(screened, grown)
    grown.replace(path)
    return screened.header


def packed_bytes(checkpoint: Checkpoint, form: str) -> tuple[int, dict[str, int]]:
    """What a model's program would have in these formats, before anything is packed: bytes of the file, and of each
    link, and the head, those of its large matrices."""
    laid = _draft(checkpoint, form)
    parts: dict[str, int] = {}
    for operation in laid.header["operations"]:
        places = [operation[place] for place in ("first", "second") if place in operation]
        if places:
            parts[operation["name"]] = sum(_bytes_of(part) for part in places)
    if "head" in checkpoint.model.matrices():
        parts["head"] = _bytes_of(laid.header["head"]["output"])
    return file_bytes(laid), parts


def _draft(
    checkpoint: Checkpoint, form: str, cache: str = "auto", rounded: Mapping[str, Quantized] | None = None
) -> Draft:
    laid = draft(checkpoint.model, form, rounded=rounded)
    header = laid.header | {"card": Card.of(checkpoint).to_dict()}
    return Draft(header if cache == "auto" else cached_in(header, cache), laid.parts)


def _bytes_of(part: dict[str, Any]) -> int:
    form = format_of(part)
    return form.bytes(part["outputs"], part["inputs"])


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
            size = _bytes_of(part)
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
    if header["head"].get("screen") is not None:  # bytes of the head, but no weights of the model
        totals["head"][0] += screen_bytes(header)
    return [(what, size, weights) for what, (size, weights) in totals.items()]
