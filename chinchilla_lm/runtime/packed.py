"""A packed model: a folder with a program in the place of the weights, and all that belongs to the model beside it.

config.json  tokenizer files  chinchilla.json (if the model has one)  program.bin
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from chinchilla_lm.errors import InputError
from chinchilla_lm.files import read_json
from chinchilla_lm.runtime.card import Card
from chinchilla_lm.runtime.program import Program, read_program

PROGRAM = "program.bin"
META = "chinchilla.json"
META_VERSION = 1  # models/checkpoint.py writes it


def is_packed(path: str | Path) -> bool:
    """Whether it is a folder with a program."""
    return (Path(path) / PROGRAM).is_file()


def read_packed(path: str | Path) -> tuple[Program, Card]:
    """The program and what it is. Raises InputError for a damaged or incomplete folder."""
    folder = Path(path)
    program = read_program(folder / PROGRAM)
    return program, Card.of_packed(folder, program.header, _read_meta(folder / META))


def _read_meta(path: Path) -> dict[str, Any]:
    """What is asked of chinchilla.json, checked as `models.checkpoint` does, which needs torch."""
    if not path.is_file():
        return {}
    meta: Any = read_json(path, "model description")
    if not isinstance(meta, dict):
        raise InputError(f"{path} is not a dictionary; run chinchilla pack again")
    if meta.get("version") != META_VERSION:
        raise InputError(
            f"{path} has version {meta.get('version')!r:.60}, not {META_VERSION}; "
            "update chinchilla-lm or run chinchilla pack again"
        )
    if meta.get("tags") not in (None, "BIO"):
        raise InputError(f"{path}: tags {meta['tags']!r:.60} is not BIO; run chinchilla pack again")
    window = meta.get("window", {})
    tokens = window.get("max_tokens") if isinstance(window, dict) else None
    if not isinstance(window, dict) or (tokens is not None and (type(tokens) is not int or tokens < 1)):
        raise InputError(f"{path}: window {window!r:.60} holds no max_tokens from 1; run chinchilla pack again")
    if window.get("context") not in (None, "sentence", "document"):
        raise InputError(
            f"{path}: context {window['context']!r:.60} is not sentence or document; run chinchilla pack again"
        )
    return meta
