"""A model as other programs read it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from chinchilla_lm.console import Console
from chinchilla_lm.errors import InputError
from chinchilla_lm.export.hf import export_hf, is_of_an_export, remaining_blocks
from chinchilla_lm.files import read_json
from chinchilla_lm.models.checkpoint import Checkpoint, load
from chinchilla_lm.models.source import locate
from chinchilla_lm.pipeline.held import certificate_in, how_to_certify
from chinchilla_lm.results import ExportResult
from chinchilla_lm.runtime.engine.packed import is_packed

FORMATS = ("hf",)


def export(model: str, to: str, folder: Path, console: Console, *, force: bool = False) -> ExportResult:
    """Write the portable model and return what was written as plain values.

    to: the format. force: replace an earlier export that is in the folder. Raises InputError for an unknown format, for
    a packed model, and for a folder that is not empty: without `force` always, with it where the folder holds the model
    itself or anything that an export does not write.
    """
    if to not in FORMATS:
        raise InputError(f"format {to!r} is not one of {', '.join(FORMATS)}; pass --to {FORMATS[0]}")
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file, not a folder; pass another -o")
    if folder.exists() and any(folder.iterdir()):
        if not force:
            raise InputError(f"{folder} is not empty; pass --force to replace the model in it, or another -o")
        _refuse_to_replace(folder, model)
    return _export(model, folder, console)


def _refuse_to_replace(folder: Path, model: str) -> None:
    if locate(model).folder.resolve() == folder.resolve():
        raise InputError(f"{folder} is MODEL itself; pass another -o")
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if not path.is_dir() and not is_of_an_export(folder, name):
            raise InputError(f"{folder} holds {name}, which no export writes: not ours to replace; pass another -o")


def _export(model: str, folder: Path, console: Console) -> ExportResult:
    if is_packed(model):
        raise InputError(f"{model} is packed, its weights rounded for our engine; export the model that it came from")
    checkpoint = load(model)
    if checkpoint.legal_tags:
        console.warn(
            "tags are judged here as decoded to the most probable legal BIO sequence; "
            "programs that take the best tag of each word find up to a point of F1 less"
        )
    held = certificate_in(checkpoint.source, console)
    export_hf(checkpoint, folder)
    files = {path.name: path.stat().st_size for path in sorted(folder.rglob("*")) if path.is_file()}
    console.table(["file", "bytes"], list(files.items()), f"written to {folder}")
    if held is not None:
        console.show(
            f"no certificate: that of {model} is of its own files, not of these; one of their own: "
            f"{how_to_certify(str(folder), held.original.name, checkpoint.model.config.head.kind)}"
        )
    absent, silent = _what_became(checkpoint)
    if absent:
        console.show(f"blocks left out: {_listed(absent)}; those behind them moved up")
    if silent:
        console.show(f"links that add nothing, as zero weights: {_listed(silent)}")
    names = read_json(folder / "config.json", "config").get("architectures") or ["AutoModel"]
    how = f'{names[0]}.from_pretrained("{folder}")'
    console.show(f"load it with: from transformers import {names[0]}; model = {how}")
    return {
        "format": "hf",
        "output": str(folder),
        "files": files,
        "bytes": sum(files.values()),
        "absent_blocks": absent,
        "zeroed_links": silent,
        "load": how,
    }


def _what_became(checkpoint: Checkpoint) -> tuple[list[int], list[str]]:
    """Blocks that are absent from the export, and dropped links that stand in it with zero weights."""
    model = checkpoint.model
    left = set(remaining_blocks(model))
    absent = [block for block in range(model.config.num_blocks) if block not in left]
    silent = [name for name in model.names if name in model.dropped and int(name.split(".")[0]) in left]
    return absent, silent


def _listed(values: list[Any]) -> str:
    return ", ".join(map(str, values))
