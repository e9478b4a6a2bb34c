"""Tokenizers into GGUF metadata: what our reader of such files makes of them is what they were."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors

from chinchilla_lm.errors import InputError
from chinchilla_lm.export.gguf_vocabulary import UNUSED, vocabulary, vocabulary_of
from chinchilla_lm.models.gguf_file import open_file
from chinchilla_lm.models.gguf_tokenizer import RULES, read_plain_tokenizer
from chinchilla_lm.models.plain_tokenizer import PlainTokenizer
from tests.models import test_gguf_sentencepiece as pieces
from tests.models.test_gguf_tokenizer import BYTES, write


@pytest.mark.parametrize("rule", RULES)
def test_byte_level_tokenizers_come_back(rule: str, tmp_path: Path) -> None:
    path = write(tmp_path / "t.gguf", rule)
    with open_file(path) as file:
        wanted = {key: value for key, value in file.metadata.items() if key.startswith("tokenizer.")}
    tokens = len(wanted["tokenizer.ggml.tokens"])
    assert vocabulary(path, "llama", tokens) == wanted  # of a GGUF file it is what stands there
    (tmp_path / "folder").mkdir()
    read_plain_tokenizer(path).save(tmp_path / "folder")
    found = vocabulary(tmp_path / "folder", "llama", tokens + 3)
    assert RULES[found["tokenizer.ggml.pre"]] == RULES[rule]
    assert found["tokenizer.ggml.tokens"] == [
        *wanted["tokenizer.ggml.tokens"],
        *(f"[PAD{tokens + i}]" for i in range(3)),
    ]
    assert found["tokenizer.ggml.token_type"] == [*wanted["tokenizer.ggml.token_type"], *[UNUSED] * 3]
    assert found["tokenizer.ggml.add_bos_token"] == RULES[rule][2]
    same = ("merges", "model", "bos_token_id", "eos_token_id")
    assert all(found[f"tokenizer.ggml.{key}"] == wanted[f"tokenizer.ggml.{key}"] for key in same)
    assert found["tokenizer.chat_template"] == "{{ 1 }}"


@pytest.mark.parametrize(("architecture", "spaces"), [("llama", "\u2581\u2581"), ("gemma3", "  ")])
def test_sentencepiece_tokenizers_come_back(architecture: str, spaces: str, tmp_path: Path) -> None:
    for seed in range(3):
        path = pieces.write(tmp_path / "t.gguf", architecture, pieces.vocabulary(seed, spaces))
        tokenizer = read_plain_tokenizer(path)
        with open_file(path) as file:
            count = len(file.metadata["tokenizer.ggml.tokens"])
        found = vocabulary_of(tokenizer, path, architecture, count)
        assert found["tokenizer.ggml.model"] == "llama"
        assert found["tokenizer.ggml.add_space_prefix"] == (architecture == "llama")
        assert found["tokenizer.ggml.token_type"].count(6) == 256


def test_a_rule_that_has_no_name_is_refused(tmp_path: Path) -> None:
    backend = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(BYTES)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    with pytest.raises(InputError, match="cuts text otherwise than any of the rules"):
        vocabulary_of(PlainTokenizer(backend, {}), tmp_path, "llama", 256)


def test_what_is_no_bpe_and_what_stands_around_a_text(tmp_path: Path) -> None:
    words = Tokenizer(models.WordLevel({"x": 0}, unk_token="x"))
    with pytest.raises(InputError, match="is of type WordLevel, not BPE"):
        vocabulary_of(PlainTokenizer(words, {}), tmp_path, "llama", 1)
    backend = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(BYTES)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.add_special_tokens([AddedToken("<a>")])
    backend.post_processor = processors.TemplateProcessing(single="<a> $A", special_tokens=[("<a>", 256)])
    with pytest.raises(InputError, match="no BOS and no EOS"):
        vocabulary_of(PlainTokenizer(backend, {}), tmp_path, "llama", 257)
    assert vocabulary_of(PlainTokenizer(backend, {"bos_token": "<a>"}), tmp_path, "llama", 257)[
        "tokenizer.ggml.add_bos_token"
    ]
