"""Tokenizers of model folders and GGUF files: transformers' fast ones, as data, never with a repository's own code."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from chinchilla_lm.errors import InputError

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
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(source, use_fast=True, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, ImportError, KeyError, TypeError, AttributeError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"the tokenizer in {source} cannot be loaded ({first}); copy the model's files again") from error
    if not tokenizer.is_fast:
        raise InputError(f"the tokenizer in {source} is not a fast one; save it with tokenizer.json")
    return tokenizer


def save_tokenizer(source: Path | None, tokenizer: Any, folder: Path) -> None:
    """Copy the tokenizer files of a model folder, or write those of a GGUF file's tokenizer."""
    if source is not None and source.is_dir():
        for name in TOKENIZER_FILES:
            if (source / name).is_file():
                shutil.copyfile(source / name, folder / name)
    elif tokenizer is not None:
        tokenizer.save_pretrained(folder)
        config = folder / "tokenizer_config.json"
        if config.is_file():  # where the files came from is nobody's business
            kept = json.loads(config.read_text(encoding="utf-8"))
            kept = {key: value for key, value in kept.items() if key not in ("is_local", "local_files_only")}
            config.write_text(json.dumps(kept, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
