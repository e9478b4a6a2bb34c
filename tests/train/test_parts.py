"""A batch in parts has the loss and the gradients of the whole, whoever has which row."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from chinchilla_lm.data.batches import EncodedBatch, batches
from chinchilla_lm.data.encoded import IGNORED, Encoded
from chinchilla_lm.models.config import HeadConfig
from chinchilla_lm.models.transformer import Transformer
from chinchilla_lm.train.parts import parts_of, with_keys
from chinchilla_lm.train.recover import Teacher, Weights, fine_tuning_loss, recovery_loss
from tests.train.toy import windows

WEIGHTS = Weights(kl=1.0, hidden=0.7, squared=0.1, task=0.5, temperature=2.0)


def given(per_token: bool = True) -> EncodedBatch:
    """Seven rows of 4 to 9 tokens in one batch."""
    made = windows(7)
    if not per_token:
        made = [Encoded(one.ids, None, row % 3, [(row, 0)]) for row, one in enumerate(made)]
    return with_keys(batches(made, max_rows=7)[0], 0, 3)


def gradients(model: Transformer, parts: list[EncodedBatch], loss) -> tuple[float, dict[str, Tensor]]:
    model.zero_grad()
    total = 0.0
    for part in parts:
        value = loss(model, part)
        value.backward()
        total += float(value.detach())
    return total, {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}


@pytest.mark.parametrize("per_token", [True, False])
@pytest.mark.parametrize(("size", "most"), [(1, 18), (1, 1), (2, None), (3, 9), (4, None), (9, 9)])
def test_losses_and_gradients_add_up_to_those_of_the_whole(tiny_config, tiny_model, size, most, per_token):
    """Rows that do not part evenly, processes without a row, dropout on."""
    head = {} if per_token else {"head": HeadConfig("text-classification", labels=("a", "b", "c"), pooling="last")}
    teacher = tiny_model(tiny_config(**head))
    student = tiny_model(tiny_config(**head), {"1.mlp": "lose"}, seed=1).train()
    student.dropout, student.token_dropout = 0.2, 0.1
    whole = given(per_token)
    for loss in (fine_tuning_loss(0.1), recovery_loss(Teacher(teacher, lambda: whole), WEIGHTS)):
        parts = [part for rank in range(size) for part in parts_of(whole, rank, size, most)]
        counts = {len(parts_of(whole, rank, size, most)) for rank in range(size)}
        assert len(counts) == 1, "processes that wait for each other take as many steps"
        (wanted, theirs), (found, ours) = (gradients(student, some, loss) for some in ([whole], parts))
        assert found == pytest.approx(wanted, rel=1e-5)
        assert ours.keys() == theirs.keys()
        for name, one in theirs.items():
            torch.testing.assert_close(ours[name], one, rtol=1e-4, atol=1e-6)


def test_parts_are_cut_to_their_longest_row_and_have_no_mask_without_padding():
    parts = parts_of(given(), 0, 7)
    assert [part.batch.ids.shape for part in parts] == [(1, 4)]
    assert parts[0].batch.mask is None
    pieces = parts_of(given(), most_tokens=18)
    assert [part.batch.ids.shape[0] for part in pieces] == [2, 2, 2, 1]
    assert all(part.batch.ids.numel() <= 18 for part in pieces)
    assert [row for part in pieces for row in part.rows] == given().rows
    assert sum(part.share.targets for part in pieces) == pytest.approx(1)


def test_a_batch_that_is_not_parted_is_the_same_object():
    whole = given()
    assert parts_of(whole)[0] is whole


def test_a_process_without_rows_adds_nothing():
    (part,) = parts_of(given(), 8, 9)
    assert (part.share.targets, part.share.tokens) == (0.0, 0.0)
    assert part.batch.ids.shape[0] == 1


def test_rows_without_a_target_add_nothing(tiny_config, tiny_model):
    whole = given()
    assert whole.targets is not None
    targets = whole.targets.clone()
    targets[0] = IGNORED
    whole = replace(whole, targets=targets)
    first, *_ = parts = parts_of(whole, most_tokens=1)
    assert first.share.targets == 0
    assert first.share.tokens > 0
    teacher, student = tiny_model(tiny_config()), tiny_model(tiny_config(), seed=1)
    for loss in (fine_tuning_loss(0.1), recovery_loss(Teacher(teacher, lambda: whole), WEIGHTS)):
        (wanted, theirs), (found, ours) = (gradients(student, some, loss) for some in ([whole], parts))
        assert found == pytest.approx(wanted, rel=1e-5)
        for name, one in theirs.items():
            torch.testing.assert_close(ours[name], one, rtol=1e-4, atol=1e-6)
        _, alone = gradients(student, [first], loss)
        assert alone.keys() == theirs.keys(), "processes wait for the gradient of each weight"
