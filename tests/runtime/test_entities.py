import pytest

from chinchilla_lm.data.tags import tags_of
from chinchilla_lm.runtime.entities import entities_of, words_of


def split(text: str) -> list[str]:
    return [text[start:end] for start, end in words_of(text)]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Angela Merkel met Siemens in Munich.", "Angela Merkel met Siemens in Munich ."),
        ("Germany's (Jean-Paul's) U.S. firm, AT&T.", "Germany 's ( Jean-Paul 's ) U.S. firm , AT&T ."),
        ("George W. Bush rose 3.5% to 1,000.", "George W. Bush rose 3.5 % to 1,000 ."),
        ('He said:"Yes—no"... O’Neil’s 6-4', 'He said : " Yes — no " . . . O’Neil ’s 6-4'),
        ("it costs 3.5. and a,b at 11:30", "it costs 3.5 . and a , b at 11:30"),
        ("हिन्दी भाषा। «Où»", "हिन्दी भाषा। « Où »"),
        ("吉尼斯 2024年 iPhone15", "吉 尼 斯 2024 年 iPhone 15"),
        ("  \n\t ", ""),
        ("", ""),
    ],
)
def test_words_are_parted_as_taggers_were_taught(text, words):
    assert split(text) == words.split()


@pytest.mark.parametrize(
    "text", ["a\u0301b 中\u0301文\u20dd", "x__y --- \u200bz\u00ad", "🙂🙂 w/o?!", "€5.50/kg@home#1 \ud800", "ก็ดี"]
)
def test_every_character_but_white_space_is_in_exactly_one_word(text):
    covered = [i for start, end in words_of(text) for i in range(start, end)]
    assert covered == [i for i, character in enumerate(text) if not character.isspace()]


TEXT = "Ann Lee of X Y and Z"
WORDS = words_of(TEXT)


@pytest.mark.parametrize(
    ("tags", "spans"),
    [
        ("B-PER I-PER O B-ORG I-ORG O B-LOC", "PER=Ann Lee|ORG=X Y|LOC=Z"),
        ("B-PER B-PER O I-ORG I-ORG O I-LOC", "PER=Ann|PER=Lee|ORG=X Y|LOC=Z"),
        ("I-PER I-ORG O B-ORG I-LOC O O", "PER=Ann|ORG=Lee|ORG=X|LOC=Y"),
        ("B-PER E-PER O S-ORG S-ORG O S-LOC", "PER=Ann Lee|ORG=X|ORG=Y|LOC=Z"),
        ("B-PER E-PER I-PER O O O E-LOC", "PER=Ann Lee|PER=of|LOC=Z"),
        ("NNP NNP O NNP NNP O O", "NNP=Ann|NNP=Lee|NNP=X|NNP=Y"),
        ("O O O O O O O", ""),
    ],
)
def test_tags_become_spans_of_characters(tags, spans):
    found = entities_of(TEXT, WORDS, tags.split(), [1.0] * 7)
    assert "|".join(f"{entity.label}={entity.text}" for entity in found) == spans
    assert all(TEXT[entity.start : entity.end] == entity.text for entity in found)


def test_the_score_is_the_mean_over_the_words_of_the_span():
    found = entities_of(TEXT, WORDS, ["B-P", "I-P", "O", "B-P", "O", "O", "O"], [0.5, 1.0, 0.1, 0.25, 0, 0, 0])
    assert [entity.score for entity in found] == [0.75, 0.25]


@pytest.mark.parametrize("scheme", ["BIO", "BIOES"])
def test_what_a_scheme_spells_is_read_back(scheme):
    spans = [(0, 1, "A"), (1, 3, "A"), (3, 4, "B"), (5, 7, "A")]
    found = entities_of(TEXT, WORDS, tags_of(spans, 7, scheme), [1.0] * 7)
    assert [(e.start, e.end, e.label) for e in found] == [(WORDS[a][0], WORDS[b - 1][1], kind) for a, b, kind in spans]
