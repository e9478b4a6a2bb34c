from __future__ import annotations

import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chinchilla_lm.data.encode import DataWarning, Encoded, encode_labelled, encode_tagged, encode_text, frame_of
from chinchilla_lm.data.records import Labelled, Tagged, Text
from chinchilla_lm.errors import InputError

LABELS = {"O": 0, "B-X": 1, "I-X": 2}


def tagged(text, tags=None, document="d", number=0):
    words = tuple(text.split(" "))
    return Tagged(f"r{number}", document, words, tuple(tags.split()) if tags else ("O",) * len(words))


def targets(window: Encoded) -> list[int]:
    assert isinstance(window.targets, list)
    return window.targets


def labelled(text, pair=None, label="yes"):
    return Labelled("r", "r", None, text, pair, label)


def test_targets_stand_at_the_first_piece_of_each_word(wordpiece):
    records = [tagged("EU rejects German call .", "B-X O I-X O O")]
    (window,) = encode_tagged(records, wordpiece, LABELS, 32)
    tokens = wordpiece.convert_ids_to_tokens(window.ids)
    assert tokens == ["[CLS]", "e", "##u", "rejects", "german", "call", ".", "[SEP]"]
    assert window.targets == [-100, 1, -100, 0, 2, 0, 0, -100]
    assert window.owners == [(0, 0), (0, 1), (0, 2), (0, 3), (0, 4)]
    assert window.segments is None


words = st.lists(st.text("abu.,12浙é", min_size=1, max_size=5), min_size=1, max_size=6)


@settings(max_examples=60)
@given(words)
def test_wordpiece_equals_the_tokenizers_own_pre_split_encoding(wordpiece, sentence):
    record = Tagged("r", "d", tuple(sentence), ("O",) * len(sentence))
    (window,) = encode_tagged([record], wordpiece, LABELS, 512)
    own = wordpiece(sentence, is_split_into_words=True, truncation=False, padding=False)
    assert window.ids == own["input_ids"]
    firsts = [own.word_ids().index(i) for i in range(len(sentence))]
    assert [i for i, target in enumerate(targets(window)) if target != -100] == firsts


@settings(max_examples=60)
@given(words.map(lambda ws: [w for w in (w.replace("浙", "") for w in ws) if w] or ["a"]))
def test_byte_bpe_equals_the_tokenizers_encoding_of_the_whole_sentence(byte_bpe, sentence):
    record = Tagged("r", "d", tuple(sentence), ("O",) * len(sentence))
    (window,) = encode_tagged([record], byte_bpe, LABELS, 512)
    assert window.ids == byte_bpe(" ".join(sentence))["input_ids"]
    assert sum(target != -100 for target in targets(window)) == len(sentence)


def test_byte_bpe_carries_the_space_except_at_the_start_and_around_chinese(byte_bpe):
    (window,) = encode_tagged([tagged("the the call")], byte_bpe, LABELS, 32)
    assert byte_bpe.convert_ids_to_tokens(window.ids) == ["the", "Ġthe", "Ġcall"]
    (window,) = encode_tagged([tagged("浙 商 the 级 the call")], byte_bpe, LABELS, 32)
    assert byte_bpe.decode(window.ids) == "浙商the级the call"


def test_documents_are_packed_with_a_separator_and_never_mixed(wordpiece, byte_bpe):
    records = [
        tagged("call call", document="a"),
        tagged("peter", document="a"),
        tagged("german call peter call", document="a"),
        tagged("rejects", document="b"),
    ]
    windows = encode_tagged(records, wordpiece, LABELS, 8, "document")
    assert [" ".join(wordpiece.convert_ids_to_tokens(w.ids)) for w in windows] == [
        "[CLS] call call [SEP] peter [SEP]",
        "[CLS] german call peter call [SEP]",
        "[CLS] rejects [SEP]",
    ]
    assert windows[0].targets == [-100, 0, 0, -100, 0, -100]
    assert windows[0].owners == [(0, 0), (0, 1), (1, 0)]
    # One token less, and the separator no longer fits: the limit counts it.
    assert [len(w.ids) for w in encode_tagged(records[:2], wordpiece, LABELS, 6, "document")] == [6]
    assert [len(w.ids) for w in encode_tagged(records[:2], wordpiece, LABELS, 5, "document")] == [4, 3]
    windows = encode_tagged(records, byte_bpe, LABELS, 64, "document")
    assert [byte_bpe.decode(w.ids) for w in windows] == ["call call\npeter\ngerman call peter call", "rejects"]
    assert len(encode_tagged(records, wordpiece, LABELS, 64, "sentence")) == 4


