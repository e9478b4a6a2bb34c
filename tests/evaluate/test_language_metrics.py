"""Perplexity and bits per byte against their definition, token by token."""

import math

import numpy as np
import pytest

from chinchilla_lm.errors import InputError
from chinchilla_lm.evaluate.certificate import certify
from chinchilla_lm.evaluate.language import margin_words, measure_text, on_same_text
from chinchilla_lm.evaluate.sums import Sums, paired
from chinchilla_lm.evaluate.tables import metric_among


def test_perplexity_and_bits_per_byte_from_single_tokens():
    """Windows of unequal length in three documents; the mean over all tokens, not over windows."""
    rng = np.random.default_rng(0)
    windows = [rng.gamma(2.0, 1.5, length) for length in (3, 50, 17, 1, 29)]
    sizes = [4 * len(w) + 1 for w in windows]
    measured = measure_text([w.sum() for w in windows], [len(w) for w in windows], sizes, list("aabca"))
    tokens = np.concatenate(windows)
    assert measured.n == 5
    assert measured.sums["perplexity"].documents == 3
    assert measured.sums["perplexity"].value == pytest.approx(math.exp(tokens.mean()))
    assert measured.sums["bits_per_byte"].value == pytest.approx((tokens / math.log(2)).sum() / sum(sizes))


def test_uniform_guess_over_bytes_is_eight_bits():
    measured = measure_text([5 * math.log(256)], [5], [5], ["a"])
    assert measured.sums["perplexity"].value == pytest.approx(256)
    assert measured.sums["bits_per_byte"].value == pytest.approx(8)


def test_certificate_of_perplexity_is_in_percent():
    nats = np.random.default_rng(1).gamma(90.0, 3.0, 50)
    ids = [str(i) for i in range(50)]
    old, new = (measure_text(list(n), [100] * 50, [400] * 50, ids).sums["perplexity"] for n in (nats, nats + 2.0))
    certificate = certify(old, new, 3.0, 50)
    assert certificate.unit == "percent"
    assert certificate.difference == pytest.approx(100 * math.expm1(0.02))
    assert certificate.passed
    assert not certify(old, new, 2.0, 50).passed


def test_input_that_cannot_be_used_is_refused():
    with pytest.raises(InputError, match=r"\[2, 1, 1, 1\] parts"):
        measure_text([1.0, 2.0], [1], [1], ["a"])
    with pytest.raises(InputError, match="0 predicted tokens and 4 bytes"):
        measure_text([0.0], [0], [4], ["a"])
    with pytest.raises(InputError, match="0 predicted tokens and 0 bytes"):
        measure_text([], [], [], [])
    with pytest.raises(InputError, match="perplexity has sums that are not finite in 1 of 2 documents"):
        measure_text([1.0, math.inf], [1, 1], [1, 1], ["a", "b"])


def bits(ids: str, nats: float, size: int = 8) -> Sums:
    """Bits per byte of documents named by letters, the first with `nats`, each further one with one more."""
    many = range(len(ids))
    measured = measure_text([nats + i for i in many], [3] * len(ids), [size] * len(ids), list(ids))
    return measured.sums["bits_per_byte"]


def test_models_with_other_tokens_are_compared_on_documents_that_both_read_to_their_end():
    """One window of a model ends in `e`, where its text is over; the other's in `f`; `c` has one token, which is the
    first of a window and not predicted. Each pair below is of one document, whatever row it had."""
    original, changed = on_same_text(bits("abcde", 5.0), bits("abdef", 7.0))
    assert original.ids == changed.ids == ("a", "b", "d")
    assert original.per_document[:, 0].tolist() == [5.0, 6.0, 8.0]
    assert changed.per_document[:, 0].tolist() == [7.0, 8.0, 9.0]
    assert paired(original, changed).value == pytest.approx(100 * (24 / 19 - 1))
    with pytest.raises(InputError, match="other documents than bits_per_byte of the original"):
        paired(bits("abcde", 5.0), bits("abdef", 7.0))
    for theirs, ours in (("a", "ab"), ("a", "b"), ("ab", "a")):  # a document read in part decides nothing
        with pytest.raises(InputError, match="no document in common that both models read to its end; pass more text"):
            on_same_text(bits(theirs, 5.0), bits(ours, 5.0))


def test_the_document_that_the_last_window_ends_in_is_left_out_wherever_it_began():
    parts = list("abca")  # parts of `a` stand at both ends
    original, changed = (measure_text([nats] * 4, [3] * 4, [8] * 4, parts).sums for nats in (2.0, 3.0))
    for name in ("perplexity", "bits_per_byte"):
        assert [sums.ids for sums in on_same_text(original[name], changed[name])] == [("b", "c"), ("b", "c")]
    named = measure_text([2.0] * 3, [3] * 3, [8] * 3, list("abc"), unfinished={"a", "c"}).sums["bits_per_byte"]
    assert on_same_text(named, original["bits_per_byte"])[0].ids == ("b",)


@pytest.mark.parametrize(("nats", "margin"), [(0.5, 1.0), (3.0, 1.0), (3.0, 10.0)])
def test_a_margin_of_bits_per_byte_is_said_in_percent_of_perplexity(nats: float, margin: float):
    """A model that takes m % more nats for every token, measured in both ways."""
    both = (10 * nats, 10 * nats * (1 + margin / 100))
    original, changed = (measure_text([each] * 2, [10, 10], [40, 40], ["a", "b"]).sums for each in both)
    assert paired(original["bits_per_byte"], changed["bits_per_byte"]).value == pytest.approx(margin)
    more = paired(original["perplexity"], changed["perplexity"]).value
    said = margin_words(original["perplexity"].value, margin)
    assert said.startswith(f"a margin of {margin:g} % of bits per byte is {more:.3g} % of perplexity for the original")
    assert said.endswith(f"at {nats:.2f} nats a token")


def test_the_metric_is_one_that_there_is():
    assert metric_among({"perplexity": 1, "bits_per_byte": 2}, None) == "perplexity"
    assert metric_among(["perplexity", "bits_per_byte"], "bits_per_byte") == "bits_per_byte"
    with pytest.raises(InputError, match="metric 'f1' is not one of perplexity, bits_per_byte; pass --metric perplex"):
        metric_among(["perplexity", "bits_per_byte"], "f1")
