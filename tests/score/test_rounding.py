"""What rounding costs, against a copy of the model whose weights are the rounded ones."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from chinchilla_lm.errors import InputError
from chinchilla_lm.models.config import HeadConfig
from chinchilla_lm.models.transformer import Transformer
from chinchilla_lm.pack.formats import FORMATS
from chinchilla_lm.pack.mixed import mixed
from chinchilla_lm.score.ledger import Cost, Ledger
from chinchilla_lm.score.measure import Measure
from chinchilla_lm.score.rounding import REFERENCE, Rounding, errors_alone, relative_error, stored
from tests.score.calibration import BODIES, HEADS, calibration, compared

FORMS = [FORMATS[name] for name in ("int8", "int4", "int4-sym", "bf16")]


@pytest.fixture
def model(tiny_config, tiny_model) -> Callable[..., Transformer]:
    """A maker of random models in float32, by body and head."""

    def make(body: str = "pre", head: str | HeadConfig = "text") -> Transformer:
        changes = {"head": head} if isinstance(head, HeadConfig) else HEADS[head]
        return tiny_model(tiny_config(**{**BODIES[body], **changes}), dtype=torch.float32)

    return make


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    """An empty one."""
    return Ledger(tmp_path / "costs.jsonl", "one")


def rounded(model: Transformer, formats: dict[str, str]) -> Transformer:
    """A copy with some matrices in other formats, by their layout's own bytes."""
    made = copy.deepcopy(model)
    with torch.no_grad():
        for name, form in formats.items():
            weight = made.matrices()[name].weight
            form_ = FORMATS[form]
            weight.copy_(torch.from_numpy(form_.unpack(form_.pack(weight.numpy()), *weight.shape)))
    return made


def divergence(model: Transformer, changed: Transformer, batches: Any) -> float:
    """Mean KL over the positions that have a target, by plain passes."""
    values = []
    with torch.no_grad():
        for batch in batches:
            for theirs, ours in zip(compared(model, batch), compared(changed, batch), strict=True):
                if theirs.shape[-1] == 1:
                    values += (0.5 * (theirs - ours).square()).flatten().tolist()
                    continue
                p = theirs.double().log_softmax(-1)
                values += (p.exp() * (p - ours.double().log_softmax(-1))).sum(-1).flatten().tolist()
    return float(np.mean(values))


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("body", BODIES)
def test_a_matrix_alone_costs_what_a_model_with_it_rounded_diverges(model, ledger, body, head):
    original, batches = model(body, head), calibration(head)
    before = {name: one.clone() for name, one in original.state_dict().items()}
    found = Rounding(original, batches, ledger).alone(FORMS)
    assert list(found) == list(original.matrices())
    for name, one in found.items():
        assert one.reference == REFERENCE.name
        wanted = divergence(original, rounded(original, {name: REFERENCE.name}), batches)
        assert one.cost == pytest.approx(wanted, rel=2e-2, abs=2e-6)
        assert one.predicted(REFERENCE.name) == one.cost
    assert all(torch.equal(before[name], one) for name, one in original.state_dict().items())


@pytest.mark.parametrize("tied", [True, False])
def test_all_together_cost_what_the_rounded_model_diverges(model, ledger, tied):
    """An embedding that is the head too is rounded where it is looked up as well."""
    original, batches = model(head=HeadConfig("language-modeling", bias=False, tied=tied)), calibration()
    formats = mixed("int4-sym,1.*=int8,head=int4,2.mlp.first=bf16")
    changed = rounded(original, {name: formats.of(name).name for name in original.matrices()})
    measure, seen = Rounding(original, batches, ledger), list[str]()
    found = measure.together(formats, seen.append).value
    assert found == pytest.approx(divergence(original, changed, batches), rel=2e-2)
    assert seen == list(original.matrices())
    assert measure.together(mixed("f32")).value == pytest.approx(0.0, abs=1e-7)
    head = measure.alone(FORMS)["head"]
    one = rounded(original, {"head": REFERENCE.name})
    assert head.cost == pytest.approx(divergence(original, one, batches), rel=2e-2)


