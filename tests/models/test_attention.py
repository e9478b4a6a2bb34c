"""Training multiplies attention out; it must be the function that inference computes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from chinchilla_lm.models import layers
from chinchilla_lm.models.checkpoint import load
from chinchilla_lm.models.layers import QUERIES, explicit_attention
from tests.models.tiny import batch, saved


@pytest.mark.parametrize("kind", ["full", "causal", "padded", "causal and padded"])
@pytest.mark.parametrize("positions", [7, 2 * QUERIES + 5])
def test_explicit_attention_equals_sdpa(kind: str, positions: int) -> None:
    torch.manual_seed(0)
    inputs = [torch.randn(2, heads, positions, 8, dtype=torch.float64, requires_grad=True) for heads in (6, 2, 2)]
    mask = torch.rand(2, 1, positions, positions) > 0.5 if "padded" in kind else None
    if mask is not None:
        mask |= torch.eye(positions, dtype=torch.bool)
        if "causal" in kind:
            mask = mask.tril()
    causal = "causal" in kind
    query, key, value = inputs
    found = explicit_attention(query, key, value, mask, causal, scale=0.3)
    keys, values = key.repeat_interleave(3, dim=1), value.repeat_interleave(3, dim=1)
    expected = torch.nn.functional.scaled_dot_product_attention(
        query, keys, values, attn_mask=mask, is_causal=kind == "causal", scale=0.3
    )
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    pull = torch.randn_like(found)
    for ours, theirs in zip(
        torch.autograd.grad(found, inputs, pull), torch.autograd.grad(expected, inputs, pull), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("padded", [False, True])
def test_queries_are_not_multiplied_with_keys_that_are_hidden(padded: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, real = [], layers._mix

    def mix(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, softcap: float | None) -> Tensor:
        sizes.append((query.shape[3], key.shape[2]))
        return real(query, key, value, mask, softcap)

    monkeypatch.setattr(layers, "_mix", mix)
    one = torch.randn(1, 2, 261, 4)
    mask = torch.ones(261, 261, dtype=torch.bool).tril()[None, None] if padded else None
    explicit_attention(one, one, one, mask, True, None)
    assert sizes == [(128, 128), (128, 256), (5, 261)]


def test_a_row_that_may_look_nowhere_stays_finite_and_leaves_the_others_as_they_are() -> None:
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, 2, 8, 4, requires_grad=True) for _ in range(3))
    place = torch.arange(8)
    mask = (place <= place[:, None]) & (place[:, None] - place < 3) & (place < 3)  # rows 5 and on see padding only
    found = explicit_attention(query, key, value, mask[None, None], False, None)
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask[None, None])
    torch.testing.assert_close(found[:, :, :5], expected[:, :, :5])
    assert torch.isfinite(found).all()


@pytest.mark.parametrize("name", ["gemma3", "mistral-window"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_padding_longer_than_the_window_does_not_poison_training(tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    model = load(saved(tmp_path, name)[1]).model.train()
    data = batch(padded=True)  # rows of 24, 12 and 3 tokens; windows of 5 and 7
    assert data.mask is not None
    with torch.autocast("cpu", dtype, enabled=dtype is torch.bfloat16):
        logits = model(data)
    loss = torch.nn.functional.cross_entropy(logits[data.mask].float(), data.ids[data.mask])
    loss.backward()
    assert torch.isfinite(loss)
    for parameter in model.parameters():
        assert parameter.grad is not None
        assert torch.isfinite(parameter.grad).all()
