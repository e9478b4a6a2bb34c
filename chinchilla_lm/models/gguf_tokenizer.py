"""The tokenizer inside a GGUF file.

Byte-level BPE is built here from vocabulary, merges and `tokenizer.ggml.pre`, the name of the rule that cuts text into
words before merging. That name matters: transformers 5.23 reads SmolLM's file without its rule that every digit stands
alone, and then splits `\\n\\n5` differently from the tokenizer that the model was trained with. SentencePiece
vocabularies are read by transformers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from chinchilla_lm.errors import InputError, in_one_line
from chinchilla_lm.models.gguf_file import open_file

CONTROL, USER_DEFINED = 3, 4  # tokenizer.ggml.token_type

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
    with open_file(path) as file:
        metadata = file.metadata
    model = metadata.get("tokenizer.ggml.model")
    if model == "llama":
        return _by_transformers(path)
    if model != "gpt2":
        raise InputError(
            f"{path}: tokenizer model {model!r} is not one of gpt2, llama; pass a folder with tokenizer.json"
        )
    return _byte_level(path, metadata)


def unreadable(path: Path, error: Exception) -> InputError:
    """One line for whatever a tokenizer library says in many."""
    return InputError(
        f"the tokenizer in {path} cannot be read ({in_one_line(error)}); pass a folder with tokenizer.json"
    )


def _by_transformers(path: Path) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name, trust_remote_code=False)
    except Exception as error:  # the libraries raise nothing narrower
        raise unreadable(path, error) from error


def _byte_level(path: Path, metadata: dict[str, Any]) -> Any:
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors
    from transformers import PreTrainedTokenizerFast

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
    try:
        backend = Tokenizer(models.BPE(vocab=vocabulary, merges=pairs, ignore_merges=whole_words))
    except Exception as error:  # the library raises nothing narrower
        raise unreadable(path, error) from error
    backend.pre_tokenizer = _pre_tokenizer(pattern)
    backend.decoder = decoders.ByteLevel()
    if composed:
        backend.normalizer = normalizers.NFC()
    types = metadata.get("tokenizer.ggml.token_type") or []
    for token, kind in zip(tokens, types, strict=False):
        if kind == CONTROL:
            backend.add_special_tokens([AddedToken(token, normalized=False, special=True)])
        elif kind == USER_DEFINED:
            backend.add_tokens([AddedToken(token, normalized=False, special=False)])
    named = {name: _token(path, metadata, key) for name, key in SPECIAL.items()}
    bos = named["bos_token"]
    if bos is not None and metadata.get("tokenizer.ggml.add_bos_token", default_bos):
        backend.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, vocabulary[bos])]
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        **{name: token for name, token in named.items() if token is not None},
        model_max_length=metadata.get(f"{metadata.get('general.architecture')}.context_length"),
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = metadata.get("tokenizer.chat_template")
    return tokenizer


def _token(path: Path, metadata: dict[str, Any], key: str) -> str | None:
    index = metadata.get(f"tokenizer.ggml.{key}_token_id")
    tokens = metadata["tokenizer.ggml.tokens"]
    if index is not None and not 0 <= index < len(tokens):
        raise InputError(f"{path}: tokenizer.ggml.{key}_token_id {index} is not below {len(tokens)}; download it again")
    return None if index is None else str(tokens[index])


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
