"""Tokenizers of model folders and GGUF files: transformers' fast ones, as data, never with a repository's own code."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from chinchilla_lm.errors import InputError, in_one_line
from chinchilla_lm.files import json_text, read_json
from chinchilla_lm.models.plain_tokenizer import PlainTokenizer
from chinchilla_lm.models.stop_tokens import ends_of_gguf

GENERATION = "generation_config.json"
# What makes up a tokenizer and how it is used; copied as it is from folder to folder.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "sentencepiece.bpe.model",
    "chat_template.jinja",
    "chat_template.json",
    GENERATION,
)
MORE_TEMPLATES = "additional_chat_templates"  # a folder of chat templates that have names


def load_tokenizer(source: Path) -> Any:
    """The fast tokenizer of a folder or a GGUF file. Raises InputError where there is none."""
    if source.is_file():
        from chinchilla_lm.models.gguf_tokenizer import read_tokenizer

        return read_tokenizer(source)
    kinds = ("tokenizer", "vocab", "sentencepiece")
    if not any((source / name).is_file() for name in TOKENIZER_FILES if name.startswith(kinds)):
        raise InputError(f"{source} holds no tokenizer.json; copy the tokenizer files of the model into it")
    from transformers import AutoConfig, AutoTokenizer

    family = _family_of_shortened(source)
    try:
        known = {} if family is None else {"config": AutoConfig.for_model(family)}
        tokenizer = AutoTokenizer.from_pretrained(
            source, use_fast=True, trust_remote_code=False, local_files_only=True, **known
        )
    except Exception as error:  # the libraries raise nothing narrower for files that are damaged
        raise InputError(
            f"the tokenizer in {source} cannot be loaded ({in_one_line(error)}); copy the model's files again"
        ) from error
    if not tokenizer.is_fast:
        raise InputError(f"the tokenizer in {source} is not a fast one; save it with tokenizer.json")
    return tokenizer


def tokenizer_of(source: Path, vocabulary: int) -> Any:
    """The fast tokenizer of a folder or GGUF file for a model of so many token ids. Raises InputError where there is
    none, and where its vocabulary is larger than the model's."""
    tokenizer = load_tokenizer(source)
    check_vocabulary(tokenizer, source, vocabulary)
    return tokenizer


def _highest_id(source: Path, backend: Any) -> int:
    """Without tokens that were added beyond the vocabulary."""
    if source.is_file():  # GGUF numbers its tokens; a copy of 262,144 words to look at takes 0.3 s
        return int(backend.get_vocab_size(with_added_tokens=False)) - 1
    return max(backend.get_vocab(with_added_tokens=False).values(), default=0)


def _family_of_shortened(folder: Path) -> str | None:
    """The model_type behind a shortened model's own, which transformers does not know and would warn of."""
    path = folder / "config.json"
    config = read_json(path, "model config") if path.is_file() else None
    family = config.get("chinchilla_model_type") if isinstance(config, dict) else None
    return family if isinstance(family, str) else None


def is_tokenizer_file(name: str) -> bool:
    """Whether `save_tokenizer` may write a file of this name, which is relative to the model's folder."""
    return name in TOKENIZER_FILES or (name.startswith(f"{MORE_TEMPLATES}/") and name.endswith(".jinja"))


def check_vocabulary(tokenizer: Any, source: Path, vocabulary: int) -> None:
    """Raise InputError for a tokenizer whose own vocabulary is larger than the model's.

    Tokens that were added to it may lie beyond: Gemma 3 has one for images, and a text without it is fine.
    """
    highest = _highest_id(source, tokenizer.backend_tokenizer)
    if highest >= vocabulary:
        raise InputError(
            f"the tokenizer in {source} has token ids up to {highest}, the model 0 … {vocabulary - 1}; "
            "copy the model's own tokenizer files into it"
        )


def has_tokenizer(path: Path) -> bool:
    """Whether a GGUF file says anything about a tokenizer."""
    from chinchilla_lm.models.gguf_file import open_file

    with open_file(path) as file:
        return "tokenizer.ggml.model" in file.metadata


def save_tokenizer(source: Path | None, folder: Path, tokenizer: Any = None) -> None:
    """Copy a model folder's tokenizer files into `folder`; write those of a GGUF file, or of `tokenizer` itself.

    A model without a tokenizer is saved without one.
    """
    if source is not None and source.is_dir():
        for name in TOKENIZER_FILES:
            if (source / name).is_file():
                shutil.copyfile(source / name, folder / name)
        if (source / MORE_TEMPLATES).is_dir():
            shutil.copytree(source / MORE_TEMPLATES, folder / MORE_TEMPLATES, ignore=_all_but_templates)
        return
    if tokenizer is None and source is not None and has_tokenizer(source):
        tokenizer = load_tokenizer(source)
    if tokenizer is None:
        return
    tokenizer.save_pretrained(folder)
    if source is not None:
        write_ends(ends_of_gguf(source), folder, tokenizer)


def write_ends(ends: Sequence[int], folder: Path, tokenizer: Any) -> None:
    """A generation config, the only place in a folder that several stop tokens are named in."""
    if ends:
        ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": ends, "pad_token_id": tokenizer.pad_token_id}
        (folder / GENERATION).write_text(json_text(ids, indent=2) + "\n", encoding="utf-8")


def read_ends(folder: Path) -> frozenset[int]:
    """The stop tokens that `write_ends` named."""
    path = folder / GENERATION
    return frozenset(read_json(path, "generation config")["eos_token_id"]) if path.is_file() else frozenset()


def save_plain(tokenizer: PlainTokenizer, folder: Path) -> None:
    """Write a tokenizer in the place of the files that stand in `folder`, of which only the stop tokens' stay."""
    for name in TOKENIZER_FILES:
        if name != GENERATION:
            (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder / MORE_TEMPLATES, ignore_errors=True)
    tokenizer.save(folder)


def _all_but_templates(_: str, names: list[str]) -> list[str]:
    return [name for name in names if not name.endswith(".jinja")]
