"""Real removal: what is dropped is gone, what is left is untouched, nothing dropped is the same model to the bit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch

from chinchilla_lm.errors import InputError
from chinchilla_lm.models.batch import Batch
from chinchilla_lm.models.config import HeadConfig
from chinchilla_lm.models.transformer import NormFate, Transformer
from chinchilla_lm.plan import Choice, Plan, chain
from chinchilla_lm.runtime.prepare import prepare
from chinchilla_lm.shorten.surgery import drops, outline, shorten, without

TAGS = HeadConfig("token-classification", labels=("O", "B-X", "I-X"))
BODIES: dict[str, dict[str, Any]] = {
    "llama, tied": {},
    "gemma": {"placement": "sandwich", "norm_unit_offset": True, "qk_norm": True, "embedding_scale": 5.7},
    "gpt2, untied": {
        "norm": "layernorm",
        "gated": False,
        "positions": "learned",
        "mlp_bias": True,
        "head": HeadConfig("language-modeling", bias=False),
    },
    "bert": {
        "norm": "layernorm",
        "placement": "post",
        "causal": False,
        "gated": False,
        "final_norm": False,
        "head": TAGS,
    },
}
DROPS: list[dict[str, NormFate]] = [
    {"1.attn": "lose"},
    {"0.attn": "lose", "0.mlp": "lose", "2.mlp": "keep"},
    {"0.mlp": "keep", "1.attn": "keep", "1.mlp": "keep", "2.attn": "lose"},
    {link.name: "lose" for link in chain(3)},
]


@pytest.fixture(params=BODIES.values(), ids=list(BODIES))
def model(request, tiny_config, tiny_model) -> Transformer:
    """A random model in float32 of each body."""
    return tiny_model(tiny_config(**request.param), dtype=torch.float32)


@pytest.fixture
def make(tiny_config, tiny_model) -> Callable[[str], Transformer]:
    """A maker of random models in float32, by body."""
    return lambda body: tiny_model(tiny_config(**BODIES[body]), dtype=torch.float32)


def batch() -> Batch:
    ids = torch.randint(97, (3, 9), generator=torch.Generator().manual_seed(1))
    return Batch(ids, torch.arange(9)[None] < torch.tensor([[9], [6], [2]]))


@torch.no_grad()
def logits(model: Transformer) -> torch.Tensor:
    return model(batch())


@torch.no_grad()
def skipping(model: Transformer, skip: Mapping[str, NormFate]) -> torch.Tensor:
    """The logits of the whole model when it leaves links out on its way."""
    x, context = model.embed(batch())
    return model.head(model.finish(model.run(x, context, skip=skip)), batch())


def size(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("share", [True, False])
def test_nothing_dropped_gives_the_same_logits_to_the_bit(model, share):
    assert torch.equal(logits(without(model, {}, share=share)), logits(model))
    assert torch.equal(logits(shorten(model, Plan.from_dropped(3, ()))), logits(model))


@pytest.mark.parametrize("dropped", DROPS, ids=["one", "block", "many", "all"])
def test_the_logits_are_those_of_leaving_the_links_out(model, dropped):
    short = without(model, dropped, share=False)
    assert torch.equal(logits(short), skipping(model, dropped))
    assert not torch.equal(logits(short), logits(model))
    assert logits(short).std() > 0.01


@pytest.mark.parametrize("dropped", DROPS, ids=["one", "block", "many", "all"])
def test_dropped_links_are_truly_absent(model, dropped):
    before = size(model)
    short = without(model, dropped, share=False)
    kept_norms = [name for name in dropped if dropped[name] == "keep" and model.config.post_norm]
    gone = sum(size(model.link(name)) - (size(model.link(name).norm) if name in kept_norms else 0) for name in dropped)
    assert gone > 0
    assert size(short) == size(model) - gone
    assert short.link_names == [name for name in model.names if name not in dropped]
    for name in dropped:
        left = [key for key in short.state_dict() if key.startswith(f"links.{name.replace('.', '_')}.")]
        assert all(".norm." in key for key in left)
        assert bool(left) is (name in kept_norms)
    assert size(model) == before, "the model itself is whole"


def test_names_stay_where_they_were(model):
    short = without(model, {"0.attn": "lose", "1.mlp": "lose"}, share=True)
    assert short.names == model.names
    again = without(short, {"2.attn": "lose"}, share=True)
    assert again.link_names == ["0.mlp", "1.attn", "2.mlp"]
    assert torch.equal(logits(again), skipping(model, dict.fromkeys(["0.attn", "1.mlp", "2.attn"], "lose")))


def test_a_shared_model_follows_its_original_and_a_copy_does_not(model):
    dropped: dict[str, NormFate] = {"1.attn": "lose"}
    shared, copied = without(model, dropped, share=True), without(model, dropped, share=False)
    old = {name: value.data_ptr() for name, value in model.state_dict().items()}
    assert all(value.data_ptr() == old[name] for name, value in shared.state_dict().items())
    assert not {value.data_ptr() for value in copied.state_dict().values()} & set(old.values())
    with torch.no_grad():
        model.link("0.mlp").down.weight.mul_(2)
    assert torch.equal(logits(shared), skipping(model, dropped))
    assert not torch.equal(logits(copied), logits(shared))


@pytest.mark.parametrize("share", [True, False])
def test_a_tied_head_stays_tied_and_an_untied_one_does_not_become_so(make, share):
    tied = without(make("llama, tied"), {"1.attn": "lose"}, share=share)
    assert tied.head.output is not None
    assert tied.head.output.weight is tied.embedding.tokens.weight
    free = without(make("gpt2, untied"), {"1.attn": "lose"}, share=share)
    assert free.head.output is not None
    assert free.head.output.weight is not free.embedding.tokens.weight


def test_a_copy_can_be_trained_and_keeps_the_mode_of_its_original(model):
    assert without(model, {}, share=False).training is False
    student = without(model.train(), {"1.attn": "lose"}, share=False)
    assert student.training is True
    student(batch()).square().mean().backward()
    assert all(parameter.grad is not None for parameter in student.parameters())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("dropped", DROPS, ids=["one", "block", "many", "all"])
def test_a_model_whose_norms_are_folded_is_shortened_too(model, dropped):
    """What is timed and measured is the model as it is served."""
    ready = prepare(model, torch.device("cpu"), torch.float32)
    for share in (True, False):
        short = without(ready, dropped, share=share)
        assert torch.equal(logits(short), skipping(ready, dropped))
        assert torch.allclose(logits(short), logits(without(model, dropped, share=True)), atol=1e-4)


def test_an_outline_has_the_parameters_of_the_model_and_no_storage(model):
    ready = prepare(model, torch.device("cpu"), torch.float32)
    for one in (model, ready):
        shapes = {name: tuple(tensor.shape) for name, tensor in outline(one).state_dict().items()}
        assert shapes == {name: tuple(tensor.shape) for name, tensor in one.state_dict().items()}
        assert all(tensor.is_meta for tensor in outline(one).state_dict().values())


def test_an_unknown_link_is_an_input_error(model):
    with pytest.raises(InputError, match=r"link '3.attn' is not one of 0.attn … 2.mlp"):
        without(model, {"3.attn": "lose"}, share=True)


def test_a_plan_says_what_becomes_of_the_norms(make):
    choices = [Choice(link.name, "keep") for link in chain(3)]
    choices[1], choices[2] = Choice("0.mlp", "drop", "keep"), Choice("1.attn", "drop", "lose")
    plan = Plan(3, tuple(choices))
    assert drops(plan) == {"0.mlp": "keep", "1.attn": "lose"}
    model = make("bert")
    short = shorten(model, plan)
    assert short.dropped == {"0.mlp": "keep", "1.attn": "lose"}
    assert torch.equal(logits(short), skipping(model, drops(plan)))
    assert not torch.equal(logits(short), skipping(model, {"0.mlp": "lose", "1.attn": "lose"}))
    assert drops(Plan.from_dropped(3, ["0.mlp"])) == {"0.mlp": "lose"}