@pytest.mark.parametrize("context", ["sentence", "document"])
@pytest.mark.parametrize("max_tokens", [3, 5, 9, 64])
def test_nothing_is_lost_at_any_window(wordpiece, byte_bpe, context, max_tokens):
    records = [tagged("the " * i + "call peter", document=f"d{i // 3}", number=i) for i in range(12)]
    for tokenizer in (wordpiece, byte_bpe):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DataWarning)
            windows = encode_tagged(records, tokenizer, LABELS, max_tokens, context)
        assert max(len(w.ids) for w in windows) <= max_tokens
        assert all(len(targets(w)) == len(w.ids) for w in windows)
        assert all(sum(t != -100 for t in targets(w)) == len(w.owners) for w in windows)
        owners = [owner for w in windows for owner in w.owners]
        assert owners == [(i, j) for i, record in enumerate(records) for j in range(len(record.words))]


def test_cutting_is_told(wordpiece):
    with pytest.warns(DataWarning, match="1 of 2 records are over 5 tokens and were cut between words"):
        encode_tagged([tagged("call call call call"), tagged("call")], wordpiece, LABELS, 5)
    with pytest.warns(DataWarning) as told:
        (window,) = encode_tagged([tagged("abcdef", "B-X")], wordpiece, LABELS, 5)
    assert "1 words are over 3 tokens each and lost their ends" in str(told[1].message)
    assert window.targets == [-100, 1, -100, -100, -100]


def test_a_word_without_tokens_becomes_unknown(wordpiece):
    (window,) = encode_tagged([tagged("call \u200b call", "O B-X O")], wordpiece, LABELS, 16)
    assert wordpiece.convert_ids_to_tokens(window.ids) == ["[CLS]", "call", "[UNK]", "call", "[SEP]"]
    assert window.targets == [-100, 0, 1, 0, -100]


def test_bad_arguments(wordpiece):
    with pytest.raises(InputError, match=r"label 'B-Y' of r0 is not among the model's \(O, B-X, I-X\)"):
        encode_tagged([tagged("call", "B-Y")], wordpiece, LABELS, 16)
    with pytest.raises(InputError, match="max_tokens 2 leaves no room"):
        encode_tagged([tagged("call")], wordpiece, LABELS, 2)


def test_frames(wordpiece, byte_bpe):
    cls, sep, unk = wordpiece.convert_tokens_to_ids(["[CLS]", "[SEP]", "[UNK]"])
    frame = frame_of(wordpiece)
    assert (frame.prefix, frame.suffix, frame.between, frame.spaced, frame.unknown) == ([cls], [sep], [sep], False, unk)
    frame = frame_of(byte_bpe)
    assert (frame.prefix, frame.suffix, frame.spaced) == ([], [], True)
    assert byte_bpe.decode(frame.between) == "\n"


def test_labelled_single_and_pair(wordpiece, byte_bpe):
    records = [labelled("call"), labelled("call peter", "german", "no"), labelled("peter")]
    single, pair, last = encode_labelled(records, wordpiece, {"yes": 1, "no": 0}, 16)
    assert wordpiece.convert_ids_to_tokens(pair.ids) == ["[CLS]", "call", "peter", "[SEP]", "german", "[SEP]"]
    assert pair.segments == [0, 0, 0, 0, 1, 1]
    assert (single.segments, [w.targets for w in (single, pair, last)]) == (None, [1, 0, 1])
    assert [w.owners for w in (single, pair, last)] == [[(0, 0)], [(1, 0)], [(2, 0)]]
    assert byte_bpe.decode(encode_labelled(records, byte_bpe, None, 32)[1].ids) == "call peter\ngerman"
    assert encode_labelled(records, byte_bpe, None, 32)[1].targets is None


def test_labelled_is_cut_and_counted(wordpiece):
    records = [labelled("call call call call"), labelled("call"), labelled("call call call", "peter")]
    with pytest.warns(DataWarning, match="2 of 3 texts are over 5 tokens and lost their ends"):
        windows = encode_labelled(records, wordpiece, {"yes": 0}, 5)
    tokens = [" ".join(wordpiece.convert_ids_to_tokens(w.ids)) for w in windows]
    assert tokens == ["[CLS] call call call [SEP]", "[CLS] call [SEP]", "[CLS] call [SEP] peter [SEP]"]
    with pytest.raises(InputError, match="max_tokens 3 leaves no room"):
        encode_labelled(records, wordpiece, {"yes": 0}, 3)


