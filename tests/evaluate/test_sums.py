"""The bootstrap: it holds the truth as often as it says, pairing narrows it, and equal models differ by exactly 0."""

import math
from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from chinchilla_lm.errors import InputError
from chinchilla_lm.evaluate import sums as sums_module
from chinchilla_lm.evaluate.sums import (
    Floats,
    Sums,
    Unit,
    bootstrap,
    document_rows,
    expanded_tail,
    paired,
    ratio,
)
from chinchilla_lm.resampling import LEVEL, students_t


def share(per_document: Floats, unit: Unit = "points", name: str = "accuracy", higher: bool = True) -> Sums:
    """Columns hits, total."""
    return Sums(name, unit, higher, np.asarray(per_document, dtype=np.float64), lambda s: ratio(s[..., 0], s[..., 1]))


def sample(rng: np.random.Generator, documents: int) -> tuple[Floats, Floats]:
    """Documents of 5 to 49 decisions, each with a chance of its own, 0.8 on average: [documents, 2] and the chances."""
    total = rng.integers(5, 50, documents)
    chance = rng.beta(8, 2, documents)
    return np.column_stack([rng.binomial(total, chance), total]).astype(np.float64), chance


def test_one_resample_is_what_drawing_by_hand_gives():
    """All 27 equally likely draws from three documents, enumerated; their range is what the bootstrap must lie in."""
    rows = np.array([[1.0, 2.0], [3.0, 3.0], [0.0, 5.0]])
    values = [rows[list(draw)].sum(axis=0) for draw in product(range(3), repeat=3)]
    shares = np.array([hits / total for hits, total in values])
    chunks = [share(rows).statistic(w @ rows) for w in sums_module._draws(3, 1, 20000, 0)]
    drawn = np.concatenate(chunks)
    assert set(np.round(drawn, 12)) == set(np.round(shares, 12))
    assert drawn.mean() == pytest.approx(shares.mean(), abs=0.005)
    assert drawn.std() == pytest.approx(shares.std(), abs=0.005)


@pytest.mark.parametrize(("documents", "least"), [(6, 0.88), (20, 0.90), (200, 0.91)])
def test_coverage(documents: int, least: float):
    """400 data sets: an interval that held the truth in 95 % would be seen below 0.91 once in 5000 runs."""
    rng = np.random.default_rng(7)
    hits = 0
    for trial in range(400):
        estimate = bootstrap(share(sample(rng, documents)[0]), resamples=500, seed=trial)
        hits += estimate.low <= 0.8 <= estimate.high
    assert least <= hits / 400 <= 0.985


def test_expanded_tail_follows_students_t():
    """t(0.975) from a table: 2.5706 for 5 degrees of freedom, 2.2622 for 9, 1.9842 for 99."""
    for documents, t in ((6, 2.5706), (10, 2.2622), (100, 1.9842)):
        expected = 0.5 * math.erfc(t * math.sqrt(documents / (documents - 1)) / math.sqrt(2))
        assert expanded_tail(documents) == pytest.approx(expected, rel=0.01)
    assert expanded_tail(10**7) == pytest.approx(0.025, rel=1e-5)


def test_students_t_is_right_from_three_degrees_of_freedom_on():
    """From a table; too small below, as its docstring says."""
    for freedom, t in ((3, 3.1824), (5, 2.5706), (30, 2.0423)):
        assert students_t(freedom) == pytest.approx(t, rel=0.01)
    assert [students_t(1), students_t(2)] == pytest.approx([9.7, 4.17], abs=0.05)


def test_interval_matches_the_closed_form_of_a_mean():
    rng = np.random.default_rng(3)
    values = rng.normal(10.0, 2.0, 1000)
    estimate = bootstrap(share(np.column_stack([values, np.ones(1000)])), resamples=20000)
    half = 1.96 * values.std() / math.sqrt(1000)
    assert estimate.value == pytest.approx(values.mean())
    assert estimate.low == pytest.approx(values.mean() - half, abs=0.03 * half)
    assert estimate.high == pytest.approx(values.mean() + half, abs=0.03 * half)


