"""The tokenizer inside a GGUF file.

Byte-level BPE is built here from vocabulary, merges and `tokenizer.ggml.pre`, the name of the rule that cuts text into
words before merging. That name matters: transformers 5.23 reads SmolLM's file without its rule that every digit stands
alone, and then splits `\\n\\n5` differently from the tokenizer that the model was trained with. SentencePiece
vocabularies, which list no merges, are in gguf_sentencepiece.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from chinchilla_lm.errors import InputError, in_one_line
from chinchilla_lm.models.gguf_file import open_file
from chinchilla_lm.models.gguf_metadata import NO_TOKEN, check_merges
from chinchilla_lm.models.gguf_sentencepiece import GEMMA, fill_sentencepiece
from chinchilla_lm.models.plain_tokenizer import PlainTokenizer
from chinchilla_lm.models.stop_tokens import ENDS_OF_ANY_TYPE, ends_in

NORMAL, CONTROL, USER_DEFINED = 1, 3, 4  # tokenizer.ggml.token_type

# The published regular expressions: tokenizer.json of Llama 3, Qwen2 and Mistral NeMo; llama.cpp's llama-vocab.cpp.
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
GPT2_RULE, DIGITS_RULE = "", r"\p{N}"
# tokenizer.ggml.pre → (regular expression, whole words before merges, a BOS unless the file says otherwise, NFC).
RULES: dict[str, tuple[str, bool, bool, bool]] = {
    "gpt-2": (GPT2_RULE, False, False, False),
    "smollm": (DIGITS_RULE, False, False, False),
    "refact": (DIGITS_RULE, False, False, False),
    "dbrx": (_LLAMA3, False, False, False),
    "smaug-bpe": (_LLAMA3, False, False, False),
    "llama-bpe": (_LLAMA3, True, True, False),
    "llama3": (_LLAMA3, True, True, False),
    "llama-v3": (_LLAMA3, True, True, False),
    "tekken": (_TEKKEN, True, True, False),
    "qwen2": (_QWEN2, False, False, True),
    "deepseek-r1-qwen": (_QWEN2, False, False, True),
}
SPECIAL = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}


def read_tokenizer(path: Path) -> Any:
    """A fast tokenizer of transformers. Raises InputError for a file without one, or of a kind that we do not know."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    metadata = _metadata(path)
    # transformers copies what it is given, by way of JSON, which takes a second: so it is given an empty one.
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), **_settings(metadata))
    named = fill(tokenizer.backend_tokenizer, path, metadata)
    for role, token in named.items():
        setattr(tokenizer, role, token)
    tokenizer.chat_template = metadata.get("tokenizer.chat_template")
    return tokenizer


def read_plain_tokenizer(path: Path) -> PlainTokenizer:
    """The same without transformers, whose import takes longer than the file. Raises InputError likewise."""
    from tokenizers import Tokenizer, models

    metadata = _metadata(path)
    backend = Tokenizer(models.BPE())
    specials = fill(backend, path, metadata)
    ends = frozenset(ends_in(path, metadata))
    template = metadata.get("tokenizer.chat_template")
    return PlainTokenizer(backend, specials, template, others=_settings(metadata), ends=ends)


def _settings(metadata: dict[str, Any]) -> dict[str, Any]:
    """What transformers should know of the tokenizer besides."""
    architecture = metadata.get("general.architecture")
    return {
        "model_max_length": metadata.get(f"{architecture}.context_length"),
        "padding_side": "left" if architecture in GEMMA else "right",
        "clean_up_tokenization_spaces": False,
    }


def _metadata(path: Path) -> dict[str, Any]:
    with open_file(path) as file:
        return file.metadata


def fill(backend: Any, path: Path, metadata: dict[str, Any]) -> dict[str, str]:
    """Give a `tokenizers.Tokenizer` all that a file's metadata say; returns the special tokens by their role. Raises
    InputError for what cannot be read, naming the file."""
    model = metadata.get("tokenizer.ggml.model")
    if model not in ("gpt2", "llama"):
        raise InputError(
            f"{path}: tokenizer model {model!r} is not one of gpt2, llama; pass a folder with tokenizer.json"
        )
    named = {role: token for role, key in SPECIAL.items() if (token := _token(path, metadata, key)) is not None}
    try:
        if model == "llama":
            fill_sentencepiece(backend, path, metadata)
        bos = model == "llama" or _byte_level(backend, path, metadata)
        _add_tokens(backend, metadata, named)
    except InputError:
        raise
    except Exception as error:  # the library raises nothing narrower
        raise unreadable(path, error) from error
    eos = model == "llama" and metadata.get("tokenizer.ggml.add_eos_token")
    _frame(
        backend,
        named.get("bos_token") if metadata.get("tokenizer.ggml.add_bos_token", bos) else None,
        named.get("eos_token") if eos else None,
    )
    return named