def test_errors_are_those_of_the_outputs(model, ledger):
    """Of the products with the inputs of real tokens, over all products; by plain hooks."""
    original, batches = model("post", "tags"), calibration("tags")
    found = Rounding(original, batches, ledger).alone(FORMS)
    for name, linear in original.matrices().items():
        rows: list[torch.Tensor] = []
        hook = linear.register_forward_pre_hook(lambda _, inputs, rows=rows: rows.append(inputs[0].double()))
        with torch.no_grad():
            for batch in batches:
                original(batch.batch)
                rows[-1] = rows[-1].flatten(0, 1) if batch.batch.mask is None else rows[-1][batch.batch.mask]
        hook.remove()
        x, weight = torch.cat(rows), linear.weight.detach()
        for form in FORMS:
            changed = stored(weight, form).double()
            wanted = ((weight - changed) @ x.T).square().sum() / (weight.double() @ x.T).square().sum()
            assert found[name].errors[form.name] == pytest.approx(float(wanted), rel=1e-3)


def test_a_coarser_format_costs_more_in_truth_and_by_prediction(model, ledger, tmp_path):
    """And the prediction, which is arithmetic alone, comes near a cost that was not measured for it."""
    original, batches = model(), calibration()
    found = Rounding(original, batches, ledger).alone(FORMS)
    for name in original.matrices():
        costs = {}
        for coarse in ("int8", "int4-sym"):
            costs[coarse] = divergence(original, rounded(original, {name: coarse}), batches)
            assert found[name].predicted(coarse) == pytest.approx(costs[coarse], rel=1.0)
        assert costs["int8"] < costs["int4-sym"]
        assert found[name].predicted("int8") < found[name].predicted("int4-sym")
    without_text = errors_alone(original, FORMS, Ledger(tmp_path / "no text.jsonl", "two"), lambda name: None)
    for name, alone in without_text.items():
        weight = original.matrices()[name].weight.detach().double()
        for form in FORMS:
            error = (weight - stored(weight, form).double()).square().sum() / weight.square().sum()
            assert alone.predicted(form.name) == pytest.approx(float(error), rel=1e-4)


def test_what_every_format_keeps_costs_nothing(model, ledger):
    """Zeros, and weights that the reference alone would not change."""
    original = model()
    with torch.no_grad():
        original.matrices()["1.mlp.first"].weight.zero_()
        fine = original.matrices()["0.attn.first"].weight
        fine.copy_(stored(fine, REFERENCE))
    found = Rounding(original, calibration(), ledger).alone([FORMATS["int4-sym-g128"], FORMATS["bf16"]])
    assert found["1.mlp.first"].reference is None
    assert found["1.mlp.first"].predicted("int4-sym-g128") == 0
    assert found["0.attn.first"].predicted("int4-sym-g128") == 0
    assert found["0.attn.first"].reference == "bf16"


def test_measurements_are_kept(model, tmp_path, monkeypatch):
    """Stopped anywhere, the same call goes on to the same figures; all known, nothing is measured."""
    original, batches = model(), calibration()
    whole = Rounding(original, batches, Ledger(tmp_path / "whole.jsonl", "one")).alone(FORMS)

    def stop(name: str) -> None:
        if name == "1.attn.second":
            raise KeyboardInterrupt

    def kept() -> Rounding:
        return Rounding(original, batches, Ledger(tmp_path / "stopped.jsonl", "one"))

    with pytest.raises(KeyboardInterrupt):
        kept().alone(FORMS, stop)
    costs: list[float] = []
    cost_of = Measure.cost_of

    def counted(measure: Measure, streams: list[torch.Tensor]) -> Cost:
        costs.append((found := cost_of(measure, streams)).value)
        return found

    monkeypatch.setattr(Measure, "cost_of", counted)
    assert kept().alone(FORMS) == whole
    assert len(costs) == len(whole) - 6
    assert kept().alone(FORMS) == whole
    assert len(costs) == len(whole) - 6


def test_activations_that_are_no_numbers_are_refused(model, ledger):
    original = model()
    with torch.no_grad():
        original.matrices()["1.attn.second"].weight.fill_(1e38)
    with pytest.raises(InputError, match=r"NaN or infinite|not numbers"):
        Rounding(original, calibration(), ledger).alone(FORMS)
    with pytest.raises(InputError, match="NaN or infinite"):
        relative_error(torch.full((2, 2), torch.nan), torch.zeros(2, 2))
