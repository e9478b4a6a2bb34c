import pytest

from chinchilla_lm.errors import InputError
from chinchilla_lm.runtime.text import Pieces, prompt_ids, stop_ids
from tests.conftest import byte_level_tokenizer

TEXTS = [
    "Once upon a time",
    "naïve façade – 日本語 🙂 done",
    "🙂",
    " leading and trailing ",
    "a\n\nb\t\tc",
    "👩‍👩‍👧 e\u0301",
]


@pytest.fixture(scope="module")
def byte_level():
    return byte_level_tokenizer()


@pytest.fixture(scope="module")
def sentence_piece():
    """Metaspace and byte fall-back, as Llama 2 and Gemma have them: a space belongs to the word after it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"Onceupatimdb", "▁a", "▁time"]
    vocabulary = [(word, -float(i)) for i, word in enumerate(dict.fromkeys(words))]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=0, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(parts)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>", bos_token="<s>")


def stream(tokenizer, before: list[int], ids: list[int]) -> list[str]:
    pieces = Pieces(tokenizer, before)
    return [*(pieces.add(token) for token in ids), pieces.finish()]


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_are_the_text_and_end_between_characters(byte_level, text):
    found = stream(byte_level, [], prompt_ids(byte_level, text, chat=False))
    assert "".join(found) == text
    assert not any("\ufffd" in piece for piece in found)
    assert found[-1] == ""


def test_a_text_cut_inside_a_character_shows_so_at_its_end_only(byte_level):
    ids = byte_level("good 日")["input_ids"][:-1]
    found = stream(byte_level, [], ids)
    assert "".join(found[:-1]) == "good "
    assert set(found[-1]) == {"\ufffd"}
    assert "".join(found) == byte_level.decode(ids)
    pieces = Pieces(byte_level, [])
    assert [*map(pieces.add, ids), pieces.finish(), pieces.finish()] == [*found, ""]


def test_a_stray_byte_holds_up_nothing_but_itself(byte_level):
    stray = byte_level.convert_tokens_to_ids("ģ")  # byte 0xA3, which continues a character that never began
    found = stream(byte_level, [], [stray, *byte_level("ab cd")["input_ids"]])
    assert "".join(found) == "\ufffdab cd"
    assert found[-1] == ""


def test_special_tokens_are_not_text(byte_level):
    end = byte_level.eos_token_id
    ids = [end, *byte_level("Munich")["input_ids"], end, end, *byte_level(" is")["input_ids"], end]
    assert "".join(stream(byte_level, [], ids)) == "Munich is"


@pytest.mark.parametrize("text", ["Once upon a time", "a 日本 time 🙂b", "at time"])
def test_a_continuation_keeps_the_space_that_its_first_token_carries(sentence_piece, text):
    ids = sentence_piece(text, add_special_tokens=False)["input_ids"]
    whole = sentence_piece.decode(ids)
    assert whole == text
    for cut in range(1, len(ids)):
        head = "".join(stream(sentence_piece, [], ids[:cut]))
        tail = "".join(stream(sentence_piece, ids[:cut], ids[cut:]))
        if "\ufffd" not in head:
            assert head + tail == whole


def test_chat_needs_a_template_and_a_prompt_needs_a_token(byte_level):
    tokenizer = byte_level_tokenizer()
    with pytest.raises(InputError, match="no chat template"):
        prompt_ids(tokenizer, "Hi", chat=True)
    with pytest.raises(InputError, match="0 tokens"):
        prompt_ids(tokenizer, "", chat=False)
    tokenizer.chat_template = "<|user|>{{ messages[0]['content'] }}<|endoftext|>"
    ids = prompt_ids(tokenizer, "Hi", chat=True)
    assert tokenizer.decode(ids) == "<|user|>Hi<|endoftext|>"


def test_stop_tokens_come_from_all_three_places(byte_level, tmp_path):
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [7, 8]}')
    end = byte_level.eos_token_id
    assert stop_ids({"eos_token_id": 5}, byte_level, tmp_path) == {end, 5, 7, 8}
    assert stop_ids({"eos_token_id": [5, 6]}, byte_level, None) == {end, 5, 6}
    assert stop_ids({}, byte_level, tmp_path / "missing.gguf") == {end}
