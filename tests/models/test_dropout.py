"""What dropout hits follows from a row's key alone."""

from __future__ import annotations

import torch

from chinchilla_lm.models.dropout import kept, keys_of


def test_a_row_loses_the_same_in_any_batch_and_at_any_width():
    keys = keys_of([5, 9, 2], 0, 7)
    whole = kept(keys, 3, 0.3, 6, 4)
    assert torch.equal(kept(keys[1:2], 3, 0.3, 6, 4), whole[1:2])
    assert torch.equal(kept(keys, 3, 0.3, 2, 4), whole[:, :2])
    assert torch.equal(kept(keys_of([2], 0, 7), 3, 0.3, 6, 4), whole[2:])


def test_seeds_steps_rows_and_places_lose_something_else():
    first = kept(keys_of([5, 6], 0, 7), 3, 0.5, 8, 8)
    others = [kept(keys_of([5], *how), 3, 0.5, 8, 8)[0] for how in ((1, 7), (0, 8))]
    for other in (first[1], kept(keys_of([5], 0, 7), 4, 0.5, 8, 8)[0], *others):
        assert 0.3 < (first[0] == other).float().mean() < 0.7


def test_as_many_stay_as_are_to():
    stays = kept(keys_of(list(range(50)), 3, 1), 1, 0.1, 20, 100).float()
    assert abs(float(stays.mean()) - 0.9) < 0.003
    assert float((stays.mean(0) - 0.9).abs().max()) < 0.25, "no feature is always hit"
    neighbours = (stays[:, :, 1:] * stays[:, :, :-1]).mean()
    assert abs(float(neighbours) - 0.81) < 0.003, "one feature says nothing of the next"
    assert kept(keys_of([0], 0, 0), 1, 0.0, 4).all()
