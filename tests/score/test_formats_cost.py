"""The measured cost of a format against a plain pass of a model whose weights are what the packed bytes mean."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch

from chinchilla_lm.errors import InputError
from chinchilla_lm.models.transformer import Transformer
from chinchilla_lm.pack.formats import FORMATS
from chinchilla_lm.plan import HEAD, chain
from chinchilla_lm.score.measure import Measure
from chinchilla_lm.score.rounded import Rounded
from chinchilla_lm.shorten.surgery import without
from tests.score.calibration import BODIES, HEADS, calibration, compared, mean

NAMES = [link.name for link in chain(3)]
COARSE = ("int4-sym", "int4-g64", "int8-row")


@pytest.fixture
def model(tiny_config, tiny_model) -> Callable[..., Transformer]:
    """A maker of random models in float32, by body and head."""

    def make(body: str = "pre", head: str = "text", **changes: Any) -> Transformer:
        return tiny_model(tiny_config(**{**BODIES[body], **HEADS[head], **changes}), dtype=torch.float32)

    return make


def replaced(model: Transformer, formats: Mapping[str, str]) -> Transformer:
    """A copy whose matrices went through the bytes of a format and back."""
    changed = copy.deepcopy(model)
    for what, form in formats.items():
        for name in [HEAD] if what == HEAD else [f"{what}.first", f"{what}.second"]:
            weight = changed.matrices()[name].weight
            packed = FORMATS[form].pack(weight.detach().numpy())
            weight.data = torch.from_numpy(FORMATS[form].unpack(packed, *weight.shape).copy())
    return changed


def cost_of(old: Transformer, new: Transformer, head: str) -> float:
    """KL at the compared positions, by plain passes."""
    windows = []
    for batch in calibration(head):
        for before, after in zip(compared(old, batch), compared(new, batch), strict=True):
            if before.shape[-1] == 1:
                windows.append((0.5 * (before - after).square()[:, 0]).tolist())
                continue
            p, q = before.log_softmax(-1), after.log_softmax(-1)
            windows.append((p.exp() * (p - q)).sum(-1).tolist())
    return mean(windows)


@torch.no_grad()
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("body", BODIES)
def test_the_cost_is_that_of_the_weights_that_the_bytes_mean(model, body, head):
    original, source = model(body, head), random.Random(1)
    before = {name: one.clone() for name, one in original.state_dict().items()}
    measure = Measure(original, calibration(head))
    wholes = [*NAMES, HEAD] if head == "text" else NAMES
    for _ in range(5):
        formats = {name: source.choice(COARSE) for name in source.sample(wholes, source.randint(1, len(wholes)))}
        dropped = frozenset(
            source.sample([name for name in NAMES if name not in formats], 0 if len(formats) > 5 else 1)
        )
        short = without(replaced(original, formats), measure.fates(dropped), share=True)
        assert measure.cost(dropped, formats=formats).value == pytest.approx(
            cost_of(original, short, head), rel=2e-3, abs=1e-6
        )
    assert all(torch.equal(one, before[name]) for name, one in original.state_dict().items())


@torch.no_grad()
def test_a_tied_head_changes_the_embedding_too(model):
    original = model(**{"head": "text"})
    assert original.config.head.tied
    measure = Measure(original, calibration())
    measure.cost(frozenset(), formats={"1.mlp": "int8"})  # leaves streams that a rounded embedding may not go on from
    found = measure.cost(frozenset(), formats={HEAD: "int4", "1.mlp": "int8"}).value
    assert found == pytest.approx(
        cost_of(original, replaced(original, {HEAD: "int4", "1.mlp": "int8"}), "text"), rel=1e-3
    )


@torch.no_grad()
def test_matrices_are_rounded_again_where_memory_does_not_last(model):
    original = model()
    small, large = Rounded(original, capacity=1), Rounded(original)
    for matrix in original.matrices():
        assert torch.equal(small.values(matrix, "int4"), large.values(matrix, "int4"))
    weight = original.link("0.mlp").first.weight
    other = original.link("0.mlp").second.weight
    wanted = [
        float((replaced(original, {"0.mlp": "int4"}).matrices()[f"0.mlp.{place}"].weight - one).square().sum())
        / float(one.square().sum())
        for place, one in (("first", weight), ("second", other))
    ]
    assert small.error("0.mlp", "int4") == pytest.approx(sum(wanted) / 2, rel=1e-5)


def test_a_matrix_that_the_model_lacks_is_refused(model):
    with pytest.raises(InputError, match="head is no matrix of this model"):
        Measure(model(head="tags"), calibration("tags")).cost(frozenset(), formats={HEAD: "int8"})
    with pytest.raises(InputError, match="format 'int9' is not one of"):
        Measure(model(), calibration()).cost(frozenset(), formats={"0.mlp": "int9"})
