"""Numbers, sentences and escapes of the report."""

from __future__ import annotations

from typing import Any

import pytest

from chinchilla_lm.report.markdown import fenced, markdown
from chinchilla_lm.report.numbers import count, duration, fixed, moment, parameters, plain, significant, size
from chinchilla_lm.report.page import marked
from chinchilla_lm.report.words import difference, margin_words, ratio, share, target_words
from tests.report.report_examples import full_report


@pytest.mark.parametrize(
    ("certificate", "words"),
    [
        ({}, "The whole interval is on the good side of the margin, −1.00 points."),
        ({"low": -1.2, "passed": False}, "The interval crosses the margin, −1.00 points."),
        ({"low": -1.2, "passed": False, "more_examples": 812}, "margin, −1.00 points. About 812 more examples would"),
        ({"low": -3.0, "high": -1.1, "passed": False}, "The whole interval lies beyond the margin, −1.00 points."),
        ({"low": 0.2, "high": 1.4, "passed": False, "higher_is_better": False}, "crosses the margin, +1.00 points."),
        ({"low": 1.2, "high": 1.4, "passed": False, "higher_is_better": False}, "lies beyond the margin, +1.00"),
        ({"low": None}, "There is no interval to hold against the margin."),
    ],
)
def test_the_margin_in_words(certificate: dict[str, Any], words: str) -> None:
    report = full_report()
    report["certificate"] |= certificate
    assert words in margin_words(report)


def test_the_target_is_missed_just_below_it() -> None:
    assert target_words({"value": 2.1, "low": 1.9999, "target": 2.0}) == ", target 2.00× missed", "at the bad end"
    assert target_words({"value": 2.1, "low": 2.0, "target": 2.0}) == ", target 2.00× reached"
    assert target_words({"value": 2.0, "target": None}) == ""
    latency = {"value": 19.0, "low": 18.0, "high": 20.1, "target": 20.0}
    assert target_words({"target": None, "latency": latency}) == ", target 20.0 ms missed"
    assert target_words({"target": None, "latency": latency | {"high": 20.0}}) == ", target 20.0 ms reached"


@pytest.mark.parametrize(
    ("shown", "wanted"),
    [
        (ratio(10.0, 20.0, False), ("2.00× faster", "better")),
        (ratio(20.0, 10.0, False), ("2.00× slower", "worse")),
        (ratio(20.0, 10.0, True), ("2.00× faster", "better")),
        (ratio(10.0, 20.0, True), ("2.00× slower", "worse")),
        (ratio(10.001, 10.0, False), ("same", "")),
        (ratio(None, 10.0, False), ("", "")),
        (difference(88.1, 88.41, "points", True), ("−0.31", "worse")),
        (difference(88.41, 88.1, "points", True), ("+0.31", "better")),
        (difference(14.6, 14.213, "", False), ("+0.39", "worse")),
        (difference(14.2130001, 14.213, "", False), ("same", "")),
        (share(98, 135), "−27 %"),
        (share(200, 100), "+100 %"),
        (share(100, 100), "same"),
        (share(1, 0), ""),
    ],
)
def test_changes_have_their_sign_and_their_tone(shown: object, wanted: object) -> None:
    assert shown == wanted


@pytest.mark.parametrize(
    ("shown", "wanted"),
    [
        (fixed(-1234.567, 2), "−1,234.57"),
        (fixed(-0.001, 2), "0.00"),
        (fixed(True, 2), "–"),
        (significant(0.012345), "0.0123"),
        (significant(123456), "123,456"),
        (significant(0.000012345), "1.23e−05"),
        (significant(0), "0"),
        (parameters(134_515_008), "135 M"),
        (parameters(999_600), "1.00 M"),
        (parameters(812), "812"),
        (size(269_030_016), "269 MB"),
        (size(1_240_000_000), "1.24 GB"),
        (count(3453), "3,453"),
        (duration(0.84), "0.84 s"),
        (duration(59.4), "59 s"),
        (duration(59.9), "1 min 00 s"),
        (duration(3860), "1 h 04 min"),
        (moment("2025-01-02T03:04:05+00:00"), "2 January 2025, 03:04 UTC"),
        (moment("yesterday"), "yesterday"),
        (plain(-5e-05), "−5e-05"),
        (plain("a\x00b\ud800"), "a\N{REPLACEMENT CHARACTER}b?"),
    ],
)
def test_numbers_as_people_write_them(shown: str, wanted: str) -> None:
    assert shown == wanted


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("entity_f1", "entity_f1"),
        ("__init__", r"\_\_init\_\_"),
        ("a|b", r"a\|b"),
        ("# not a heading", r"\# not a heading"),
        ("1. not a list", r"1\. not a list"),
        ("1.87x", "1.87x"),
        ("- no", r"\- no"),
        ("-0.31", "-0.31"),
        ("---", r"\---"),
        ("[-0.9, 0.3]", "[-0.9, 0.3]"),
        ("[x](y)", r"[x]\(y)"),
        ("two\nlines", "two lines"),
        ("<b>&", "&lt;b&gt;&amp;"),
    ],
)
def test_markdown_signs_are_text(text: str, wanted: str) -> None:
    assert markdown(text) == wanted


def test_a_fence_cannot_be_ended_from_inside() -> None:
    block = fenced("before\n````\nafter").splitlines()
    assert block[0] == "`````text"
    assert block[-1] == "`````"


def test_samples_mark_what_differs_and_nothing_else() -> None:
    left, right = marked("a <b> c d", "a <x> y c d")
    assert left == "a <mark>&lt;b&gt;</mark> c d"
    assert right == "a <mark>&lt;x&gt; y</mark> c d"
    assert marked("same", "same") == ("same", "same")
    long = " ".join("word" for _ in range(700))
    assert marked(long, long + " more") == (long, long + " more")
