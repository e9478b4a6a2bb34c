"""A model made ready: the same function, in another dtype, and the given model as it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from chinchilla_lm.models.batch import Batch
from chinchilla_lm.models.config import HeadConfig
from chinchilla_lm.models.transformer import Transformer
from chinchilla_lm.runtime.prepare import prepare

CPU = torch.device("cpu")
BODIES: dict[str, dict[str, Any]] = {
    "llama, tied": {},
    "llama, untied": {"head": HeadConfig("language-modeling", bias=False)},
    "gemma": {"placement": "sandwich", "norm_unit_offset": True, "qk_norm": True, "embedding_scale": 5.7},
    "gpt2": {"norm": "layernorm", "gated": False, "positions": "learned", "qkv_bias": True, "mlp_bias": True},
    "bert": {
        "norm": "layernorm",
        "placement": "post",
        "causal": False,
        "gated": False,
        "final_norm": False,
        "head": HeadConfig("token-classification", labels=("O", "B-X", "I-X")),
    },
}


@pytest.fixture(params=[{}, {"0.attn": "lose", "2.mlp": "keep"}], ids=["whole", "short"])
def dropped(request) -> dict[str, str]:
    return request.param


@pytest.fixture(params=BODIES.values(), ids=list(BODIES))
def model(request, dropped, tiny_config, tiny_model) -> Transformer:
    """A random model in float32 of each body, whole and shortened."""
    return tiny_model(tiny_config(**request.param), dropped, dtype=torch.float32)


@torch.no_grad()
def logits(model: Transformer) -> torch.Tensor:
    ids = torch.randint(97, (3, 9), generator=torch.Generator().manual_seed(1))
    return model(Batch(ids, torch.arange(9)[None] < torch.tensor([[9], [6], [2]])))


def test_it_computes_the_same_in_float32(model):
    wanted, found = logits(model), logits(prepare(model, CPU, torch.float32))
    assert wanted.std() > 0.1
    assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()


def test_the_given_model_is_not_touched(model):
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    ready = prepare(model, CPU, torch.float32)
    with torch.no_grad():
        for parameter in ready.parameters():
            parameter.fill_(7.0)
    assert model.training is True
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert ready.training is False
    assert not any(parameter.requires_grad for parameter in ready.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_it_has_the_asked_dtype_throughout(model, dtype):
    ready = prepare(model, CPU, dtype)
    assert {tensor.dtype for tensor in ready.state_dict().values()} == {dtype}
    wanted, found = logits(model), logits(ready)
    assert found.dtype == dtype
    assert (found - wanted).abs().mean() <= 0.05 * wanted.abs().mean()


def test_a_tied_head_stays_tied(model):
    ready = prepare(model, CPU, torch.bfloat16)
    assert ready.head.output is not None
    tied = model.config.head.kind == "language-modeling" and model.config.head.tied
    assert (ready.head.output.weight is ready.embedding.tokens.weight) is tied
    assert ready.link_names == model.link_names
    assert ready.dropped == model.dropped
