"""Tokenizers whose tokens spell the text again, and such as read over some of it."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from chinchilla_lm.data import windows
from chinchilla_lm.data.records import Text
from chinchilla_lm.errors import InputError
from chinchilla_lm.models.plain_tokenizer import PlainTokenizer
from tests.data.conftest import byte_level


def words_alone() -> PreTrainedTokenizerFast:
    """A tokenizer that knows one word."""
    made = Tokenizer(models.WordLevel({"[UNK]": 0, "the": 1}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="[UNK]")


def lower_cased() -> PreTrainedTokenizerFast:
    made = byte_level([])
    made.backend_tokenizer.normalizer = normalizers.Lowercase()
    return made


def unknown_bytes() -> PreTrainedTokenizerFast:
    """SentencePiece's way with words, with an unknown token for letters that it does not know."""
    pieces = ["<unk>", "▁", *"acehlt", "\n"]
    made = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, [], unk_token="<unk>", fuse_unk=True))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>")


def spelling_bytes() -> PreTrainedTokenizerFast:
    """The same, with a token for each byte, as Llama 2 has it."""
    pieces = ["<unk>", "▁", *"acehlt", *(f"<0x{byte:02X}>" for byte in range(256))]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    made = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    undone = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    made.decoder = decoders.Sequence(undone)
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>")


def composing() -> PreTrainedTokenizerFast:
    made = byte_level([("t", "h")])
    made.backend_tokenizer.normalizer = normalizers.NFC()
    return made


def prefixed() -> PreTrainedTokenizerFast:
    made = byte_level([("t", "h")])
    made.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    return made


@pytest.mark.parametrize("make", [spelling_bytes, composing, prefixed, lambda: byte_level([("t", "h")])])
@pytest.mark.parametrize("plain", [False, True])
def test_a_tokenizer_that_spells_every_text_again_is_let_pass(make, plain, monkeypatch):
    monkeypatch.setattr(windows, "BLOCK_CHARACTERS", 20)
    tokenizer = PlainTokenizer.of(make()) if plain else make()
    texts = ["The  call\n\n of é and e\u0301 🙂", " the [UNK]\t", "", "the\u00a0call "]
    windows.check_spelling([Text(str(i), str(i), text) for i, text in enumerate(texts)], tokenizer, "short")


@pytest.mark.parametrize(
    ("make", "text", "change"),
    [
        (words_alone, "the extraordinarily complicated circumstances", "'the [UNK] [UNK] [UNK]' of 'the extraordin"),
        (unknown_bytes, "the talk", "'the tal<unk>' of 'the talk'"),
        (lower_cased, "call the Call", "call the call' of 'call the Call'"),
        (lower_cased, "THE", "'the' of 'THE'"),
    ],
)
def test_a_tokenizer_that_reads_over_words_is_refused(make, text, change):
    good = [Text("r", "r", "the")]
    windows.check_spelling(good, make(), "short")
    with pytest.raises(InputError, match="bits per byte need tokens that spell the text again") as refused:
        windows.check_spelling([*good * 3, Text("s", "s", text)][-1:], make(), "short")
    assert str(refused.value).startswith("the tokens of short make '")
    assert change in str(refused.value)
