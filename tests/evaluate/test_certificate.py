"""The verdict: passed, failed, undecided, in both directions of "better", and what it refuses."""

import json
import math
import re

import numpy as np
import pytest

from chinchilla_lm.errors import InputError
from chinchilla_lm.evaluate.certificate import MIN_DOCUMENTS, Certificate, certify, most_of
from chinchilla_lm.evaluate.sums import Floats, Sums, ratio


def entity_f1(tp: Floats) -> Sums:
    """Every document has 10 entities and 10 predictions, `tp` float64 [documents] of them right."""
    rows = np.column_stack([tp, np.full_like(tp, 10.0), np.full_like(tp, 10.0)])
    return Sums("entity_f1", "points", True, rows, lambda s: ratio(2 * s[..., 0], s[..., 1] + s[..., 2]))


def perplexity(nats: Floats) -> Sums:
    """`nats` float64 [documents], over 100 tokens each."""
    rows = np.column_stack([nats, np.full_like(nats, 100.0)])
    return Sums("perplexity", "percent", False, rows, lambda s: np.asarray(np.exp(ratio(s[..., 0], s[..., 1]))))


def noisy(documents: int, loss: float, spread: float, margin: float, seed: int = 0) -> Certificate:
    """Perplexity that grows by `loss` nats per token on average, exactly, and by `spread` from document to document."""
    rng = np.random.default_rng(seed)
    old = rng.gamma(50.0, 6.0, documents)
    step = rng.normal(0.0, 1.0, documents)
    step = (step - step.mean()) / step.std()
    return certify(perplexity(old), perplexity(old + 100 * (loss + spread * step)), margin, 10 * documents)


def test_identical_model_passes_with_exactly_nothing_lost():
    tp = np.random.default_rng(0).integers(5, 11, 40).astype(np.float64)
    certificate = certify(entity_f1(tp), entity_f1(tp.copy()), 0.1, 400, identical=True)
    assert certificate.passed
    assert certificate.decided
    assert (certificate.difference, certificate.low, certificate.high) == (0.0, 0.0, 0.0)
    assert certificate.to_dict() == {
        "metric": "entity_f1",
        "difference": 0.0,
        "low": 0.0,
        "high": 0.0,
        "margin": 0.1,
        "n": 400,
        "unit": "points",
        "passed": True,
        "more_examples": None,
    }


@pytest.mark.parametrize(("margin", "passed"), [(1.5, True), (0.5, False)])
def test_f1_one_point_lower_passes_or_fails_by_its_margin(margin: float, passed: bool):
    """Exactly one entity in 100 lost, in every tenth document: the interval of 1000 documents is about ±0.19 points."""
    old = np.full(1000, 9.0)
    new = old - (np.arange(1000) % 10 == 0)
    certificate = certify(entity_f1(old), entity_f1(new), margin, 1000)
    assert certificate.difference == pytest.approx(-1.0)
    assert certificate.low == pytest.approx(-1.19, abs=0.03)
    assert certificate.high == pytest.approx(-0.81, abs=0.03)
    assert certificate.passed is passed
    assert certificate.decided
    assert certificate.verdict.startswith("passed: entity F1 -1.00 points" if passed else "failed: entity F1 -1.00")


def test_better_model_passes_in_both_directions():
    rng = np.random.default_rng(4)
    tp = rng.integers(4, 8, 50).astype(np.float64)
    assert certify(entity_f1(tp), entity_f1(tp + 1), 0.1, 50).passed
    assert not certify(entity_f1(tp + 1), entity_f1(tp), 0.1, 50).passed
    nats = rng.gamma(50.0, 6.0, 50)
    assert certify(perplexity(nats), perplexity(nats - 10), 0.1, 50).passed
    assert not certify(perplexity(nats), perplexity(nats + 10), 0.1, 50).passed


def test_perplexity_counts_a_rise_as_the_loss():
    """exp(0.01) - 1 = 1.005 %, within ±0.2 %."""
    assert noisy(400, 0.01, 0.02, 2.0).passed
    failed = noisy(400, 0.01, 0.02, 0.9)
    assert not failed.passed
    assert failed.decided
    assert failed.difference == pytest.approx(100 * math.expm1(0.01))


def test_undecided_says_how_many_more_examples_and_they_suffice():
    """The half-width is 1.96 * 0.05 / sqrt(100) = 0.98 %; 0.5 % between loss and margin needs 4 times the data."""
    undecided = noisy(100, 0.005, 0.05, 1.0)
    assert not undecided.passed
    assert not undecided.decided
    assert undecided.low < undecided.difference < undecided.margin < undecided.high
    assert undecided.more_examples is not None
    expected = 1000 * ((undecided.high - undecided.difference) / (1.0 - undecided.difference)) ** 2 - 1000
    assert undecided.more_examples == pytest.approx(expected, abs=1)
    assert 2000 < undecided.more_examples < 5000
    assert f"about {undecided.more_examples} more examples would decide" in undecided.verdict
    documents = 100 + math.ceil(1.2 * undecided.more_examples / 10)
    assert noisy(documents, 0.005, 0.05, 1.0).passed


