"""Byte-level tokenizers out of GGUF metadata: every rule that cuts text, against the published tokenizer's parts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFWriter
from tokenizers import Regex, Tokenizer, models, pre_tokenizers

from chinchilla_lm.errors import InputError
from chinchilla_lm.models.gguf_tokenizer import RULES, read_tokenizer

BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
TEXT = "In 1999, I've   bought 12345 apples.\n\n5\tx 'S \u00e9t\u00e9 \u4e2d\u6587\r\n  7"


def write(path: Path, rule: str, **more: Any) -> Path:
    writer = GGUFWriter(path, "llama")
    writer.add_context_length(77)
    merges = ["\u0120 1", "1 9", "\u010a \u010a", "\u0120 \u0120", "\u010a 5", "i n"]
    tokens = [*BYTES, *(merge.replace(" ", "") for merge in merges), "<|end|>", "<think>"]
    types = [1] * (len(tokens) - 2) + [3, 4]
    writer.add_tokenizer_model(more.get("model", "gpt2"))
    writer.add_tokenizer_pre(rule)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(merges)
    writer.add_bos_token_id(more.get("bos", len(tokens) - 2))
    writer.add_eos_token_id(len(tokens) - 2)
    if "add_bos" in more:
        writer.add_add_bos_token(more["add_bos"])
    writer.add_chat_template("{{ 1 }}")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("rule", RULES)
def test_text_comes_back(rule: str, tmp_path: Path) -> None:
    tokenizer = read_tokenizer(write(tmp_path / "t.gguf", rule, add_bos=False))
    ids = tokenizer(TEXT)["input_ids"]
    assert tokenizer.decode(ids) == TEXT
    assert tokenizer.is_fast
    assert tokenizer.model_max_length == 77


def test_smollm_keeps_every_digit_alone(tmp_path: Path) -> None:
    """Its tokenizer.json has `Digits(individual_digits=True)` in front of the byte level."""
    smollm = read_tokenizer(write(tmp_path / "s.gguf", "smollm"))
    gpt2 = read_tokenizer(write(tmp_path / "g.gguf", "gpt-2"))
    assert smollm.tokenize("19\n\n5") == ["1", "9", "\u010a\u010a", "5"]
    assert gpt2.tokenize("19\n\n5") == ["19", "\u010a", "\u010a", "5"]
    assert smollm.tokenize(" 1") == ["\u0120", "1"]
    assert gpt2.tokenize(" 1") == ["\u01201"]


def test_special_tokens(tmp_path: Path) -> None:
    tokenizer = read_tokenizer(write(tmp_path / "t.gguf", "llama-bpe"))
    end, think = tokenizer.convert_tokens_to_ids(["<|end|>", "<think>"])
    assert tokenizer("a<think>b<|end|>")["input_ids"][0] == end  # a BOS is the rule for Llama 3
    assert {end, think} <= set(tokenizer("a<think>b<|end|>")["input_ids"])
    assert tokenizer.decode(tokenizer("a<think>b<|end|>")["input_ids"], skip_special_tokens=True) == "a<think>b"
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == ("<|end|>", "<|end|>", None)
    assert tokenizer.chat_template == "{{ 1 }}"
    plain = read_tokenizer(write(tmp_path / "p.gguf", "llama-bpe", add_bos=False))
    assert plain("a")["input_ids"] == tokenizer("a")["input_ids"][1:]


@pytest.mark.parametrize(
    ("rule", "more", "named"),
    [("jina-v9", {}, "jina-v9"), ("qwen2", {"model": "bert"}, "bert"), ("qwen2", {"bos": 10_000}, "10000")],
)
def test_unknown_kinds_are_refused(rule: str, more: dict[str, Any], named: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=named):
        read_tokenizer(write(tmp_path / "t.gguf", rule, **more))


def test_merges_see_the_same_words_as_the_regular_expression(tmp_path: Path) -> None:
    tokenizer = read_tokenizer(write(tmp_path / "t.gguf", "qwen2"))
    bare = Tokenizer(models.WordLevel({"x": 0}, unk_token="x"))
    bare.pre_tokenizer = pre_tokenizers.Split(Regex(RULES["qwen2"][0]), "isolated")
    words = [word for word, _ in bare.pre_tokenizer.pre_tokenize_str(TEXT)]
    assert "".join(words) == TEXT
    assert "1" in words
    assert "19" not in words
    assert [token for word in words for token in tokenizer.tokenize(word)] == tokenizer.tokenize(TEXT)
