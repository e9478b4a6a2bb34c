"""Tiny tokenizers built on the spot, and the way to the real data."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def real() -> Callable[[str], Path]:
    """The folder of a real data set; the test is skipped where it is not on this machine."""
    root = Path(os.environ.get("CHINCHILLA_DATA", REPOSITORY.parent / "shared" / "data"))

    def find(name: str) -> Path:
        if not (root / name).exists():
            pytest.skip(f"no real data at {root / name}; point CHINCHILLA_DATA to it")
        return root / name

    return find


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str], Path]:
    """Writes one UTF-8 file below the test's own folder."""

    def write_file(name: str, text: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    return write_file


@pytest.fixture(scope="session")
def wordpiece() -> PreTrainedTokenizerFast:
    """BERT in small: [CLS] … [SEP], lower case, letters and some words; like MiniLM's, it truncates and pads."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    words = ["call", "german", "rejects", "peter", ".", ",", "1", "2", "浙", "商"]
    vocabulary = [*special, *letters, *(f"##{letter}" for letter in letters), "##2", *words]
    made = Tokenizer(models.WordPiece({token: i for i, token in enumerate(vocabulary)}, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    made.enable_truncation(4)
    made.enable_padding(length=4)
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=made, **names)


def byte_level(merges: list[tuple[str, str]], **options: Any) -> PreTrainedTokenizerFast:
    """GPT-2 in small: all bytes, then `merges`, then <|end|>."""
    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *(a + b for a, b in merges), "<|end|>"]
    made = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.post_processor = processors.ByteLevel(trim_offsets=True)  # as GPT-2: offsets leave out the leading space
    made.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|end|>", bos_token="<|end|>", **options)


@pytest.fixture(scope="session")
def byte_bpe() -> PreTrainedTokenizerFast:
    """Byte-level BPE in which " the" and "the" are different tokens."""
    return byte_level([("t", "h"), ("th", "e"), ("Ġ", "the"), ("Ġ", "c"), ("a", "l"), ("al", "l"), ("Ġc", "all")])
