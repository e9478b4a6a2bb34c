"""A model's tokenizer as the metadata of a GGUF file.

Byte-level BPE is vocabulary, merges, and the name of a rule that cuts text into words; SentencePiece is a vocabulary
with scores, of which the highest is merged first, so each token gets what its merge has for a rank. Which rule it is,
nobody says in a tokenizer.json: as llama.cpp's converter does, all that there are read a probe text, and the one that
gives the model's own ids is it. If none does, the model is refused, for a file that cuts text otherwise would run all
the same, only worse.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

from chinchilla_lm.errors import InputError
from chinchilla_lm.models.gguf_file import open_file
from chinchilla_lm.models.gguf_sentencepiece import SPACE
from chinchilla_lm.models.gguf_tokenizer import CONTROL, NORMAL, RULES, SPECIAL, USER_DEFINED, fill
from chinchilla_lm.models.plain_tokenizer import PlainTokenizer

UNKNOWN, UNUSED, BYTE = 2, 5, 6  # tokenizer.ggml.token_type, beside those that we read
# Digits, capitals, contractions, spaces of all kinds, letters and marks of many scripts, composed or not.
PROBE = (
    "In 1999, I've   bought 12345 apples; THEY'RE 3.50 each.\n\n5\tx 'S été e\u0301te\u0301 naïve—Straße /\n//\n",
    "def f(x):\n    return  x**2  # 中文和日本語、한국어\r\n  7 \u00a0 \u200d❤️🚀 ½ Ⅷ ١٢٣ ₹5 Привет, мир! Γειά σου",
    "camelCaseWord HTTPServer don't DON'T it'Ll x_y-z a/b\\c  \n \n\n   trailing   ",
    " ",
    "x",
)
MANY = 16  # added tokens that the probe holds besides


def vocabulary(source: Path, architecture: str, tokens: int) -> dict[str, Any]:
    """The metadata of the tokenizer that lies in a folder or a GGUF file, for a model of so many tokens.

    Raises InputError where there is none, or one that GGUF files cannot say.
    """
    if source.is_file():
        with open_file(source) as file:
            return {key: value for key, value in file.metadata.items() if key.startswith("tokenizer.")}
    return vocabulary_of(PlainTokenizer.load(source), source, architecture, tokens)


def vocabulary_of(tokenizer: PlainTokenizer, source: Path, architecture: str, tokens: int) -> dict[str, Any]:
    """The same of a tokenizer that is loaded."""
    spec = json.loads(tokenizer.backend_tokenizer.to_str())
    model = spec["model"]
    if model["type"] != "BPE":
        raise InputError(
            f"the tokenizer in {source} is of type {model['type']}, not BPE, which GGUF files are written with; "
            "pass --to hf"
        )
    pieces = bool(model.get("byte_fallback"))
    found = _tokens(spec, tokens, pieces) | _roles(tokenizer, tokens) | _frame(tokenizer, source, pieces)
    if tokenizer.chat_template is not None:
        found["tokenizer.chat_template"] = tokenizer.chat_template
    for candidate in _sentencepiece(spec, found) if pieces else _byte_level(spec, found):
        if _reads_alike(candidate | {"general.architecture": architecture}, tokenizer, tokens):
            return candidate
    rules = "the one" if pieces else "any of the rules"
    raise InputError(
        f"the tokenizer in {source} cuts text otherwise than {rules} that GGUF files have a name for; pass --to hf"
    )


def _tokens(spec: dict[str, Any], count: int, pieces: bool) -> dict[str, Any]:
    """Each id's token and type; what a model has no token for is unused."""
    texts = [f"[PAD{index}]" for index in range(count)]
    kinds = [UNUSED] * count
    for token, index in spec["model"]["vocab"].items():
        if index < count:
            byte = pieces and len(token) == 6 and token.startswith("<0x") and token.endswith(">")
            texts[index], kinds[index] = token, BYTE if byte else NORMAL
    for added in spec["added_tokens"]:
        if added["id"] < count:
            texts[added["id"]] = added["content"]
            kinds[added["id"]] = CONTROL if added["special"] else USER_DEFINED
    unknown = spec["model"].get("unk_token")
    if pieces and unknown is not None:
        kinds[texts.index(unknown)] = UNKNOWN
    if pieces:  # llama.cpp finds them in a text whose spaces are still spaces
        texts = [
            text.replace(SPACE, " ") if kind == USER_DEFINED else text for text, kind in zip(texts, kinds, strict=True)
        ]
    return {"tokenizer.ggml.tokens": texts, "tokenizer.ggml.token_type": kinds}


