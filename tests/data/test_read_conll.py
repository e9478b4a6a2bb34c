from __future__ import annotations

import pytest

from chinchilla_lm.data.conll import read_conll
from chinchilla_lm.data.records import Skipped, Tagged
from chinchilla_lm.errors import InputError

IOB1 = """-DOCSTART- -X- O O

EU NNP I-NP I-ORG
rejects VBZ I-VP O
German JJ I-NP I-MISC

Peter NNP I-NP I-PER
Blackburn NNP I-NP I-PER

-DOCSTART- -X- O O

BRUSSELS NNP I-NP I-LOC
Bonn NNP I-NP B-LOC
"""


def test_columns_documents_and_iob1(write):
    reading = read_conll(write("eng.train", IOB1))
    assert reading.has_documents
    assert reading.records == [
        Tagged("eng.train:3", "eng.train#1", ("EU", "rejects", "German"), ("B-ORG", "O", "B-MISC")),
        Tagged("eng.train:7", "eng.train#1", ("Peter", "Blackburn"), ("B-PER", "I-PER")),
        Tagged("eng.train:12", "eng.train#2", ("BRUSSELS", "Bonn"), ("B-LOC", "B-LOC")),
    ]


def test_without_docstart_every_sentence_is_a_document(write):
    reading = read_conll(write("a.conll", "A B-X\n\nB O\n \t\nC\tO"))
    assert not reading.has_documents
    assert [record.document for record in reading.records] == ["a.conll:1", "a.conll:3", "a.conll:5"]


def test_bad_sentences_are_skipped_whole_with_their_line(write):
    text = "A x B-PER\nB x I-PER\n\nC x\nD x O\n\nE x I-LOC\n\nF x O\nG O\n\nH x B-PER\nI x I-PER\n"
    reading = read_conll(write("a.bio", text))
    assert [record.words for record in reading.records] == [("A", "B"), ("H", "I")]
    assert reading.skipped == [
        Skipped("a.bio:4", "line 4 has 2 columns where the file has 3"),
        Skipped("a.bio:9", "line 10 has 2 columns where the file has 3"),
        Skipped("a.bio:7", "tag 'I-LOC' after 'the start' is illegal in BIO"),
    ]


def test_comments_are_left_out_and_the_word_hash_is_kept(write):
    reading = read_conll(write("a.conll", "# id 17 domain=train\n# 2\nA _ _ B-X\n\n# _ _ O\nB _ _ O\n"))
    assert [record.words for record in reading.records] == [("A",), ("#", "B")]


def test_a_no_break_space_does_not_part_columns_and_crlf_is_no_column(write):
    reading = read_conll(write("a.conll", "10\u00a0000 O\r\nEuro O\r\n"))
    assert reading.records[0].words == ("10\u00a0000", "Euro")
    assert reading.records[0].tags == ("O", "O")


def test_empty_and_missing_files_say_so(write, tmp_path):
    with pytest.raises(InputError, match="is empty"):
        read_conll(write("a.conll", "\n \n"))
    with pytest.raises(InputError, match="cannot be read"):
        read_conll(tmp_path / "none.conll")


@pytest.mark.parametrize(("name", "sentences", "words"), [("eng.train", 14041, 203621), ("eng.testa", 3250, 51362)])
def test_conll2003(real, name, sentences, words):
    reading = read_conll(real("conll2003") / name)
    assert (len(reading.records), sum(len(r.words) for r in reading.records)) == (sentences, words)
    assert reading.skipped == []


def test_conll2003_testb_entities(real):
    reading = read_conll(real("conll2003") / "eng.testb")
    assert (len(reading.records), sum(len(r.words) for r in reading.records)) == (3453, 46435)
    # Tjong Kim Sang & De Meulder 2003, table 2: 1,668 LOC, 702 MISC, 1,661 ORG, 1,617 PER.
    tags = [tag for record in reading.records for tag in record.tags]
    assert [tags.count(f"B-{kind}") for kind in ("LOC", "MISC", "ORG", "PER")] == [1668, 702, 1661, 1617]
    assert len({record.document for record in reading.records}) == 231
