"""Training multiplies attention out; it must be the function that inference computes."""

import pytest
import torch

from chinchilla_lm.models.layers import explicit_attention


@pytest.mark.parametrize("kind", ["full", "causal", "padded"])
def test_explicit_attention_equals_sdpa(kind: str) -> None:
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, heads, 7, 8, dtype=torch.float64) for heads in (6, 2, 2))
    mask = torch.rand(2, 1, 7, 7) > 0.5 if kind == "padded" else None
    if mask is not None:
        mask |= torch.eye(7, dtype=torch.bool)
    causal = kind == "causal"
    found = explicit_attention(query, key, value, mask, causal, scale=0.3)
    shared = [part.repeat_interleave(3, dim=1) for part in (key, value)]
    expected = torch.nn.functional.scaled_dot_product_attention(
        query, *shared, attn_mask=mask, is_causal=causal, scale=0.3
    )
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