def _roles(tokenizer: PlainTokenizer, count: int) -> dict[str, Any]:
    named = {key: tokenizer.specials[role] for role, key in SPECIAL.items() if role in tokenizer.specials}
    ids = {key: tokenizer.convert_tokens_to_ids(token) for key, token in named.items()}
    return {f"tokenizer.ggml.{key}_token_id": one for key, one in ids.items() if one is not None and one < count}


def _frame(tokenizer: PlainTokenizer, source: Path, pieces: bool) -> dict[str, Any]:
    """Which tokens stand around a text."""
    bare, framed = tokenizer.encode("x", add_special_tokens=False), tokenizer.encode("x")
    bos, eos = (tokenizer.specials.get(role) for role in ("bos_token", "eos_token"))
    sides: tuple[list[list[int | None]], ...] = [[]], [[]]
    for ways, token in zip(sides, (bos, eos), strict=True):
        ways += [] if token is None else [[tokenizer.convert_tokens_to_ids(token)]]
    found = next(
        (
            {"tokenizer.ggml.add_bos_token": bool(before), "tokenizer.ggml.add_eos_token": bool(after)}
            for before, after in product(*sides)
            if [*before, *bare, *after] == framed
        ),
        None,
    )
    if found is None:
        raise InputError(
            f"the tokenizer in {source} puts tokens around a text that are no BOS and no EOS, which GGUF files cannot "
            "say; pass --to hf"
        )
    tokens = tokenizer.convert_ids_to_tokens(bare)
    return found | ({"tokenizer.ggml.add_space_prefix": tokens[0].startswith(SPACE)} if pieces else {})


def _byte_level(spec: dict[str, Any], found: dict[str, Any]) -> Iterator[dict[str, Any]]:
    merges = [one if isinstance(one, str) else " ".join(one) for one in spec["model"]["merges"]]
    seen, whole_words = set(), bool(spec["model"].get("ignore_merges"))
    # Whether whole words come before merges, few texts tell; so the rules that say as the tokenizer does come first.
    for name, rule in sorted(RULES.items(), key=lambda one: one[1][1] != whole_words):
        if rule not in seen:
            seen.add(rule)
            yield {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": name, "tokenizer.ggml.merges": merges} | found


def _sentencepiece(spec: dict[str, Any], found: dict[str, Any]) -> Iterator[dict[str, Any]]:
    ranks: dict[str, int] = {}
    for rank, one in enumerate(spec["model"]["merges"]):
        ranks.setdefault("".join(one.split(" ", 1) if isinstance(one, str) else one), rank)
    last = len(ranks)
    scores = [-float(ranks.get(token, last)) for token in found["tokenizer.ggml.tokens"]]
    yield {"tokenizer.ggml.model": "llama", "tokenizer.ggml.pre": "default", "tokenizer.ggml.scores": scores} | found


def _reads_alike(metadata: dict[str, Any], tokenizer: PlainTokenizer, count: int) -> bool:
    """Whether our own reader of such a file gives the same ids for the probe."""
    from tokenizers import Tokenizer, models

    backend = Tokenizer(models.BPE())
    fill(backend, Path("the file"), metadata)
    whole = [token for token, kind in _kinds(metadata) if kind in (CONTROL, USER_DEFINED) and token.strip()]
    probe = [*PROBE, *(f"x{token}y" for token in whole[:MANY])]
    for text in probe:
        wanted = tokenizer.encode(text)
        if max(wanted, default=0) < count and list(backend.encode(text).ids) != wanted:
            return False
    return True


def _kinds(metadata: dict[str, Any]) -> Iterator[tuple[str, int]]:
    return zip(metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"], strict=True)
