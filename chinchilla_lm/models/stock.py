"""A folder's JSON as both generations of transformers read it, and tools that were written for either.

Transformers 5 moved rotary parameters into one dictionary, renamed tokenizer classes and lists of special tokens, and
took `torch` out of the key of the number format. Version 4 reads none of that, and says nothing: a Llama has then
base 10,000. So both forms are written. And a classifier that reads a text's last token says which token pads.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from chinchilla_lm.files import json_text, read_json
from chinchilla_lm.models.families.base import ROPE_BASES

# Classes that only version 5 has → what both have.
TOKENIZER_CLASSES = {"TokenizersBackend": "PreTrainedTokenizerFast", "PythonBackend": "PreTrainedTokenizerFast"}
# How a tokenizer was made and came to where it was: untrue of the copy, or known to version 5 alone.
UNTRUE = ("backend", "is_local", "local_files_only")
PART = "partial_rotary_factor"
FULL, SLIDING = "full_attention", "sliding_attention"


def for_both(config: Mapping[str, Any], dtype: str, bases: tuple[str, str] = ROPE_BASES) -> dict[str, Any]:
    """A config.json with the keys of both. bases: see Family.rope_bases."""
    written = {"dtype": dtype, "torch_dtype": dtype, "transformers_version": version("transformers")}
    return dict(config) | _older_rope(config, bases) | written


def _older_rope(config: Mapping[str, Any], names: tuple[str, str]) -> dict[str, Any]:
    """`rope_theta` and what else version 4 has of `rope_parameters`; nothing where a config is in its form already.

    Where the bases have names of their own, version 5 takes `rope_scaling` for that of all blocks, so there is none.
    """
    given = config.get("rope_parameters")
    if not isinstance(given, Mapping) or config.get("rope_scaling"):
        return {}
    full, sliding = given.get(FULL, given), given.get(SLIDING, {})
    bases = {names[0]: full.get("rope_theta"), names[1]: sliding.get("rope_theta")}
    found = {key: base for key, base in bases.items() if base is not None}
    kind = full.get("rope_type", "default")
    scaling = {key: value for key, value in full.items() if key not in ("rope_theta", PART)}
    if PART in full:
        found |= {PART: full[PART]}
    if kind == "longrope":  # version 4 refuses any key but these three, and has the old length beside them
        if {"factor", "attention_factor"} & set(full):
            return found  # which those three cannot say, and version 5 would believe them
        scaling = {"type": kind} | {key: full.get(key) for key in ("short_factor", "long_factor")}
    return found if kind == "default" or names != ROPE_BASES else found | {"rope_scaling": scaling}


def tokenizer_for_both(folder: Path, pad: str | None = None) -> None:
    """Mend the tokenizer's config in a folder, if it has a tokenizer. pad: the token that fills up short texts."""
    path = folder / "tokenizer_config.json"
    if not path.is_file() and (pad is None or not (folder / "tokenizer.json").is_file()):
        return
    config = read_json(path, "tokenizer config") if path.is_file() else {}
    if not isinstance(config, dict):  # nobody reads it, and it is not ours to say so
        return
    mended = {key: value for key, value in config.items() if key not in UNTRUE}
    kind = mended.get("tokenizer_class")
    if isinstance(kind, str) and kind in TOKENIZER_CLASSES:
        mended["tokenizer_class"] = TOKENIZER_CLASSES[kind]
    if isinstance(mended.get("extra_special_tokens"), list):
        mended["additional_special_tokens"] = mended.pop("extra_special_tokens")
    if pad is not None:
        mended["pad_token"] = pad
        _name_padding(folder / "special_tokens_map.json", pad)
    if mended != config:
        path.write_text(json_text(mended, indent=2) + "\n", encoding="utf-8")


def _name_padding(path: Path, pad: str) -> None:
    """Older versions let this file overrule the config."""
    names = read_json(path, "special tokens") if path.is_file() else None
    if isinstance(names, dict) and names.get("pad_token") != pad:
        path.write_text(json_text(names | {"pad_token": pad}, indent=2) + "\n", encoding="utf-8")


def padding_token(tokenizer: Any, vocabulary: int) -> tuple[str, int] | None:
    """A token, and its id, that may stand behind a text whose last token is read; None where there is none.

    Transformers takes the last token that is not the padding one, so it must not be what the tokenizer ends texts with.
    """
    end = list(tokenizer("x")["input_ids"])[-1:]
    usual = (tokenizer.pad_token, tokenizer.eos_token, tokenizer.bos_token, tokenizer.unk_token)
    for token in (*usual, *tokenizer.all_special_tokens):
        index = None if token is None else tokenizer.convert_tokens_to_ids(token)
        if index is not None and [index] != end and index < vocabulary:
            return str(token), int(index)
    return None