def test_undecided_for_f1():
    old = np.full(40, 9.0)
    new = old.copy()
    new[:10:2] -= 1
    new[20:28:2] += 1
    certificate = certify(entity_f1(old), entity_f1(new), 1.0, 40)
    assert certificate.difference == pytest.approx(-0.25)
    assert certificate.low < -1.0
    assert not certificate.passed
    assert not certificate.decided


def test_few_documents_prove_nothing_unless_nothing_changed():
    old = np.full(MIN_DOCUMENTS - 1, 5.0)
    better = certify(entity_f1(old), entity_f1(old + 1), 1.0, 50)
    assert not better.passed
    assert not better.decided
    assert better.more_examples == 10
    assert "at least 6 documents" in better.verdict
    assert certify(entity_f1(old), entity_f1(old), 1.0, 50, identical=True).passed
    more = np.full(MIN_DOCUMENTS, 5.0)
    assert certify(entity_f1(more), entity_f1(more + 1), 1.0, 60).passed


def test_one_document_writes_valid_json():
    certificate = certify(entity_f1(np.array([5.0])), entity_f1(np.array([4.0])), 1.0, 3)
    assert not certificate.passed
    assert "no interval" in certificate.verdict
    record = json.loads(json.dumps(certificate.to_dict(), allow_nan=False))
    assert record["low"] is None
    assert record["more_examples"] == 15


@pytest.mark.parametrize("margin", [70.0, 0.0, -1.0, math.nan, 50.001])
def test_margin_out_of_range_is_refused(margin: float):
    tp = np.full(10, 5.0)
    message = re.escape(f"margin {margin} is not in (0, 50] entity F1 points; pass --margin 1.0")
    with pytest.raises(InputError, match=message):
        certify(entity_f1(tp), entity_f1(tp), margin, 10)
    with pytest.raises(InputError, match="percent of perplexity"):
        certify(perplexity(tp), perplexity(tp), margin, 10)


def test_margin_of_exactly_fifty_is_allowed():
    tp = np.full(10, 5.0)
    assert certify(entity_f1(tp), entity_f1(tp), 50, 10).passed


def test_different_or_no_examples_are_refused():
    with pytest.raises(InputError, match="9 documents are compared with 10"):
        certify(entity_f1(np.full(10, 5.0)), entity_f1(np.full(9, 5.0)), 1.0, 10)
    with pytest.raises(InputError, match="n = 0 examples"):
        certify(entity_f1(np.full(10, 5.0)), entity_f1(np.full(10, 5.0)), 1.0, 0)
    with pytest.raises(InputError, match="entity_f1 has 0 documents"):
        entity_f1(np.zeros(0))


def test_model_beyond_all_bounds_fails_in_valid_json():
    """1000 nats a token: the perplexity overflows to infinity, which JSON does not have."""
    nats = np.random.default_rng(0).gamma(50.0, 6.0, 20)
    with np.errstate(over="ignore", invalid="ignore"):
        certificate = certify(perplexity(nats), perplexity(nats + 1e5), 1.0, 20)
    assert not certificate.passed
    assert certificate.decided
    assert json.loads(json.dumps(certificate.to_dict(), allow_nan=False))["difference"] is None


def test_equal_counts_of_right_answers_are_not_equal_models():
    """Of 40 texts whose answers did not change in sum, a loss of 4 in 100 could still be true."""
    right = np.ones((40, 1)) * [1.0, 1.0]
    accuracy = Sums("accuracy", "points", True, right, lambda sums: ratio(sums[..., 0], sums[..., 1]))
    certificate = certify(accuracy, accuracy, 1.0, 40)
    assert (certificate.passed, certificate.decided, certificate.difference) == (False, False, 0.0)
    assert certificate.low == pytest.approx(-100 * most_of(0) / 40)
    assert certify(accuracy, accuracy, 1.0, 40, identical=True).passed


def test_the_upper_bound_of_a_count():
    from scipy.stats import chi2

    for count in (0, 1, 5, 30):
        assert most_of(count) == pytest.approx(chi2.ppf(0.975, 2 * count + 2) / 2, rel=0.01)


@pytest.mark.parametrize("texts", [100, 300])
def test_losses_that_a_small_sample_need_not_show_do_not_pass(texts: int):
    """One text in 100 is lost and none found: the true loss is the margin."""
    rng = np.random.default_rng(texts)
    trials, passed = 400, 0
    for _ in range(trials):
        was = rng.random(texts) < 0.9
        now = was & (rng.random(texts) >= 0.01 / 0.9)
        rows = [np.column_stack([right, np.ones(texts)]).astype(float) for right in (was, now)]
        old, new = (Sums("accuracy", "points", True, one, lambda s: ratio(s[..., 0], s[..., 1])) for one in rows)
        passed += certify(old, new, 1.0, texts).passed
    assert passed / trials <= 0.03
