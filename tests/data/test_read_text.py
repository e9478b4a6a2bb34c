from __future__ import annotations

import zipfile

import pytest

from chinchilla_lm.data.text import marked_documents, pieces, read_text
from chinchilla_lm.errors import InputError

# WikiText ends every line with a space, blank ones too.
WIKI = """
 = First =

 Text one .
 = Not a title , for it stands in a paragraph =
 more .

 = = Section = =

 Text two .

 = Second ( song ) =

 Text three .
""".replace("\n", " \n")


def test_wikitext_is_cut_at_titles_only(write):
    records = read_text([write("wiki.test.raw", WIKI)]).records
    assert [record.id for record in records] == ["wiki.test.raw#0", "wiki.test.raw#1"]
    assert "Section" in records[0].text
    assert records[0].text.startswith("\n\n = First = \n\n\n\n\n Text one")


def test_the_articles_of_wikitext_join_to_the_text_of_the_published_protocol(write):
    # The data set's rows: a line with its line end, or nothing for a blank line. Joined by an empty line.
    rows = [line + "\n" if line.strip() else "" for line in WIKI.removesuffix("\n").split("\n")]
    records = read_text([write("wiki.test.raw", WIKI)]).records
    assert "\n\n".join(record.text for record in records) == "\n\n".join(rows)


def test_other_marks():
    assert marked_documents('<doc id="1" title="a">\nA\n</doc>\n<doc id="2" title="b">\nB\n</doc>\n') == [
        "A\n\n",
        "B\n\n",
    ]
    assert marked_documents("one\n<|endoftext|>\ntwo") == ["one\n", "\ntwo"]
    assert marked_documents("no = marks = here") is None


def test_pieces_hold_every_paragraph_once_and_are_about_the_size():
    paragraphs = [f"{i} " + "x" * (i * 37 % 400) for i in range(60)]
    found = pieces("\n\n".join(paragraphs), 1000)
    assert "\n\n".join(found).split("\n\n") == paragraphs
    assert all(len(piece) + 2 >= 1000 and len(piece) < 1000 + 404 for piece in found[:-1])
    assert pieces("a\nb\nc\nd", 3) == ["a\nb", "c\nd"]  # no blank line: between lines


def test_ten_files_are_documents_and_nine_are_cut(tmp_path):
    text = "\n\n".join("y" * 1500 for _ in range(4))
    paths = []
    for i in range(10):
        paths.append(tmp_path / f"{i}.txt")
        paths[-1].write_text(f"{i} {text}")
    assert [record.id for record in read_text(paths).records] == [f"{i}.txt" for i in range(10)]
    assert len(read_text(paths[:9]).records) == 18


def test_archives(tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/b.txt", "B")
        archive.writestr("a/a.txt", "Ä".encode("latin-1"))
        archive.writestr("a/README.txt", "no data")
        archive.writestr("a/c.png", "no text")
    reading = read_text([path])
    assert [(r.id, r.text) for r in reading.records] == [("a.zip/a/a.txt", "Ä"), ("a.zip/a/b.txt", "B")]
    assert reading.notes == ["a.zip/a/a.txt is not UTF-8 and was read as Windows-1252"]
    path.write_bytes(b"PK no archive")
    with pytest.raises(InputError, match="cannot be read"):
        read_text([path])


def test_an_archive_that_unpacks_to_more_than_memory_should_hold_is_not_unpacked(tmp_path, monkeypatch):
    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.txt", b"a" * 600)
        archive.writestr("b.txt", b"b" * 400)
        archive.writestr("c.png", b"not read" * 1000)
    monkeypatch.setattr("chinchilla_lm.data.text.UNPACKED_UP_TO", 1000)
    assert len(read_text([path]).records) == 2
    monkeypatch.setattr("chinchilla_lm.data.text.UNPACKED_UP_TO", 999)
    monkeypatch.setattr(zipfile.ZipFile, "read", lambda *_: pytest.fail("unpacked"))
    with pytest.raises(InputError, match=r"bomb\.zip unpacks to 1,000 bytes, more than 999; unpack it and pass"):
        read_text([path])


def test_wikitext2(real):
    reading = read_text([real("wikitext2") / "wiki.test.raw"])
    assert len(reading.records) == 60  # Merity et al. 2016, table 1: 60 articles
    assert reading.records[0].text.startswith("\n\n = Robert Boulter =")
    tokens = read_text([real("wikitext2") / "wiki.test.tokens"])
    # 245,569 tokens with one <eos> a line, of which there are 4,358.
    assert sum(len(record.text.split()) for record in tokens.records) == 245569 - 4358


def test_titles_without_blanks_around_them_cut_but_do_not_part_the_lines(write):
    text = "= Guide =\n\nA paragraph that is\nwrapped.\n\n= Second =\n\nMore.\n"
    found = [record.text for record in read_text([write("guide.txt", text)]).records]
    assert found == ["= Guide =\n\nA paragraph that is\nwrapped.", "= Second =\n\nMore."]


def test_a_text_of_nothing_but_marks(write):
    with pytest.raises(InputError, match="holds no text between its marks"):
        read_text([write("marks.txt", "<|endoftext|>\n")])
