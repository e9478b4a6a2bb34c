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


GERMEVAL = "#\thttp://de.wikipedia.org [2009-10-17]\n1\tSchartau\tB-PER\tO\n2\tsagte\tO\tO\n3\tBayern\tB-ORG\tB-LOC\n\n"
UNER = (
    "# sent_id = 1\n# text = Angela zum Merkel\n1\tAngela\tB-PER\t-\tanna\n2-3\tzum\t_\t-\tanna\n2\tzu\tO\t-\tanna\n"
    "3\tdem\tO\t-\tanna\n3.1\tx\t_\t-\tanna\n4\tMerkel\tB-PER\t-\tanna\n\n"
)
CONLLU = (
    "# newdoc id = a\n# text = nos vemos.\n"
    "1-2\tvemonos\t_\t_\t_\t_\t_\t_\t_\t_\n"
    "1\tvemos\tver\tVERB\t_\t_\t0\troot\t_\t_\n"
    "2\tnos\tnos\tPRON\t_\t_\t1\tobj\t_\tSpaceAfter=No\n"
    "2.1\tx\tx\tVERB\t_\t_\t_\t_\t_\t_\n"
    "3\t.\t.\tPUNCT\t_\t_\t1\tpunct\t_\t_\n\n"
)


def numbered(i, *rows):
    return "".join(" ".join(row).format(i=i) + "\n" for row in rows) + "\n"


def read(write, text, *columns):
    return read_conll(write("a.conll", text), *columns)


@pytest.mark.parametrize(
    ("text", "words", "tags"),
    [
        (UNER * 3, "Angela zu dem Merkel", "B-PER O O B-PER"),
        ("en:Angela\tB-PER\nen::\tO\n\nen:Merkel\tO\n", "Angela :", "B-PER O"),
        ("en:Angela\tB-PER\nde:ging\tO\n\nzh-yue:x\tO\n", "Angela ging", "B-PER O"),
        ("B-PER\tAngela\nO\twent\n", "Angela went", "B-PER O"),
        ("Angela B-PER NNP\nwent O VBD\n", "Angela went", "B-PER O"),
        ("Angela NNP B-NP B-PER\nwent VBD B-VP O\n", "Angela went", "B-PER O"),
        ("1 Angela NNP B-NP B-PER\n2 went VBD B-VP O\n", "Angela went", "B-PER O"),
        ("0 Angela B-PER\n1 went O\n\n2 home O\n", "Angela went", "B-PER O"),
        ("word\tpos\tner\nAngela\tNNP\tB-PER\nwent\tVBD\tO\n", "Angela went", "B-PER O"),
        ("token\tlabel\tpos\nAngela\tB-PER\tNNP\nwent\tO\tVBD\n", "Angela went", "B-PER O"),
        ("New York\tB-LOC\nrose\tO\n", "New York|rose", "B-LOC O"),
        ("#love\tO\n#\tO\nYork\tB-LOC\n", "#love # York", "O O B-LOC"),
        ("# 12\n# text = York\nYork\tB-LOC\n", "York", "B-LOC"),
        ("Angela NNP\nwent VBD\n", "Angela went", "NNP VBD"),
        (
            "#begin document (nw/x); part 000\n"
            + "".join(
                numbered(i, ("nw/x", "0", "0", "Bob{i}", "-", "B-PER", "-"), ("nw/x", "0", "1", "ran", "-", "O", "-"))
                + numbered(i, *(("nw/x", "0", str(k), f"w{k}", "-", "O", "-") for k in range(3)))
                for i in range(3)
            )
            + "#end document\n",
            "Bob0 ran",
            "B-PER O",
        ),
    ],
)
def test_words_are_words_and_tags_are_tags_wherever_they_stand(write, text, words, tags):
    first = read(write, text).records[0]
    assert first.words == tuple(words.split("|") if "|" in words else words.split())
    assert first.tags == tuple(tags.split())


def test_what_is_chosen_and_left_out_is_said(write):
    reading = read(write, UNER * 3)
    assert reading.notes == [
        "a.conll: words are from column 2 of 5, tags from 3",
        "a.conll: 6 lines of ranges and empty nodes, as 1-2 and 1.1, left out",
    ]
    assert not reading.skipped


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (
            GERMEVAL * 3,
            r"columns 3 and 4 could .*; pass --text-column .* 3 \(B-PER B-ORG O\), 4 \(B-LOC O\)",
        ),
        (GERMEVAL.replace("B-LOC", "O") * 3, "columns 3 and 4 could each be the tags"),
        (CONLLU * 3, r"no column is plainly the tags; .*4 upos \(VERB PRON PUNCT\)"),
        ("Angela NNP B-PER B-PER\nwent VBD O B-PER\n", "columns 3 and 4 could each be the tags"),
        ("Angela NNP B-NP B_PER\nwent VBD O O\n", "columns 3 and 4 could each be the tags"),
        ("1 NNP\n2 VBD\n\n1 VBD\n", "no column is plainly the (tags|words)"),
        ("1 Angela NNP\n2 went VBD\n\n1 went VBD\n", "no column is plainly the tags"),
        ("1 B-PER\n2 O\n\n1 O\n", "no column is plainly the words"),
        ("Angela NNP _\nwent VBD _\n", "no column is plainly the tags"),
        ("Angela\nwent\n", "has 1 column; a word and a tag"),
        ("Angela _\nwent _\n", "has no tags: column 2 holds nothing but '_'"),
    ],
)
def test_what_is_not_plain_is_refused_with_the_columns(write, text, why):
    with pytest.raises(InputError, match=why):
        read(write, text)


def test_columns_by_number_and_by_name(write):
    outer = read(write, GERMEVAL * 3, None, "3").records[0]
    assert (outer.words, outer.tags) == (("Schartau", "sagte", "Bayern"), ("B-PER", "O", "B-ORG"))
    parts = read(write, CONLLU * 3, None, "UPOS")
    assert parts.records[0].words == ("vemos", "nos", ".")
    assert parts.records[0].tags == ("VERB", "PRON", "PUNCT")
    assert [record.document for record in parts.records] == ["a.conll#1", "a.conll#2", "a.conll#3"]
    assert read(write, CONLLU, "lemma", "4").records[0].words == ("ver", "nos", ".")
    with pytest.raises(InputError, match=r"a.conll has the columns id, form, .*from 1 to 10, not 'pos'"):
        read(write, CONLLU, None, "pos")
    for wrong in ("0", "3", "word"):
        with pytest.raises(InputError, match=rf"a.conll names no columns; .* from 1 to 2, not '{wrong}'"):
            read(write, "A B-X\nB O\n", wrong)
    with pytest.raises(InputError, match="column 2 cannot be both"):
        read(write, "A B-X\nB O\n", "2")
