"""Delimited text: RFC 4180 as Python's csv module reads it, and quotation marks that pair with nothing."""

from __future__ import annotations

import csv
import io
import random

import pytest

from chinchilla_lm.data.delimited import parse
from chinchilla_lm.data.load import load_dataset
from chinchilla_lm.data.table import read_table
from chinchilla_lm.errors import InputError

WORDS = ["word", "the", '"quoted"', '5"', "x,y", "semi;", "tab\t", "p|q", "it's", "\\"]


def fields(text):
    return [record.fields for record in parse(text, "a.csv").records]


def rows_of(count, *more, start=0):
    """A table of numbered texts with two labels; `more`: rows that take the place of some."""
    rows = [f"product number {i},{'pos' if i % 2 else 'neg'}" for i in range(start, start + count)]
    for place, row in more:
        rows[place] = row
    return "text,label\n" + "\n".join(rows) + "\n"


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
def test_what_the_csv_module_writes_is_read_back(delimiter, quoting):
    source = random.Random(0)
    for _ in range(60):
        columns, share = source.choice([2, 3, 4]), source.choice([0, 0.3])
        rows = []
        for i in range(source.choice([3, 20, 40])):
            texts = [" ".join(source.choices(WORDS, k=source.randint(1, 6))) for _ in range(1 + columns // 4)]
            if source.random() < share:
                texts = [text.replace(" ", "\n", 3) for text in texts]
            rows.append([str(i)] * (columns > 2) + texts + [source.choice(["pos", "neg"])])
        out = io.StringIO()
        writer = csv.writer(out, delimiter=delimiter, quoting=quoting, lineterminator="\n")
        writer.writerows([[f"c{i}" for i in range(columns)], *rows])
        assert fields(out.getvalue()) == rows


def test_a_stray_mark_swallows_nothing():
    text = rows_of(
        1000,
        (100, '"Wow" is all I can say,pos'),
        (300, '"5 inch screen is small,neg'),
        (520, '"great deal,pos'),
        (700, '"an open one,neg'),
        (800, 'the new 5",pos'),  # would close it by the letter of the RFC
        (900, '"never closed,pos'),
    )
    table = parse(text, "a.csv")
    assert len(table.records) == 1000
    assert [table.records[i].fields for i in (100, 300, 701)] == [
        ['"Wow" is all I can say', "pos"],
        ['"5 inch screen is small', "neg"],
        ["product number 701", "pos"],
    ]
    assert table.notes == ["a.csv: 5 rows have quotation marks that do not pair, taken as text, the first in line 102"]


def test_lines_that_look_like_rows_stay_in_their_field_where_their_columns_do_not_fit():
    poem = '"Roses are red,\nviolets are blue,\nsugar is sweet,\nand so, are\nyou are, too,\nmy, dear"'
    assert fields(rows_of(40, (7, f"{poem},pos")))[7] == [poem.strip('"'), "pos"]
    story = "Once\n" + "\n".join(f"A paragraph, number {i}." for i in range(49))  # each line has two fields
    books = io.StringIO()
    csv.writer(books, lineterminator="\n").writerows([["title", "text"], *([f"Title {i}", story] for i in range(9))])
    table = parse(books.getvalue(), "a.csv")
    assert [record.fields for record in table.records] == [[f"Title {i}", story] for i in range(9)]
    assert table.notes == ["a.csv: the longest row in quotation marks has 50 lines, 2 to 51"]


@pytest.mark.parametrize(
    ("line", "row"),
    [
        (r'"he said \"no, never\" and left",pos', ['he said "no, never" and left', "pos"]),
        (r'"C:\",pos', ["C:\\", "pos"]),
        ('"5" screen, small",pos', ['5" screen, small', "pos"]),
        ('"he said "wow"",pos', ['he said "wow"', "pos"]),
        ('"", ', None),
        ('"a" , "b, c"', ["a", "b, c"]),
        ('"never closed,"pos"', ['"never closed', "pos"]),
        ('plain 5" and 6",pos', ['plain 5" and 6"', "pos"]),
    ],
)
def test_marks_within_a_line(line, row):
    assert fields(f"text,label\n{line}\nx,y\n") == [*([row] if row else []), ["x", "y"]]


def test_a_small_table_tells_rows_from_lines_too():
    assert fields('text,label\n"5 inch,neg\ngood,pos\nthe new 5",neg\n') == [
        ['"5 inch', "neg"],
        ["good", "pos"],
        ['the new 5"', "neg"],
    ]
    assert fields('text,label\n"Hello,\nyou,\nworld",pos\n') == [["Hello,\nyou,\nworld", "pos"]]
    assert fields('text,label\n"Hello, all,\nworld",pos\na,neg\n') == [["Hello, all,\nworld", "pos"], ["a", "neg"]]


def test_a_mark_that_nothing_closes_costs_its_line_and_says_so(write):
    path = write("a.csv", rows_of(200) + '"cut off')
    reading = read_table(path, "text-classification")
    assert len(reading.records) == 200
    assert [item.why for item in reading.skipped] == ["a quotation mark in line 202 opens a field that nothing closes"]


@pytest.mark.parametrize(
    ("text", "header", "rows"),
    [
        (",text,label\n0,a,x\n1,b,y\n", ["", "text", "label"], [["0", "a", "x"], ["1", "b", "y"]]),
        ('"text","label"\n"1","a, b","x"\n"2","c","y"\n', ["", "text", "label"], [["1", "a, b", "x"], ["2", "c", "y"]]),
        ("text,label\n5,Great, loved\n3,So, so\n", ["text", "label"], [["5", "Great", " loved"], ["3", "So", " so"]]),
        ("sep=;\ntext;label\na, b;x\n", ["text", "label"], [["a, b", "x"]]),
        ("text,label,\na,x,\nb,y,\n", ["text", "label"], [["a", "x"], ["b", "y"]]),
        ("text,label\na,x,,\n\n  \n,\nb,y\n", ["text", "label"], [["a", "x"], ["b", "y"]]),
        ('"text; raw",label\na,x\n', ["text; raw", "label"], [["a", "x"]]),
    ],
)
def test_headers_and_columns_as_programs_write_them(text, header, rows):
    table = parse(text, "a.csv")
    assert (table.header, [record.fields for record in table.records]) == (header, rows)


def test_a_field_may_be_of_any_length_and_the_limit_of_the_process_stays(write):
    before = csv.field_size_limit()
    path = write(
        "books.csv", "id,text\n" + "".join(f'{i},"{i} {"a story, " * (40_000 if i == 3 else 5)}"\n' for i in range(40))
    )
    data = load_dataset(path, "language-modeling")
    lengths = sorted(len(record.text) for part in data.splits.values() for record in part)
    assert (len(lengths), lengths[-1]) == (40, len("3 ") + 40_000 * len("a story, ") - 1)
    assert csv.field_size_limit() == before


def test_columns_without_a_name_or_with_the_same(write):
    reading = read_table(write("a.csv", ",text,text,label\n0,a,b,x\n"), "text-classification")
    assert (reading.records[0].text, reading.records[0].label) == ("a", "x")
    assert reading.notes == ["a.csv: several columns are named 'text'; the second is text.1"]
    with pytest.raises(InputError, match=r"among Unnamed: 0, id; name it by --text-column"):
        read_table(write("b.csv", ",id\n0,1\n"), "language-modeling")


def test_a_header_that_stands_in_the_middle_is_no_row(write):
    joined = ("text,label\n" + "".join(f"t {i},{i % 2}\n" for i in range(20))) * 2
    reading = read_table(write("a.csv", joined), "text-classification")
    assert [record.text for record in reading.records] == [f"t {i}" for i in range(20)] * 2
    assert reading.notes == ["a.csv: 1 rows repeat the header and are left out, as where tables are joined"]


def test_dates_that_contradict_each_other_fail_only_where_they_are_asked_for(write):
    path = write("a.csv", "date,text,label\n13/5/2019,a,x\n5/13/2019,b,y\n6/6/2019,c,y\n")
    data = load_dataset(path, "text-classification")
    assert sum(map(len, data.splits.values())) == 3
    assert any("'date' is not read as a time" in note and "13/5/2019" in note for note in data.notes)
    with pytest.raises(InputError, match=r"'13/5/2019' is day first, '5/13/2019' month first"):
        load_dataset(path, "text-classification", time_column="date")
    with pytest.raises(InputError, match=r"'13/5/2019' is day first, '5/13/2019' month first"):
        load_dataset(path, "text-classification", split_by="time")


def test_na_and_none_are_texts_in_a_table_and_nan_is_nothing_in_json(write):
    reading = read_table(write("a.csv", "text,label\nNA,None\nnull,NA\nnan,x\n"), "text-classification")
    assert [(r.text, r.label) for r in reading.records] == [("NA", "None"), ("null", "NA"), ("nan", "x")]
    rows = '{"text": NaN, "label": 1}\n{"text": "x", "label": NaN}\n{"text": "y", "label": 1, "text_pair": NaN}\n'
    data = load_dataset(write("test.jsonl", rows + '{"text": "z", "label": 0}\n' * 200), "text-classification")
    assert [item.why for item in data.skipped] == ["no text in 'text'", "no label in 'label'"]
    assert data.labels == ("0", "1")
    assert data.splits["test"][0].pair is None
