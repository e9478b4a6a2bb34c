"""The model in the forms that peers read: a stock Hugging Face folder, and a GGUF file for llama.cpp.

In the GGUF file token ids are all there is of the vocabulary, since ids are what peers are given.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

from chinchilla_lm.errors import InputError
from chinchilla_lm.export.gguf import draft
from chinchilla_lm.export.hf import export_hf
from chinchilla_lm.models.checkpoint import Checkpoint

NO_WORDS = {"tokenizer.ggml.model": "no_vocab"}


class Sources:
    """Makes each form when it is first asked for, below a folder."""

    def __init__(self, path: str, checkpoint: Checkpoint, below: Path, form: str | None = None) -> None:
        """form: of a model that is packed already."""
        self.path, self.checkpoint, self.below, self.form = path, checkpoint, below, form

    def of(self, kind: str) -> str:
        """`model`, `folder`, `ready` or `gguf`, as a path. Raises InputError where the model has no such form."""
        if kind == "model":
            return self.path
        return str(self.gguf if kind == "gguf" else self.folder)

    @cached_property
    def folder(self) -> Path:
        """As stock transformers loads it."""
        export_hf(self.checkpoint, self.below / "folder")
        return self.below / "folder"

    @cached_property
    def gguf(self) -> Path:
        """In float32."""
        path = self.below / "model.gguf"
        try:
            made = draft(self.checkpoint, {}, path, form="f32", vocabulary=lambda architecture: NO_WORDS)
        except InputError as error:
            raise InputError(f"{str(error).rpartition(';')[0]}; leave llama.cpp out of --peers") from error
        made.write(path)
        return path