def test_text_windows_are_the_protocol(byte_bpe):
    records = [Text(f"r{i}", f"r{i}", text) for i, text in enumerate(["call the call", "é 🙂 浙", "the the", "x" * 9])]
    whole = byte_bpe("\n\n".join(record.text for record in records))["input_ids"]
    windows = encode_text(records, byte_bpe, 4)
    assert [w.ids for w in windows] == [whole[i : i + 4] for i in range(0, len(whole) - 3, 4)]
    assert all(w.targets is None for w in windows)
    starts = [w.owners[0][0] for w in windows]
    assert starts == sorted(starts)
    assert starts[0] == 0
    assert starts[-1] == 3


@given(
    st.lists(st.text("the call\né🙂浙x", min_size=1, max_size=12), min_size=1, max_size=6),
    st.integers(2, 6),
    st.booleans(),
)
def test_bytes_of_a_window_are_those_of_its_predicted_tokens(byte_bpe, texts, window, bos):
    records = [Text(f"r{i}", f"r{i}", text) for i, text in enumerate(texts)]
    try:
        windows = encode_text(records, byte_bpe, window, bos=bos)
    except InputError:
        return
    joined = "\n\n".join(texts)
    total = 0
    for found in windows:
        # Every token of byte-level BPE has one character a byte, so the exact count is known.
        exact = sum(map(len, byte_bpe.convert_ids_to_tokens(found.ids[1:])))
        size = sum(found.bytes)
        assert abs(size - exact) <= 3  # a character of four bytes may lie across the edge
        total += size
        assert sum(tokens for _, tokens in found.owners) == len(found.ids) - 1
        assert len(found.owners) == len(found.bytes)
        if bos:
            assert found.ids[0] == byte_bpe.bos_token_id
    if bos:
        covered = sum(len(found.ids) - 1 for found in windows)
        ids = byte_bpe(joined)["input_ids"]
        exact = sum(map(len, byte_bpe.convert_ids_to_tokens(ids[:covered])))
        assert abs(total - exact) <= 3


def test_bytes_are_exact_in_ascii_and_tokens_belong_to_the_document_they_stand_in(byte_bpe):
    records = [Text("a", "a", "the the call"), Text("b", "b", "the call")]
    # the | Ġthe | Ġcall | \n | \n | the | Ġcall
    windows = encode_text(records, byte_bpe, 3)
    assert [byte_bpe.decode(w.ids) for w in windows] == ["the the call", "\n\nthe"]
    assert [(w.bytes, w.owners) for w in windows] == [((9,), [(0, 2)]), ((4,), [(1, 2)])]
    begun = encode_text(records, byte_bpe, 3, bos=True)
    assert [(w.bytes, w.owners) for w in begun] == [((7,), [(0, 2)]), ((5, 1), [(0, 1), (1, 1)]), ((4,), [(1, 2)])]
    assert [(w.bytes, w.owners) for w in encode_text(records, byte_bpe, 7)] == [((9, 10), [(0, 2), (1, 4)])]


def test_text_windows_refuse_what_cannot_be(byte_bpe, wordpiece):
    records = [Text("r", "r", "call")]
    with pytest.raises(InputError, match="1 tokens of text do not fill one window of 2"):
        encode_text([Text("r", "r", "the")], byte_bpe, 2)
    with pytest.raises(InputError, match="window 1 is below 2"):
        encode_text(records, byte_bpe, 1)
    with pytest.raises(InputError, match="no beginning-of-sequence token"):
        encode_text(records, wordpiece, 2, bos=True)


def test_text_is_parted_into_blocks_only_between_records(byte_bpe, monkeypatch):
    records = [Text(f"r{i}", f"r{i}", "the call x" * 3) for i in range(20)]
    once = encode_text(records, byte_bpe, 8)
    monkeypatch.setattr("chinchilla_lm.data.windows.BLOCK_CHARACTERS", 70)
    parted = encode_text(records, byte_bpe, 8)
    assert [(w.ids, w.owners, w.bytes) for w in parted] == [(w.ids, w.owners, w.bytes) for w in once]
