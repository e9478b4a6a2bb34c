from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from chinchilla_lm.data.batches import batches, collate, padding_share
from chinchilla_lm.data.conll import read_conll
from chinchilla_lm.data.encode import Encoded
from chinchilla_lm.errors import InputError


def windows(*lengths):
    return [Encoded([i + 1] * n, None, [i] + [-100] * (n - 1), [(i, 0)]) for i, n in enumerate(lengths)]


def test_padding_stands_on_the_right_and_is_masked():
    found = collate([*windows(2, 3)], [7, 9], pad_id=50)
    assert found.batch.ids.tolist() == [[1, 1, 50], [2, 2, 2]]
    assert found.batch.mask is not None
    assert found.batch.mask.tolist() == [[True, True, False], [True, True, True]]
    assert found.targets is not None
    assert found.targets.tolist() == [[0, -100, -100], [1, -100, -100]]
    assert found.batch.ids.dtype == found.targets.dtype == torch.int64
    assert (found.batch.segments, found.rows) == (None, [7, 9])


def test_no_mask_without_padding_and_other_kinds_of_target():
    assert collate(windows(3, 3), [0, 1], 0).batch.mask is None
    pair = Encoded([1, 2, 3], [0, 0, 1], 4, [(0, 0)])
    found = collate([pair, Encoded([1, 2], None, 5, [(1, 0)])], [0, 1], 0)
    assert found.batch.segments is not None
    assert found.batch.segments.tolist() == [[0, 0, 1], [0, 0, 0]]
    assert found.targets is not None
    assert found.targets.tolist() == [4, 5]
    assert collate([Encoded([1, 2], None, None, [(0, 0)])], [0], 0).targets is None


@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=60),
    st.integers(1, 100),
    st.integers(1, 9),
    st.sampled_from([None, 0, 1]),
)
def test_every_window_once_and_within_the_limits(lengths, max_tokens, max_rows, seed):
    encoded = windows(*lengths)
    found = batches(encoded, max_tokens=max_tokens, max_rows=max_rows, shuffle_seed=seed)
    assert sorted(row for item in found for row in item.rows) == list(range(len(lengths)))
    for item in found:
        rows, width = item.batch.ids.shape
        assert rows <= max_rows
        assert rows * width <= max_tokens or rows == 1
        assert [encoded[row].ids for row in item.rows] == [
            ids[:n].tolist() for ids, n in zip(item.batch.ids, item.batch.lengths(), strict=True)
        ]


def test_order_is_by_length_without_a_seed_and_fixed_by_the_seed_with_one():
    encoded = windows(*(1 + i * 7 % 30 for i in range(200)))
    plain = batches(encoded, max_tokens=64)
    widths = [item.batch.ids.shape[1] for item in plain]
    assert widths == sorted(widths)
    one, same, other = (batches(encoded, max_tokens=64, shuffle_seed=seed) for seed in (1, 1, 2))
    assert one.plan == same.plan
    assert sorted(map(sorted, one.plan)) != sorted(
        map(sorted, other.plan)
    )  # other rows meet, not only in another order
    widths = [item.batch.ids.shape[1] for item in one]
    assert sum(a > b for a, b in pairwise(widths)) > len(widths) / 4


def test_padding_share_and_slices():
    found = batches(windows(2, 4), max_rows=2)
    assert padding_share(found) == pytest.approx(2 / 8)
    assert padding_share(batches(windows(3, 3), max_rows=2)) == 0
    assert padding_share(batches([], max_rows=2)) == 0
    assert len(batches(windows(1, 1, 1), max_rows=1)[1:]) == 2


def test_limits_are_needed():
    with pytest.raises(InputError, match="max_tokens None and max_rows None are no limits"):
        batches(windows(1))
    with pytest.raises(InputError, match="max_tokens 0"):
        batches(windows(1), max_tokens=0)


def test_conll_train_wastes_under_three_percent(real):
    """With one token a word, and [CLS] and [SEP]; with MiniLM's word pieces the share is 2.6 %."""
    records = read_conll(real("conll2003") / "eng.train").records
    encoded = windows(*(len(record.words) + 2 for record in records))
    for seed in (0, 1):
        assert padding_share(batches(encoded, max_tokens=1024, shuffle_seed=seed)) < 0.03