def test_a_difference_is_drawn_at_more_than_95_percent_to_keep_95():
    """2.1084 is the normal quantile of 0.9825."""
    rng = np.random.default_rng(3)
    ones, old = np.ones(1000), rng.normal(10.0, 2.0, 1000)
    change = rng.normal(0.01, 0.02, 1000)
    difference = paired(
        share(np.column_stack([old, ones])), share(np.column_stack([old + change, ones])), resamples=20000
    )
    half = 100 * 2.1084 * change.std() / math.sqrt(1000)
    assert difference.low == pytest.approx(difference.value - half, abs=0.03 * half)
    assert difference.high == pytest.approx(difference.value + half, abs=0.03 * half)


@pytest.mark.parametrize("consecutive", [False, True])
def test_every_difference_is_drawn_wider(monkeypatch: pytest.MonkeyPatch, consecutive: bool):
    rng = np.random.default_rng(5)
    old, new = (replace(share(sample(rng, 200)[0]), consecutive=consecutive) for _ in range(2))
    wide = paired(old, new)
    monkeypatch.setattr(sums_module, "DRAWN", LEVEL)
    narrow = paired(old, new)
    assert wide.low < narrow.low < narrow.high < wide.high


def test_same_seed_same_interval_whatever_the_chunks(monkeypatch: pytest.MonkeyPatch):
    metric = share(sample(np.random.default_rng(0), 60)[0])
    first = bootstrap(metric, seed=5)
    assert bootstrap(metric, seed=5) == first
    assert bootstrap(metric, seed=6) != first
    monkeypatch.setattr(sums_module, "CHUNK_CELLS", 1000)
    assert bootstrap(metric, seed=5) == first


def test_interval_of_a_constant_is_a_point():
    estimate = bootstrap(share(np.tile([3.0, 4.0], (50, 1))))
    assert (estimate.value, estimate.low, estimate.high) == (0.75, 0.75, 0.75)


def test_paired_interval_is_narrower_than_the_unpaired_one():
    rng = np.random.default_rng(1)
    old, chance = sample(rng, 300)
    new = np.column_stack([rng.binomial(old[:, 1].astype(int), chance), old[:, 1]])
    difference = paired(share(old), share(new))
    a, b = bootstrap(share(old)), bootstrap(share(new), seed=1)
    unpaired = 100 * math.hypot(a.high - a.low, b.high - b.low)
    assert difference.high - difference.low < 0.8 * unpaired
    assert difference.value == pytest.approx(100 * (share(new).value - share(old).value))


def test_percent_is_relative():
    old = share(np.array([[20.0, 1.0], [40.0, 1.0]]), "percent", "perplexity", False)
    new = share(np.array([[22.0, 1.0], [44.0, 1.0]]), "percent", "perplexity", False)
    difference = paired(old, new)
    assert [difference.value, difference.low, difference.high] == pytest.approx([10.0, 10.0, 10.0])


def test_equal_models_differ_by_exactly_zero():
    nats = np.random.default_rng(2).gamma(3.0, 100.0, (117, 2))
    difference = paired(share(nats, "percent"), share(nats.copy(), "percent"))
    assert (difference.value, difference.low, difference.high) == (0.0, 0.0, 0.0)


def test_one_document_has_no_interval():
    one = share(np.array([[1.0, 2.0]]))
    assert bootstrap(one).to_dict() == {"value": 0.5, "low": None, "high": None}
    assert math.isnan(paired(one, one).low)


def test_sums_that_cannot_be_used_are_refused():
    with pytest.raises(InputError, match="0 documents"):
        share(np.zeros((0, 2)))
    with pytest.raises(InputError, match=r"not finite in 1 of 2 documents \(first: number 1\)"):
        share(np.array([[1.0, 2.0], [math.nan, 2.0]]))
    two, three = np.ones((2, 2)), np.ones((3, 2))
    with pytest.raises(InputError, match="3 documents are compared with 2"):
        paired(share(two), share(three))
    with pytest.raises(InputError, match="metric recall is compared with accuracy"):
        paired(share(two), share(two, name="recall"))
    with pytest.raises(InputError, match="needs a value above 0"):
        paired(share(two * [0, 1], "percent"), share(two, "percent"))


def test_document_rows_follow_first_appearance():
    rows, number = document_rows(["b", "a", "b", "c"])
    assert rows.tolist() == [0, 1, 0, 2]
    assert number == 3


def test_ratio_of_nothing_is_zero():
    assert ratio(np.array([1.0, 0.0, 3.0]), np.array([2.0, 0.0, 0.0])).tolist() == [0.5, 0.0, 0.0]
