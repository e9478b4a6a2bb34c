from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chinchilla_lm.data.records import BadRecord
from chinchilla_lm.data.tags import Entity, detect_scheme, entities_of, tags_of, to_bio

# The same entities four ways, by hand: PER of two words, LOC touching it, LOC touching that, ORG alone, then O.
SAME = {
    "BIO": "B-PER I-PER B-LOC B-LOC O B-ORG O",
    "IOB1": "I-PER I-PER I-LOC B-LOC O I-ORG O",
    "BIOES": "B-PER E-PER S-LOC S-LOC O S-ORG O",
    "BILOU": "B-PER L-PER U-LOC U-LOC O U-ORG O",
}


@pytest.mark.parametrize("name", SAME)
def test_every_scheme_is_detected_and_becomes_the_same_bio(name):
    tags = tuple(SAME[name].split())
    scheme = detect_scheme([tags, ("O", "O")])
    assert scheme == ("BIOES" if name == "BILOU" else name)
    assert to_bio(tags, scheme) == tuple(SAME["BIO"].split())


@pytest.mark.parametrize(
    ("iob1", "bio"),
    [
        ("I-ORG O I-MISC O", "B-ORG O B-MISC O"),
        ("I-PER I-PER", "B-PER I-PER"),
        ("I-PER B-PER I-PER", "B-PER B-PER I-PER"),  # two people in a row
        ("I-LOC I-ORG I-ORG", "B-LOC B-ORG I-ORG"),  # a new type begins without B
        ("O B-MISC I-MISC", "O B-MISC I-MISC"),  # needless B, as twice in CoNLL-2003 train
    ],
)
def test_iob1_by_hand(iob1, bio):
    assert to_bio(tuple(iob1.split()), "IOB1") == tuple(bio.split())


def test_a_few_bad_sentences_do_not_change_the_scheme():
    good = [("B-PER", "I-PER", "O", "B-LOC")] * 10
    assert detect_scheme([*good, ("O", "I-LOC")]) == "BIO"
    with pytest.raises(BadRecord, match="'I-LOC' after 'O' is illegal in BIO"):
        to_bio(("O", "I-LOC"), "BIO")


def test_tags_without_prefix_stay_and_all_o_is_bio():
    assert detect_scheme([("DT", "NN", "O")]) == "plain"
    assert to_bio(("DT", "NN"), "plain") == ("DT", "NN")
    assert detect_scheme([("O", "O")]) == "BIO"


@pytest.mark.parametrize("tags", ["B-PER O", "I-PER E-PER", "B-PER E-LOC", "B-PER S-PER", "B-PER"])
def test_open_entities_are_illegal_with_ends(tags):
    with pytest.raises(BadRecord):
        entities_of(tuple(tags.split()), "BIOES")


def test_a_type_may_hold_a_dash():
    assert entities_of(("B-work-of-art", "I-work-of-art")) == [(0, 2, "work-of-art")]


@st.composite
def sentences(draw: st.DrawFn) -> tuple[list[Entity], int]:
    """Entities that do not overlap, and the number of words."""
    entities, at = [], 0
    for gap, length, kind in draw(
        st.lists(st.tuples(st.integers(0, 2), st.integers(1, 4), st.sampled_from(["PER", "LOC", "A-B"])), max_size=8)
    ):
        entities.append((at + gap, at + gap + length, kind))
        at += gap + length
    return entities, at + draw(st.integers(0, 2))


@given(sentences(), st.sampled_from(["BIO", "IOB1", "BIOES"]))
def test_entities_survive_every_scheme_and_bio(sentence, scheme):
    entities, length = sentence
    tags = tags_of(entities, length, scheme)
    assert len(tags) == length
    assert entities_of(tags, scheme, strict=True) == entities
    assert entities_of(to_bio(tags, scheme), "BIO") == entities
