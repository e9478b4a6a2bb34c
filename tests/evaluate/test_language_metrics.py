"""Perplexity and bits per byte against their definition, token by token."""

import math

import numpy as np
import pytest

from chinchilla_lm.errors import InputError
from chinchilla_lm.evaluate.certificate import certify
from chinchilla_lm.evaluate.language import measure_text


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
