"""Tokens that end a text, where no file says so plainly.

An instruction-tuned model ends its turn with a token of its own, and many a file names only the one that ends a
document. So llama.cpp goes by the names of tokens too, and this is its list (`llama-vocab.cpp`, `special_eog_ids`), of
tokens that the tokenizer keeps whole: the letters `</s>` in a vocabulary without such a token end nothing. The other
names are words of no language, so a GGUF file that has such a token among its ordinary ones, as early files of Gemma
do, is mistaken, and it is taken for a control token, as llama.cpp takes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from chinchilla_lm.errors import InputError
from chinchilla_lm.models.gguf_metadata import NO_TOKEN

ENDS = frozenset(
    {
        "<|eot_id|>",  # Llama 3
        "<|eom_id|>",
        "<|im_end|>",  # ChatML: Qwen, SmolLM2
        "<|end|>",  # Phi 3
        "<end_of_turn>",  # Gemma
        "<turn|>",  # Gemma 4
        "<|tool_response>",
        "<eos>",
        "</s>",
        "<|endoftext|>",
        "<|end_of_text|>",
        "<|return|>",  # gpt-oss
        "<|call|>",
        "<|calls|>",  # Solar
        "<|flush|>",
        "<EOT>",
        "_<EOT>",
        "[EOT]",  # Kimi
        "[EOS]",
        "<end_of_utterance>",  # SmolDocling
        "<｜end▁of▁sentence｜>",  # DeepSeek
    }
)
ENDS_OF_ANY_TYPE = ENDS - {"</s>"}
# What surrounds code that is to be filled in; it ends a text as well. By GGUF's key, or else by name.
FILLING = {
    "fim_pad": ("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"),
    "fim_rep": ("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"),
    "fim_sep": ("<|file_sep|>",),
}
KEYS = ("eos", "eot", "eom")


def ends_by_name(whole: Mapping[str, int]) -> set[int]:
    """Ids of the tokens whose names say that they end a text. whole: token → id, of tokens that are kept whole."""
    found = {name for name in ENDS if name in whole}
    # In gpt-oss and Solar <|end|> ends a part of a turn, and in Gemma 4 </s> is a tag of HTML.
    if {"<|return|>", "<|call|>"} <= found or ("<|flush|>" in found and found & {"<|call|>", "<|calls|>"}):
        found.discard("<|end|>")
    if "<|tool_response>" in found:
        found.discard("</s>")
    return {whole[name] for name in found}


def ends_of_gguf(path: Path) -> list[int]:
    """Ids of the tokens that end a text of a GGUF file, by its keys and by their names, as llama.cpp has them.

    Raises InputError for a damaged file, and for an id that is none of its tokens.
    """
    from chinchilla_lm.models.gguf_file import open_file  # torch, which a packed model does without

    with open_file(path) as file:
        return ends_in(path, file.metadata)


def ends_in(path: Path, metadata: Mapping[str, Any]) -> list[int]:
    """The same by what a file says, which takes a while to read. Raises InputError likewise."""
    from chinchilla_lm.models.gguf_tokenizer import CONTROL, NORMAL, USER_DEFINED

    tokens: list[str] = metadata.get("tokenizer.ggml.tokens") or []
    types = metadata.get("tokenizer.ggml.token_type") or [CONTROL] * len(tokens)
    whole = {
        token: index
        for index, (token, kind) in enumerate(zip(tokens, types, strict=False))
        if kind in (CONTROL, USER_DEFINED) or (kind == NORMAL and token in ENDS_OF_ANY_TYPE)
    }
    found = ends_by_name(whole)
    for key in (*KEYS, *FILLING):
        index = _named(path, metadata, key, len(tokens))
        if index is not None:
            found.add(index)
        else:
            found |= {whole[name] for name in FILLING.get(key, ()) if name in whole}
    return sorted(found)


def _named(path: Path, metadata: Mapping[str, Any], key: str, count: int) -> int | None:
    index = metadata.get(f"tokenizer.ggml.{key}_token_id")
    if index in NO_TOKEN or not count:
        return None
    if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < count:
        raise InputError(f"{path}: tokenizer.ggml.{key}_token_id {index!r} is not below {count}; download it again")
    return index
