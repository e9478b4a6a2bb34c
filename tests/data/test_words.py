"""One rule for words, in training data with spans and in texts that a tagger reads."""

from __future__ import annotations

import json

import pytest

from chinchilla_lm.data.jsonl import read_jsonl
from chinchilla_lm.data.records import BadRecord
from chinchilla_lm.data.spans import tag_spans
from chinchilla_lm.runtime.entities import words_of

TEXTS = [
    "\u0905\u091f\u0932 \u092c\u093f\u0939\u093e\u0930\u0940 \u0926\u093f\u0932\u094d\u0932\u0940",  # Hindi
    "Rene\u0301 met Jean-Paul of AT&T in the U.S. for 3.5 days",
    "\u0627\u0644\u0639\u064e\u0631\u064e\u0628\u0650\u064a\u0651\u064e\u0629 \u062c\u064a\u062f\u0629",
    "\u0e19\u0e49\u0e33 \u0e1b\u0e23\u0e30\u0e40\u0e17\u0e28\u0e44\u0e17\u0e22",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467 and \U0001f44d\U0001f3fd met",
    "\u6d59\u5546 Cafe\u0301 \u661f\u96452 \u304b\u3099 \U0001f468\u200d\U0001f469\u200d\U0001f467",
    "\ud55c\uad6d\uc5b4 \u1112\u1161\u11ab",
]


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_training_reads_the_words_that_are_asked_for_later(write, text):
    words = words_of(text)
    for start, end in words:
        row = {"text": text, "entities": [{"start": start, "end": end, "label": "X"}]}
        reading = read_jsonl(write("a.jsonl", json.dumps(row)), "token-classification")
        record = reading.records[0]
        assert record.words == tuple(text[a:b] for a, b in words)
        assert record.tags == tuple("B-X" if word == (start, end) else "O" for word in words)
        assert not reading.notes


def test_marks_stay_with_what_they_change():
    def split(text):
        return [text[a:b] for a, b in words_of(text)]

    assert split("Rene\u0301 ist da") == ["Rene\u0301", "ist", "da"]
    assert split("\u6d59\u304b\u3099Cafe\u0301") == ["\u6d59", "\u304b\u3099", "Cafe\u0301"]
    family = "\U0001f468\u200d\U0001f469\u200d\U0001f467"
    assert split(f"\u6d59{family}\u5546") == ["\u6d59", family, "\u5546"]


@pytest.mark.parametrize(
    ("text", "surface", "words", "widened"),
    [
        ("the Paris-based firm", "Paris", "Paris-based", 1),
        ("the US/UK deal", "UK", "US/UK", 1),
        ("in the U.S. now", "U.S", "U.S.", 1),
        ("Angela Merkel's dog", "Angela Merkel", "Angela Merkel", 0),
        ("met Siemens.", "Siemens", "Siemens", 0),
        ("a  Siemens  b", " Siemens ", "Siemens", 0),
    ],
)
def test_a_span_that_ends_at_a_joint_takes_the_whole_word(text, surface, words, widened):
    start = text.index(surface)
    found, tags, count = tag_spans(text, [(start, start + len(surface), "X")])
    assert [word for word, tag in zip(found, tags, strict=True) if tag != "O"] == words.split()
    assert count == widened


def test_a_span_that_cuts_a_word_is_refused_and_two_of_one_word_too():
    with pytest.raises(BadRecord, match="does not fit word boundaries"):
        tag_spans("Angela Merkel", [(0, 9, "X")])
    with pytest.raises(BadRecord, match="overlaps"):
        tag_spans("Paris-Roubaix", [(0, 5, "X"), (6, 13, "X")])


def test_widened_spans_are_said(write):
    rows = [{"text": "a Paris-based firm", "entities": [{"start": 2, "end": 7, "label": "X"}]}] * 3
    reading = read_jsonl(write("a.jsonl", "".join(json.dumps(row) + "\n" for row in rows)), "token-classification")
    assert reading.notes == ["a.jsonl: 3 entities end at a hyphen or the like and take the whole word"]
