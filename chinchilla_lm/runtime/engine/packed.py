"""A packed model: a folder with a program in the place of the weights, and all that belongs to the model beside it.

config.json  tokenizer files  chinchilla.json (if the model has one)  program.bin
"""

from __future__ import annotations

from pathlib import Path

from chinchilla_lm.models.meta import META, read_meta
from chinchilla_lm.runtime.card import Card
from chinchilla_lm.runtime.engine.program import Program, read_program

PROGRAM = "program.bin"


def is_packed(path: str | Path) -> bool:
    """Whether it is a folder with a program."""
    return (Path(path) / PROGRAM).is_file()


def read_packed(path: str | Path) -> tuple[Program, Card]:
    """The program and what it is. Raises InputError for a damaged or incomplete folder."""
    folder = Path(path)
    program = read_program(folder / PROGRAM)
    return program, Card.of_packed(folder, program.header, read_meta(folder / META, "run chinchilla pack again"))
