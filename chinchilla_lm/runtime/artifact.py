"""Which files of a model folder decide how it answers, and what they were like at a certain time.

A certificate is about these files: the weights or the program, and all that stands between a text and its tokens, or
between outputs and labels. Any other file may come and go.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from chinchilla_lm.files import sha256_of, user_path
from chinchilla_lm.models.gguf_names import shards_of
from chinchilla_lm.models.meta import META
from chinchilla_lm.models.source import locate
from chinchilla_lm.models.tokenizer import GENERATION, TOKENIZER_FILES
from chinchilla_lm.models.weight_files import INDEX, SINGLE, weight_files
from chinchilla_lm.runtime.engine.packed import PROGRAM
from chinchilla_lm.runtime.engine.verified import identity

# How a model writes and chats, which no metric looks at.
_ASIDE = (GENERATION, "chat_template.jinja", "chat_template.json")
_BESIDE = ("config.json", META, *(name for name in TOKENIZER_FILES if name not in _ASIDE))


def deciding_files(folder: Path) -> tuple[str, ...]:
    """Their names, the program or the weights last. Raises InputError where there are neither. folder: or a GGUF file,
    whose shards are all."""
    if folder.is_file():
        return tuple(path.name for path in shards_of(folder))
    beside = tuple(name for name in _BESIDE if (folder / name).is_file())
    if (folder / PROGRAM).is_file():
        return (*beside, PROGRAM)
    weights = tuple(path.name for path in weight_files(folder))
    return (*beside, *(() if weights == (SINGLE,) else (INDEX,)), *weights)


def hashes(folder: Path) -> dict[str, str]:
    """The SHA-256 of each. Raises InputError where there is none, or one cannot be read."""
    return {name: sha256_of(_place(folder) / name) for name in deciding_files(folder)}


def _place(folder: Path) -> Path:
    return folder.parent if folder.is_file() else folder


def local_folder(model: str | Path) -> Path | None:
    """Where the files of a model lie that is a folder on this machine; None of a hub model and of a GGUF file."""
    path = user_path(model)
    if not path.is_dir():
        return None
    located = locate(path)
    return located.folder if located.gguf is None else None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A folder's deciding files at a certain time, by sizes and times: whether they are still the same costs nothing
    to ask."""

    folder: Path
    files: dict[str, dict[str, int]]

    @classmethod
    def of(cls, folder: Path) -> Snapshot:
        """As they are now. Raises InputError or OSError where there are none."""
        return cls(folder, {name: identity(os.stat(_place(folder) / name)) for name in deciding_files(folder)})
