"""Tokenizers of model folders and GGUF files: transformers' fast ones, as data, never with a repository's own code."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from chinchilla_lm.errors import InputError, in_one_line
from chinchilla_lm.files import json_text, read_json
from chinchilla_lm.models.plain_tokenizer import PlainTokenizer

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
    "generation_config.json",
)


def load_tokenizer(source: Path) -> Any:
    """The fast tokenizer of a folder or a GGUF file. Raises InputError where there is none."""
    if source.is_file():
        from chinchilla_lm.models.gguf_tokenizer import read_tokenizer

        return read_tokenizer(source)
    if not any((source / name).is_file() for name in TOKENIZER_FILES if name.startswith(("tokenizer", "vocab"))):
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


def tokenizer_of(source: Path, vocabulary: int, *, plain: bool = False) -> Any:
    """The fast tokenizer of a folder or GGUF file for a model of so many token ids.

    plain: without transformers, whose import takes longer than a file. Raises InputError where there is none, and where
    its vocabulary is larger than the model's. (Tokens that were added to it may lie beyond: Gemma 3 has one for images,
    and a text without it is fine.)
    """
    tokenizer = _plain(source) if plain else load_tokenizer(source)
    highest = _highest_id(source, tokenizer.backend_tokenizer)
    if highest >= vocabulary:
        raise InputError(
            f"the tokenizer in {source} has token ids up to {highest}, the model 0 … {vocabulary - 1}; "
            "copy the model's own tokenizer files into it"
        )
    return tokenizer


def _plain(source: Path) -> PlainTokenizer:
    if source.is_dir():
        return PlainTokenizer.load(source)
    from chinchilla_lm.models.gguf_tokenizer import read_plain_tokenizer

    return read_plain_tokenizer(source)


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
        return
    if tokenizer is None and source is not None and has_tokenizer(source):
        tokenizer = load_tokenizer(source)
    if tokenizer is None:
        return
    tokenizer.save_pretrained(folder)
    config = folder / "tokenizer_config.json"
    if config.is_file():  # how the tokenizer came here is nobody's business
        kept = read_json(config, "tokenizer config")
        kept = {key: value for key, value in kept.items() if key not in ("is_local", "local_files_only")}
        config.write_text(json_text(kept, indent=2) + "\n", encoding="utf-8")