def unreadable(path: Path, error: Exception) -> InputError:
    """One line for whatever a tokenizer library says in many."""
    return InputError(
        f"the tokenizer in {path} cannot be read ({in_one_line(error)}); pass a folder with tokenizer.json"
    )


def _byte_level(backend: Any, path: Path, metadata: dict[str, Any]) -> bool:
    """Give a tokenizer vocabulary, merges and its rule; returns whether a BOS is the rule too."""
    from tokenizers import decoders, models, normalizers

    rule = metadata.get("tokenizer.ggml.pre")
    if rule not in RULES:
        raise InputError(
            f"{path}: tokenizer.ggml.pre {rule!r} is not one of {', '.join(RULES)}; pass a folder with tokenizer.json"
        )
    pattern, whole_words, default_bos, composed = RULES[rule]
    tokens, merges = metadata.get("tokenizer.ggml.tokens"), metadata.get("tokenizer.ggml.merges")
    if not tokens or merges is None:
        raise InputError(f"{path} holds no vocabulary with merges; pass a folder with tokenizer.json")
    pairs = [tuple(merge.split(" ", 1)) for merge in merges]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    check_merges(path, pairs, vocabulary)
    backend.model = models.BPE(vocab=vocabulary, merges=pairs, ignore_merges=whole_words)
    backend.pre_tokenizer = _pre_tokenizer(pattern)
    backend.decoder = decoders.ByteLevel()
    if composed:
        backend.normalizer = normalizers.NFC()
    return default_bos


def _add_tokens(backend: Any, metadata: dict[str, Any], named: dict[str, str]) -> None:
    """What is found in a text before it is cut: control tokens, those with a role, and those that users defined."""
    from tokenizers import AddedToken

    kinds = metadata.get("tokenizer.ggml.token_type") or []
    found: dict[int, list[str]] = {CONTROL: [], USER_DEFINED: []}
    for token, kind in zip(metadata["tokenizer.ggml.tokens"], kinds, strict=False):
        if kind == NORMAL and token in ENDS_OF_ANY_TYPE:
            kind = CONTROL
        # Gemma's runs of spaces are spelt otherwise in the vocabulary: its merges make them.
        if kind in found and backend.token_to_id(token) is not None:
            found[kind].append(token)
    special = dict.fromkeys([*found[CONTROL], *named.values()])
    backend.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    backend.add_tokens([AddedToken(token, normalized=False, special=False) for token in found[USER_DEFINED]])


def _frame(backend: Any, bos: str | None, eos: str | None) -> None:
    """Tokens around a text, and around each of a pair."""
    from tokenizers import processors

    present = [token for token in (bos, eos) if token is not None]
    if not present:
        return

    def framed(text: str) -> str:
        return " ".join([*([] if bos is None else [bos]), text, *([] if eos is None else [eos])])

    backend.post_processor = processors.TemplateProcessing(
        single=framed("$A"),
        pair=f"{framed('$A')} {framed('$B')}",
        special_tokens=[(token, backend.token_to_id(token)) for token in dict.fromkeys(present)],
    )


def _token(path: Path, metadata: dict[str, Any], key: str) -> str | None:
    index, tokens = metadata.get(f"tokenizer.ggml.{key}_token_id"), metadata.get("tokenizer.ggml.tokens") or []
    if index in NO_TOKEN:
        return None
    if not 0 <= index < len(tokens):
        raise InputError(f"{path}: tokenizer.ggml.{key}_token_id {index} is not below {len(tokens)}; download it again")
    return str(tokens[index])


def _pre_tokenizer(pattern: str) -> Any:
    """The rule that cuts text into words, then bytes written as letters."""
    from tokenizers import Regex, pre_tokenizers

    if pattern == GPT2_RULE:
        return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if pattern == DIGITS_RULE:
        alone = pre_tokenizers.Digits(individual_digits=True)
        return pre_tokenizers.Sequence([alone, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)])
    split = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
