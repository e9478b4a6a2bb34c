"""Losses against closed forms and torch.distributions, in float64 where that says more."""

import pytest
import torch
from torch.distributions import Categorical, Normal, kl_divergence

from chinchilla_lm.data.encoded import IGNORED
from chinchilla_lm.train.losses import hidden_error, logit_kl, spread_of, squared_error, task_loss


def normal(*shape: int, seed: int = 0, scale: float = 2.0) -> torch.Tensor:
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_kl_is_that_of_torch_distributions_times_the_squared_temperature(temperature):
    student, teacher = normal(7, 11), normal(7, 11, seed=1)
    wanted = kl_divergence(Categorical(logits=teacher / temperature), Categorical(logits=student / temperature))
    found = logit_kl(student, teacher, temperature)
    assert found.item() == pytest.approx(wanted.mean().item() * temperature**2, rel=1e-5)
    assert logit_kl(teacher, student, temperature).item() != pytest.approx(found.item(), rel=1e-2), "not symmetric"


def test_kl_of_a_model_from_itself_is_exactly_zero_and_has_no_gradient():
    logits = normal(5, 9).float().requires_grad_()
    loss = logit_kl(logits, logits.detach())
    loss.backward()
    assert loss.item() == 0.0
    assert logits.grad is not None
    assert logits.grad.abs().max() < 1e-7


def test_kl_of_single_outputs_is_that_of_normal_distributions():
    """A softmax over one output is always 1, so that a ranking model would learn nothing from it."""
    student, teacher = normal(6, 1), normal(6, 1, seed=1)
    wanted = kl_divergence(Normal(teacher, 1.0), Normal(student, 1.0)).mean()
    assert logit_kl(student, teacher).item() == pytest.approx(wanted.item(), rel=1e-6)
    assert logit_kl(student, teacher, temperature=3.0).item() == pytest.approx(wanted.item(), rel=1e-6)


def test_the_gradient_of_kl_is_the_difference_of_the_distributions():
    student, teacher = normal(4, 6).requires_grad_(), normal(4, 6, seed=1)
    logit_kl(student, teacher).backward()
    wanted = (student.detach().softmax(-1) - teacher.softmax(-1)) / 4
    assert student.grad is not None
    assert torch.allclose(student.grad, wanted, atol=1e-7)


def test_kl_with_temperature_keeps_the_scale_of_its_gradient():
    """Hinton et al.: at high temperature the gradient goes to (z - v) / (N V) for centred logits, whatever T is."""
    student, teacher = normal(3, 5, scale=0.1), normal(3, 5, seed=1, scale=0.1)
    student, teacher = student - student.mean(-1, keepdim=True), teacher - teacher.mean(-1, keepdim=True)
    student.requires_grad_()
    logit_kl(student, teacher, temperature=50.0).backward()
    assert student.grad is not None
    assert torch.allclose(student.grad, (student.detach() - teacher) / 15, atol=1e-4)


def test_squared_error_is_summed_over_outputs_and_averaged_over_positions():
    student = torch.tensor([[1.0, 2.0], [0.0, 0.0], [3.0, -1.0]])
    teacher = torch.tensor([[1.0, 0.0], [1.0, 1.0], [3.0, -1.0]])
    assert squared_error(student, teacher).item() == pytest.approx((4 + 2 + 0) / 3)


def test_hidden_error_is_relative_to_the_teachers_variance_and_leaves_padding_out():
    teacher = [normal(2, 4, 3), normal(2, 4, 3, seed=1, scale=50.0)]
    student = [x + 0.1 * x.std() * normal(2, 4, 3, seed=9, scale=1.0) for x in teacher]
    mask = torch.tensor([[True] * 4, [True, True, False, False]])
    wanted = [
        ((ours - theirs)[mask].square().mean() / theirs[mask].var()).item()
        for ours, theirs in zip(student, teacher, strict=True)
    ]
    spreads = [spread_of(x, mask) for x in teacher]
    found = hidden_error(student, teacher, mask, spreads)
    assert found.item() == pytest.approx(sum(wanted) / 2, rel=1e-5)
    assert wanted[0] == pytest.approx(wanted[1], rel=0.5), "the scale of a boundary does not decide its weight"
    for x in student:
        x[~mask] = 1e6
    assert hidden_error(student, teacher, mask, spreads).item() == pytest.approx(found.item(), rel=1e-5)
    assert hidden_error(student, teacher, None, spreads).item() > 1e3
    assert hidden_error(teacher, teacher, None, spreads).item() == 0.0


def test_hidden_error_of_a_constant_stream_stays_finite():
    flat = torch.ones(1, 3, 4)
    assert hidden_error([flat + 1], [flat], None, [spread_of(flat, None)]).item() == pytest.approx(1e6)


def test_task_loss_is_the_mean_over_positions_with_a_target():
    logits = normal(2, 3, 5).requires_grad_()
    targets = torch.tensor([[1, IGNORED, 4], [IGNORED, 0, IGNORED]])
    log_p = logits.detach().log_softmax(-1)
    wanted = -(log_p[0, 0, 1] + log_p[0, 2, 4] + log_p[1, 1, 0]) / 3
    loss = task_loss(logits, targets)
    loss.backward()
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-6)
    assert logits.grad is not None
    assert torch.equal(logits.grad.abs().sum(-1) > 0, targets != IGNORED)


def test_label_smoothing_spreads_its_share_over_all_labels():
    logits, targets = normal(4, 5), torch.tensor([0, 1, 2, 4])
    log_p = logits.log_softmax(-1)
    wanted = 0.8 * -log_p[range(4), targets].mean() + 0.2 * -log_p.mean()
    assert task_loss(logits, targets, smoothing=0.2).item() == pytest.approx(wanted.item(), rel=1e-5)


def test_task_loss_of_numbers_is_their_squared_error():
    logits, targets = torch.tensor([[1.0], [0.5], [-2.0]]), torch.tensor([0.0, 0.5, 1.0])
    assert task_loss(logits, targets).item() == pytest.approx((1 + 0 + 9) / 3)


def test_losses_of_bfloat16_are_computed_in_float32():
    student, teacher = normal(3, 500).bfloat16(), normal(3, 500, seed=1).bfloat16()
    for loss in (logit_kl, squared_error):
        assert loss(student, teacher).dtype == torch.float32
        assert loss(student, teacher).item() == pytest.approx(loss(student.float(), teacher.float()).item())
