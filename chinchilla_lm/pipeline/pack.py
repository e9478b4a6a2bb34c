"""A model as a program of packed weights, which the native engine maps and runs."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from chinchilla_lm.console import Console
from chinchilla_lm.errors import InputError
from chinchilla_lm.pack.formats import format_named
from chinchilla_lm.runtime.packing import write_packed


def pack(model: str, name: str, folder: Path, console: Console, task: str | None = None) -> dict[str, Any]:
    """Write the packed model and return what was written as plain values. name: of the format.

    Raises InputError for an unknown format, model or head, and for a folder that is not empty.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} is there and not an empty folder; pass another -o")
    form = format_named(name)
    begun = time.perf_counter()
    sizes = write_packed(model, form.name, folder, task)
    seconds = time.perf_counter() - begun
    console.table(
        ["matrix", "bytes", "bits a weight"],
        [(what, size, f"{8 * size / weights:.2f}") for what, size, weights in sizes],
        f"{form.name} ({form.source}), written to {folder} in {seconds:.1f} s",
    )
    console.show(f'load it with: import chinchilla_lm as ch; session = ch.load("{folder}")')
    return {
        "format": form.name,
        "output": str(folder),
        "bytes": sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()),
        "seconds": seconds,
    }
