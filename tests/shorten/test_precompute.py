from typing import Any

import pytest
import torch

from chinchilla_lm.models.batch import Batch
from chinchilla_lm.models.config import HeadConfig
from chinchilla_lm.models.transformer import Transformer
from chinchilla_lm.shorten.precompute import fold_norms

LM = HeadConfig("language-modeling", bias=False)
HEADS = {
    "lm": LM,
    "lm-tied": HeadConfig("language-modeling", bias=False, tied=True),
    "lm-transform": HeadConfig("language-modeling", transform=True, dense_activation="gelu"),
    "tags": HeadConfig("token-classification", labels=("O", "B-A", "I-A")),
    "class-mean": HeadConfig("text-classification", labels=("a", "b"), pooling="mean"),
    "class-dense": HeadConfig("text-classification", labels=("a", "b"), dense_activation="tanh", bias=False),
    "ranking-last": HeadConfig("ranking", labels=("score",), pooling="last"),
    "embedding": HeadConfig("embedding", pooling="mean", normalize=True),
}
BODIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "gemma": {"placement": "sandwich", "norm_unit_offset": True, "qk_norm": True, "embedding_scale": 5.7},
    "olmo2": {"placement": "output", "qk_norm": True, "qk_norm_over": "all"},
    "granite": {"residual_scale": 0.3, "logit_scale": 0.5, "attention_scale": 0.2},
    "gemma2": {"placement": "sandwich", "norm_unit_offset": True, "attention_softcap": 2.0, "logit_softcap": 3.0},
    "gpt2": {"norm": "layernorm", "gated": False, "positions": "learned", "qkv_bias": True, "mlp_bias": True},
    "no-bias-layernorm": {"norm": "layernorm", "causal": False, "windows": (4, None, 4)},
    "modernbert": {
        "norm": "layernorm",
        "causal": False,
        "norm_bias": False,
        "first_norm": False,
        "embedding_norm": True,
    },
    "bert": {"norm": "layernorm", "placement": "post", "causal": False, "gated": False, "final_norm": False},
}
DROPPED = {"whole": {}, "short": {"0.attn": "lose", "1.mlp": "lose", "2.attn": "lose"}}


def batch() -> Batch:
    ids = torch.randint(97, (3, 11), generator=torch.Generator().manual_seed(1))
    return Batch(ids, torch.arange(11)[None, :] < torch.tensor([[11], [7], [4]]))


def difference(model: Transformer, other: Transformer) -> float:
    with torch.inference_mode():
        wanted, given = model(batch()), other(batch())
    assert wanted.std() > 0.01
    assert wanted.shape == given.shape
    real = batch().mask
    return float((wanted - given)[real if wanted.ndim == 3 else slice(None)].abs().max())


@pytest.mark.parametrize("dropped", DROPPED.values(), ids=DROPPED)
@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_the_folded_model_computes_the_same(tiny_config, tiny_model, body, head, dropped):
    config = tiny_config(**body, head=head)
    for dtype, limit in ((torch.float64, 1e-10), (torch.float32, 2e-5)):
        model = tiny_model(config, dropped, dtype)
        before = {name: weight.clone() for name, weight in model.state_dict().items()}
        folded = fold_norms(model)
        assert difference(model, folded) < limit
        assert model.state_dict().keys() == before.keys()
        assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


@pytest.mark.parametrize("body", ["llama", "gemma", "gpt2"])
def test_norms_lose_their_weights_and_the_rest_is_shared(tiny_config, tiny_model, body):
    model = tiny_model(tiny_config(**BODIES[body], head=LM), {"1.attn": "lose"})
    folded = fold_norms(model)
    assert folded.link_names == model.link_names
    for name in folded.link_names:
        norm = folded.link(name).norm
        assert norm is not None
        assert norm.weight is None
        assert norm.bias is None
    assert folded.norm is not None
    assert folded.norm.weight is None
    theirs, ours = dict(model.named_parameters()), dict(folded.named_parameters())
    same = {name for name in ours if name in theirs and ours[name] is theirs[name]}
    assert {name for name in ours if name not in same and name in theirs} <= {
        name for name in theirs if name.split(".")[-2] in ("qkv", "up", "output")
    }
    assert "embedding.tokens.weight" in same
    assert "links.0_attn.out.weight" in same


def test_a_tied_decoder_keeps_the_final_norm_and_stays_tied(tiny_config, tiny_model):
    model = tiny_model(tiny_config())
    folded = fold_norms(model)
    assert folded.norm is not None
    assert model.norm is not None
    assert folded.norm.weight is model.norm.weight
    assert folded.head.output is not None
    assert folded.head.output.weight is folded.embedding.tokens.weight is model.embedding.tokens.weight


def test_folding_twice_changes_nothing_more(tiny_config, tiny_model):
    once = fold_norms(tiny_model(tiny_config(**BODIES["gpt2"], head=LM)))
    twice = fold_norms(once)
    assert all(torch.equal(weight, twice.state_dict()[name]) for name, weight in once.state_dict().items())


def test_a_post_norm_model_comes_back_as_it_is(tiny_config, tiny_model):
    model = tiny_model(tiny_config(**BODIES["bert"], head=HEADS["tags"]), {"1.mlp": "keep"})
    assert fold_norms(model) is model


def test_bfloat16_is_rounded_once(tiny_config, tiny_model):
    """A product rounded from exact factors is as near as bfloat16 gets; a product of rounded ones is not."""
    model = tiny_model(tiny_config(head=LM), dtype=torch.float32)
    before = model.state_dict()
    exact = before["links.0_attn.qkv.weight"].double() * before["links.0_attn.norm.weight"].double()
    folded = fold_norms(model).to(torch.bfloat16).state_dict()["links.0_attn.qkv.weight"]
    assert torch.equal(folded, exact.to(torch.float32).to(torch.bfloat16))
