"""A model as a program of packed weights, which the native engine maps and runs."""

from __future__ import annotations

import time
from pathlib import Path

from chinchilla_lm.console import Console
from chinchilla_lm.errors import InputError
from chinchilla_lm.pack.formats import format_named
from chinchilla_lm.pipeline.held import certificate_of, how_to_certify
from chinchilla_lm.results import PackResult
from chinchilla_lm.runtime.engine.packed import read_packed
from chinchilla_lm.runtime.packing import write_packed


def pack(
    model: str, name: str, folder: Path, console: Console, task: str | None = None, cache: str = "auto"
) -> PackResult:
    """Write the packed model and return what was written as plain values. name: of the format. cache: of keys
    and values, as `load` takes it.

    Raises InputError for an unknown format, model or head, and for a folder that is not empty.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} is there and not an empty folder; pass another -o")
    form = format_named(name)
    begun = time.perf_counter()
    sizes = write_packed(model, form.name, folder, task, cache)
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
