"""Text into a language model and out of it again, piece by piece."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from chinchilla_lm.errors import InputError
from chinchilla_lm.files import read_json
from chinchilla_lm.models.stop_tokens import ends_by_name, ends_of_gguf

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# Tokens of the prompt that the first new one is decoded behind: one holds its space; a letter has at most four bytes.
_CONTEXT = 6
_INCOMPLETE = "\ufffd"  # what a decoder writes for bytes that are no whole character (yet)


class Pieces:
    """Turns tokens into text as they come; a piece never ends within a character.

    What a token adds depends on the tokens before it (a space in front, the rest of a character), so each piece is the
    difference of two decodings of the last few tokens, and bytes that are no whole character wait for the next token.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, before: list[int]) -> None:
        """before: the tokens that the text continues; empty where it starts anew, as an answer does."""
        self._tokenizer = tokenizer
        self._ids = before[-_CONTEXT:]
        self._start, self._shown = 0, len(self._ids)

    def add(self, token: int) -> str:
        """The text that is complete with this token; often empty."""
        self._ids.append(token)
        text = self._rest()
        if not text or text.endswith(_INCOMPLETE):
            return ""
        self._start, self._shown = self._shown, len(self._ids)
        return text

    def finish(self) -> str:
        """What was still waiting, whole or not; nothing the second time."""
        text = self._rest()
        self._start, self._shown = self._shown, len(self._ids)
        return text

    def _rest(self) -> str:
        old = self._decode(self._ids[self._start : self._shown])
        return self._decode(self._ids[self._start :])[len(old) :]

    def _decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def prompt_ids(tokenizer: PreTrainedTokenizerFast, prompt: str, chat: bool) -> list[int]:
    """Token ids of a prompt; with `chat`, as the user's turn in the tokenizer's chat template.

    Raises InputError for a prompt of no tokens, and for `chat` where there is no template.
    """
    if chat:
        if not getattr(tokenizer, "chat_template", None):
            raise InputError("chat was asked for, but the tokenizer has no chat template; leave --chat away")
        turns = [{"role": "user", "content": prompt}]
        prompt = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(prompt, add_special_tokens=not chat, truncation=False, padding=False, verbose=False)["input_ids"]
    if not ids:
        raise InputError(f"prompt {prompt!r} has 0 tokens; at least 1 is needed; pass --prompt TEXT")
    return list(ids)


def stop_ids(hf_config: dict[str, Any], tokenizer: PreTrainedTokenizerFast, source: Path | None) -> frozenset[int]:
    """Ids of the tokens that end a text: those that the config, the generation config, the tokenizer or a GGUF file
    names, and those of the tokenizer's own tokens that are known to.

    Instruction-tuned models have several, and each of these places may name another.
    """
    added = {str(token): index for index, token in tokenizer.backend_tokenizer.get_added_tokens_decoder().items()}
    named: list[Any] = [hf_config.get("eos_token_id"), tokenizer.eos_token_id, list(ends_by_name(added))]
    ends = getattr(tokenizer, "ends", None)
    if ends is not None:
        named.append(list(ends))
    elif source is not None and source.is_file():
        named.append(ends_of_gguf(source))
    path = source / "generation_config.json" if source is not None and source.is_dir() else None
    if path is not None and path.is_file():
        generation = read_json(path, "generation config")
        named.append(generation.get("eos_token_id") if isinstance(generation, dict) else None)
    flat = [one for some in named for one in (some if isinstance(some, list) else [some])]
    return frozenset(one for one in flat if isinstance(one, int) and not isinstance(one, bool))
