"""Of which type the metadata of a GGUF file must be that are not numbers of the architecture (ggml/docs/gguf.md).

A file says the type of every value itself, so any may be of any; whoever reads one may rely on this.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from chinchilla_lm.errors import InputError


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def _is_whole(value: Any) -> bool:
    return type(value) is int


def _is_list(kinds: tuple[type, ...]) -> Callable[[Any], bool]:
    """Lists are of one type, so that the first value speaks for all."""
    return lambda value: isinstance(value, list) and type(value[0] if value else kinds[0]()) in kinds


RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "general.architecture": (_is_text, "a text"),
    "tokenizer.ggml.model": (_is_text, "a text"),
    "tokenizer.ggml.pre": (_is_text, "a text"),
    "tokenizer.chat_template": (_is_text, "a text"),
    "tokenizer.ggml.tokens": (_is_list((str,)), "a list of texts"),
    "tokenizer.ggml.merges": (_is_list((str,)), "a list of texts"),
    "tokenizer.ggml.scores": (_is_list((float, int)), "a list of numbers"),
    "tokenizer.ggml.token_type": (_is_list((int,)), "a list of whole numbers"),
}
# What stands for the id of a token where there is none, in either sign.
NO_TOKEN = (None, -1, 2**32 - 1)
# Keys that there are many of, by how they begin and end.
FLAGS = ("tokenizer.ggml.add_", "")
IDS = ("tokenizer.ggml.", "_token_id")


def check_metadata(path: Path, metadata: Mapping[str, Any]) -> None:
    """Raise InputError for a value of another type than its key has."""
    for key, value in metadata.items():
        known, what = RULES.get(key, (None, ""))
        if key.startswith(FLAGS[0]):
            known, what = _is_flag, "true or false"
        elif key.startswith(IDS[0]) and key.endswith(IDS[1]):
            known, what = _is_whole, "a whole number"
        if known is not None and not known(value):
            raise InputError(f"{path}: {key} {value!r:.60} is not {what}; convert the model to GGUF anew")


def check_merges(path: Path, merges: Iterable[tuple[str, ...]], vocabulary: Mapping[str, int]) -> None:
    """Raise InputError for a merge into no token: the tokenizer library panics over one, and no `except` sees it."""
    if not all(map(vocabulary.__contains__, map("".join, merges))):
        raise InputError(f"{path} has merges into tokens that its vocabulary lacks; convert the model to GGUF anew")
