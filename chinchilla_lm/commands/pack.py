"""`chinchilla pack`: a model as a program of packed weights, which the native engine maps and runs."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from chinchilla_lm.console import Console
from chinchilla_lm.errors import InputError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The model, the format, and where to write."""
    from chinchilla_lm.pack.formats import FORMATS

    parser.add_argument(
        "model",
        metavar="MODEL",
        help="a folder, a hub id (NAME or NAME@REVISION), a GGUF file, or a run's model folder",
    )
    parser.add_argument("--format", required=True, metavar="F", help=f"one of {', '.join(FORMATS)}")
    parser.add_argument("--task", metavar="T", help="the head to pack, where the model's config names none")
    parser.add_argument("-o", "--output", required=True, metavar="OUT", help="folder to write to")


def run(args: argparse.Namespace, console: Console) -> int:
    """Pack and say what was written. Raises InputError for an unknown format, model or head, and for a folder that is
    not empty."""
    folder = Path(args.output)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} is there and not an empty folder; pass another -o")
    console.result(pack(args.model, args.format, folder, console, args.task))
    return 0


def pack(model: str, name: str, folder: Path, console: Console, task: str | None = None) -> dict[str, Any]:
    """Write the packed model and return what was written as plain values."""
    from chinchilla_lm.pack.formats import format_named
    from chinchilla_lm.pipeline.held import certificate_of, how_to_certify
    from chinchilla_lm.runtime.engine.packed import read_packed
    from chinchilla_lm.runtime.packing import write_packed

    form = format_named(name)
    begun = time.perf_counter()
    sizes = write_packed(model, form.name, folder, task)
    seconds = time.perf_counter() - begun
    console.table(
        ["matrix", "bytes", "bits a weight"],
        [(what, size, f"{8 * size / weights:.2f}") for what, size, weights in sizes],
        f"{form.name} ({form.source}), written to {folder} in {seconds:.1f} s",
    )
    held, kind = certificate_of(model, console), read_packed(folder)[1].kind
    what = "nobody has judged this program" if held is None else f"that of {model} is of its own weights, not of these"
    original = "ORIGINAL" if held is None else held.original.name
    console.show(f"no certificate: {what}; one of its own: {how_to_certify(str(folder), original, kind)}")
    console.show(f'load it with: import chinchilla_lm as ch; session = ch.load("{folder}")')
    return {
        "format": form.name,
        "output": str(folder),
        "bytes": sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()),
        "seconds": seconds,
        "certificate": None,
    }
