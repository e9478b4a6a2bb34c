"""A mean in pieces is the mean, and so are its gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from chinchilla_lm.train import pieces
from chinchilla_lm.train.pieces import mean_in_pieces, mean_over_positions


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("rows", [1, 4, 10])
def test_a_mean_in_pieces_has_the_value_and_the_gradients_of_the_whole(
    tiny_config, tiny_model, monkeypatch: pytest.MonkeyPatch, rows: int, frozen: bool
):
    head = tiny_model(tiny_config(), dtype=torch.float64).head
    head.requires_grad_(not frozen)
    targets = torch.randint(97, (10,), generator=torch.Generator().manual_seed(0))

    def loss(logits: Tensor, part: slice) -> Tensor:
        return F.cross_entropy(logits, targets[part])

    found = []
    for size in (97 * rows, 97 * 1000):
        monkeypatch.setattr(pieces, "LOGITS", size)
        hidden = torch.randn(
            10, head.output.in_features, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
        )
        hidden.requires_grad_()
        head.zero_grad()
        value = 3 * mean_over_positions(head, hidden, loss)
        value.backward()
        weights = [p.grad.clone() for p in head.parameters() if p.grad is not None]
        found.append([value.detach().double(), hidden.grad, *weights])
    assert len(found[0]) == (2 if frozen else 3)
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)


def test_a_mean_in_pieces_without_gradients_is_the_mean(monkeypatch: pytest.MonkeyPatch):
    """As a model is judged; and of weights in bfloat16 the pieces' gradients are added up in float32."""
    monkeypatch.setattr(pieces, "LOGITS", 7 * 3)
    random = torch.Generator().manual_seed(0)
    hidden = torch.randn(10, 4, generator=random)
    weight = torch.randn(7, 4, generator=random).bfloat16().requires_grad_()
    targets = torch.randint(7, (10,), generator=random)

    def mean() -> Tensor:
        return mean_in_pieces(
            lambda piece, one: F.linear(piece, one.float()),
            7,
            [weight],
            hidden,
            lambda logits, part: F.cross_entropy(logits, targets[part]),
        )

    whole = F.cross_entropy(F.linear(hidden, weight.float()), targets)
    with torch.no_grad():
        torch.testing.assert_close(mean(), whole.detach())
    (found,), (wanted,) = (torch.autograd.grad(one, [weight]) for one in (mean(), whole))
    assert found.dtype is torch.bfloat16
    torch.testing.assert_close(found, wanted, rtol=1e-2, atol=1e-4)
