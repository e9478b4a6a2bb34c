"""JSON, spans and tables: everything that has named fields."""

from __future__ import annotations

import gzip
import json
import lzma

import pytest

from chinchilla_lm.data.jsonl import read_jsonl
from chinchilla_lm.data.layouts import read_file, require_usable
from chinchilla_lm.data.records import BadRecord, Labelled, Tagged, Text
from chinchilla_lm.data.rows import Columns
from chinchilla_lm.data.spans import tag_spans
from chinchilla_lm.data.table import read_at_lines, read_table
from chinchilla_lm.data.words import words_of
from chinchilla_lm.errors import InputError


def lines(*rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def test_tokens_and_tags_in_iob1_become_bio(write):
    path = write(
        "a.jsonl", lines({"tokens": ["A", "B"], "ner_tags": ["I-X", "B-X"]}, {"tokens": ["C"], "ner_tags": ["O"]})
    )
    records = read_jsonl(path, "token-classification").records
    assert records[0] == Tagged("a.jsonl:1", "a.jsonl:1", ("A", "B"), ("B-X", "B-X"))
    assert records[1].tags == ("O",)


def test_unequal_lengths_and_numbers_are_skipped(write):
    rows = lines(
        {"words": ["A", "B"], "tags": ["O"]}, {"words": ["A"], "tags": [3]}, {"words": [], "tags": []}, {"words": ["A"]}
    )
    reading = read_jsonl(write("a.json", rows + "{broken\n"), "token-classification")
    assert reading.records == []
    assert [item.where for item in reading.skipped] == ["a.json:5", "a.json:1", "a.json:2", "a.json:3", "a.json:4"]
    assert "2 words but 1 tags" in reading.skipped[1].why
    with pytest.raises(InputError, match=r"5 of 5 records of a.json cannot be used.*not a JSON object"):
        require_usable(reading)


@pytest.mark.parametrize("pack", [gzip.compress, lzma.compress])
def test_array_and_compression(tmp_path, pack):
    path = tmp_path / ("a.jsonl.gz" if pack is gzip.compress else "a.jsonl.xz")
    path.write_bytes(pack(json.dumps([{"text": " one "}, {"text": "two"}, 7]).encode()))
    reading = read_jsonl(path, "language-modeling")
    assert reading.records == [Text(f"{path.name}:{i}", f"{path.name}:{i}", t) for i, t in ((1, "one"), (2, "two"))]
    assert reading.skipped[0].why == "'7' is a int"


def test_classification_with_pairs_numbers_and_no_label(write):
    rows = lines(
        {"sentence": "one", "label": 3, "text_pair": "other"},
        {"sentence": "two", "label": 3.0, "text_pair": None},
        {"sentence": "three", "label": None},
        {"sentence": "  ", "label": "x"},
    )
    reading = read_jsonl(write("a.jsonl", rows), "text-classification")
    assert [(r.text, r.pair, r.label) for r in reading.records] == [("one", "other", "3"), ("two", None, "3")]
    assert [item.why for item in reading.skipped] == ["no label in 'label'", "no text in 'sentence'"]


def test_ranking_groups_by_query_and_wants_numbers(write):
    rows = lines(
        {"query": "q", "passage": "a", "score": 1},
        {"query": "q", "passage": "b", "score": 0.5},
        {"query": "r", "passage": "c", "score": "high"},
    )
    reading = read_jsonl(write("a.jsonl", rows), "ranking")
    assert [(r.document, r.pair, r.label) for r in reading.records] == [
        ("a.jsonl:1", "a", "1"),
        ("a.jsonl:1", "b", "0.5"),
    ]
    assert reading.skipped[0].why == "relevance 'high' is not a number"


def test_split_words():
    def words(text):
        return [text[a:b] for a, b in words_of(text)]

    assert words("U.S. Q3 sales, up 5%") == ["U.S.", "Q3", "sales", ",", "up", "5", "%"]
    assert words("星际2无力GSL A级") == ["星", "际", "2", "无", "力", "GSL", "A", "级"]
    assert words("魔兽3a_b") == ["魔", "兽", "3", "a", "_", "b"]
    assert words("naïve café") == ["naïve", "café"]


def test_cluener_and_generic_spans(write):
    rows = lines(
        {"text": "浙商银行的叶老桂", "label": {"name": {"叶老桂": [[5, 7]]}, "company": {"浙商银行": [[0, 3]]}}},
        {"text": "Angela Merkel met Siemens.", "entities": [{"start": 0, "end": 13, "label": "PER"}]},
        {"text": "Angela Merkel", "entities": [{"start": 0, "end": 9, "label": "PER"}]},
        {"text": "Ab Cd", "entities": [{"start": 0, "end": 5, "label": "X"}, {"start": 3, "end": 5, "label": "Y"}]},
        {"text": "浙商", "label": {"name": {"商": [[0, 0]]}}},
        {"text": "no spans at all"},
        {"text": "Ab", "entities": [{"start": 0, "end": 3, "label": "X"}]},
    )
    reading = read_jsonl(write("a.json", rows), "token-classification")
    chinese, english = reading.records
    assert chinese.words == tuple("浙商银行的叶老桂")
    assert chinese.tags == (*["B-company", *["I-company"] * 3], "O", "B-name", "I-name", "I-name")
    assert english.words == ("Angela", "Merkel", "met", "Siemens", ".")
    assert english.tags == ("B-PER", "I-PER", "O", "O", "O")
    for item, why in zip(
        reading.skipped, ["word bound", "overlaps", "is not '商'", "neither", "not inside"], strict=True
    ):
        assert why in item.why


def test_the_same_span_twice_is_one_entity_and_touching_spans_are_two():
    assert tag_spans("ab cd", [(0, 2, "X"), (0, 2, "X"), (3, 5, "X")]) == (("ab", "cd"), ("B-X", "B-X"), 0)
    with pytest.raises(BadRecord, match="overlaps"):
        tag_spans("ab cd", [(0, 2, "X"), (0, 2, "Y")])


def test_cluener(real):
    for name, usable, skipped in (("train.json", 10730, 18), ("dev.json", 1338, 5)):
        reading = read_jsonl(real("cluener2020") / name, "token-classification")
        assert (len(reading.records), len(reading.skipped)) == (usable, skipped)  # 10,748 and 1,343 lines
    entities = sum(tag[0] == "B" for record in reading.records for tag in record.tags)
    assert 3055 <= entities <= 3072  # the paper's 3,072 less those of the five skipped texts


@pytest.mark.parametrize("delimiter", [",", "\t", ";"])
def test_delimiters_quotes_and_line_breaks(write, delimiter):
    text = 'Text|Price Sentiment\n"one| ""two"""|up\n"a\nb"|down\nc|up\n'
    reading = read_table(write("a.csv", text.replace("|", delimiter)), "text-classification")
    assert [(r.id, r.text, r.label) for r in reading.records] == [
        ("a.csv:2", f'one{delimiter} "two"', "up"),
        ("a.csv:4", "a\nb", "down"),
        ("a.csv:5", "c", "up"),
    ]


def test_a_tab_file_that_quotes_nothing(write):
    text = 'sentence\tlabel\n"half a quote\t1\nplain\t0\n5" screen\t1\n"again\t0\n'
    reading = read_table(write("train.tsv", text), "text-classification")
    assert [r.text for r in reading.records] == ['"half a quote', "plain", '5" screen', '"again']
    assert reading.notes == ["train.tsv: quotation marks are taken as text"]


def test_latin1_is_read_and_noted(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes("text,label\nVäderstad växer,pos\n".encode("latin-1"))
    reading = read_table(path, "text-classification")
    assert reading.records[0].text == "Väderstad växer"
    assert reading.notes == ["a.csv is not UTF-8 and was read as Windows-1252"]


def test_columns_that_are_missing_or_not_clear(write):
    path = write("a.csv", "id,emo_label,senti_label,original\n1,a,b,c\n")
    with pytest.raises(InputError, match=r"no text column among id, emo_label, senti_label, original.*--text-column"):
        read_table(path, "text-classification")
    with pytest.raises(InputError, match=r"columns emo_label, senti_label could each be the label"):
        read_table(path, "text-classification", Columns(text="original"))
    with pytest.raises(InputError, match=r"column 'nope' is not in a.csv"):
        read_table(path, "text-classification", Columns(text="nope"))
    reading = read_table(path, "text-classification", Columns(text="original", label="senti_label"))
    assert (reading.records[0].text, reading.records[0].label) == ("c", "b")


def test_groups_and_times(write):
    text = "date,group,text,label\n13/5/2019,g1,a,x\n6/9/2017,g1,b,x\n0201-04-27,g2,c,x\n"
    reading = read_table(write("a.csv", text), "text-classification")
    assert [(r.document, r.time) for r in reading.records] == [("g1", "2019-05-13"), ("g1", "2017-09-06"), ("g2", None)]
    assert reading.has_documents
    assert reading.notes == ["a.csv: 1 of 3 records have no readable 'date'"]


def test_a_label_for_each_entity(write):
    text = (
        "Title,Decisions\nGold up; Silver down,\"{'Gold': 'positive', 'Silver': 'negative'}\"\nBad,{'Osian's': 'x'}\n"
    )
    reading = read_table(write("a.csv", text), "text-classification")
    assert reading.records == [
        Labelled("a.csv:2#0", "a.csv:2", None, "Gold up; Silver down", "Gold", "positive"),
        Labelled("a.csv:2#1", "a.csv:2", None, "Gold up; Silver down", "Silver", "negative"),
    ]
    assert reading.skipped[0].where == "a.csv:3"
    assert reading.has_documents


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig", "utf-8"])
def test_a_table_that_excel_saved_as_unicode_text(tmp_path, encoding):
    path = tmp_path / "train.txt"
    path.write_bytes(
        "".join(f"{i}\tgut € {i}@x\tl{i % 2}\r\n" for i in range(9)).join(["id\ttext\tlabel\r\n", ""]).encode(encoding)
    )
    for named in (Columns(), Columns(text="text", label="label")):
        records = read_file(path, "text-classification", named).records
        assert [(record.text, record.label) for record in records] == [(f"gut € {i}@x", f"l{i % 2}") for i in range(9)]
    path.write_text("Sales\trose@positive\nfell@negative\n")
    assert [record.label for record in read_file(path, "text-classification", Columns()).records] == [
        "positive",
        "negative",
    ]


def test_at_lines(write):
    reading = read_at_lines(write("a.txt", "Sales rose @ home .@positive\n1\nno label@\n@neutral\nx@two words\n"))
    assert [(r.text, r.label) for r in reading.records] == [("Sales rose @ home .", "positive")]
    assert [item.where for item in reading.skipped] == ["a.txt:2", "a.txt:3", "a.txt:4", "a.txt:5"]
