"""Distillation of a rounded model: gradients, what it may change, what it keeps, and that it can be stopped."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from chinchilla_lm.console import Console
from chinchilla_lm.data.batches import EncodedBatch, batches
from chinchilla_lm.data.encoded import IGNORED, Encoded
from chinchilla_lm.errors import InputError
from chinchilla_lm.models.config import HeadConfig
from chinchilla_lm.models.transformer import Transformer
from chinchilla_lm.pack.formats import FORMATS
from chinchilla_lm.pack.quantized import Quantized
from chinchilla_lm.train import pieces
from chinchilla_lm.train.distil import RATES, Distilled, Student, distil
from chinchilla_lm.train.losses import logit_kl
from chinchilla_lm.train.recover import Teacher
from tests.train.toy import windows

TAGGER = {
    "causal": False,
    "placement": "post",
    "norm": "layernorm",
    "norm_bias": True,
    "final_norm": False,
    "positions": "learned",
    "embedding_norm": True,
    "qkv_bias": True,
    "out_bias": True,
    "mlp_bias": True,
    "head": HeadConfig("token-classification", bias=True, tied=False, labels=("O", "B-X", "I-X")),
}
CASES: dict[str, dict[str, Any]] = {
    "tied": {},
    "untied": {"head": HeadConfig("language-modeling", bias=False, tied=False)},
    "tagger": TAGGER,
}


def rounded(model: Transformer, form: str = "codebook-2x16") -> dict[str, Quantized]:
    """Every large matrix of the model, by the name of its parameter."""
    names = {id(one): name for name, one in model.named_parameters(remove_duplicate=False)}
    how = FORMATS[form].rounding
    assert how is not None
    return {names[id(one.weight)]: how.round(one.weight.detach().float().numpy()) for one in model.matrices().values()}


def text(rows: int, seed: int = 0, labels: int = 0) -> list[EncodedBatch]:
    """Batches, some of them padded; with labels a token where a number of them is given."""
    found = windows(rows, seed)
    if labels:
        found = [Encoded(one.ids, None, [token % labels for token in one.ids], one.owners) for one in found]
    return list(batches(found, max_tokens=40, shuffle_seed=0))


@pytest.fixture
def original(tiny_config, tiny_model) -> Callable[..., Transformer]:
    """A maker of one and the same model."""

    def make(case: str = "tied", dtype: torch.dtype = torch.float32) -> Transformer:
        model: Transformer = tiny_model(tiny_config(**CASES[case]), dtype=dtype)
        return model.eval().requires_grad_(False)

    return make


def train(model: Transformer, form: str = "codebook-2x16", **more: Any) -> tuple[Student, Distilled]:
    student = Student(copy.deepcopy(model), rounded(model, form), ())
    return student, distil(student, model, text(60) * 2, text(12, 5), Console(quiet=True), **more)


def final_norm(model: Transformer) -> Tensor:
    assert model.norm is not None
    assert model.norm.weight is not None
    return model.norm.weight


def same_array(one: Any, other: Any) -> bool:
    return (one is None and other is None) or np.array_equal(one, other)


def spread(matrix: Any) -> Tensor:
    """The weights of a matrix with a codebook of pairs as one expression of the steps."""
    about = matrix.rounded
    start, book = torch.from_numpy(about.scales_NG).double(), torch.from_numpy(about.codebook_ED)
    scales, unit = start * (1 + matrix.scales), book.float().square().mean().sqrt().double()
    pairs = (book.double() + unit * matrix.codebook)[torch.from_numpy(about.codes_NV).long()]
    levels = pairs.unflatten(1, (-1, 4)).transpose(2, 3).flatten(1)[:, : about.columns]
    return levels * scales.repeat_interleave(about.group, 1)[:, : about.columns]


@pytest.mark.parametrize("logits", [97 * 5, 1 << 20])
@pytest.mark.parametrize("case", CASES)
def test_gradients_are_those_of_one_plain_pass(original, case: str, logits: int, monkeypatch):
    """Links run twice, logits in pieces, one matrix behind two uses: against autograd of the whole model at once."""
    monkeypatch.setattr(pieces, "LOGITS", logits)
    teacher, model = original(case, torch.float64), original(case, torch.float64)
    batch = text(5, labels=3 if case == "tagger" else 0)[0]
    student = Student(copy.deepcopy(model), rounded(model), dtype=torch.float32).double()
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.copy_(0.05 * torch.randn(parameter.shape, generator=random, dtype=torch.float64))
    loss = student.train().divergence(batch, Teacher(teacher))
    found = torch.autograd.grad(loss, list(student.parameters()))
    matrices = {name.replace("/", "."): spread(one) for name, one in student.matrices.items()}
    vectors = {name.replace("/", "."): one() for name, one in student.vectors.items()}
    here = batch.targets != IGNORED
    whole = functional_call(model, matrices | vectors, (batch.batch,))[here]
    plain = logit_kl(whole, teacher(batch.batch)[here])
    torch.testing.assert_close(loss, plain, rtol=1e-5, atol=0, check_dtype=False)
    assert len(matrices) == (12 if case == "tagger" else 13)
    assert vectors.keys() == {name for name, one in model.named_parameters() if one.ndim == 1}
    for (name, _), one, other in zip(
        student.named_parameters(), found, torch.autograd.grad(plain, list(student.parameters())), strict=True
    ):
        assert other.abs().max() > 0, name
        torch.testing.assert_close(one, other, rtol=2e-4, atol=1e-6 * float(other.abs().max()), msg=name)


@pytest.mark.parametrize("form", ["codebook-4x256", "int4", "sparse-50-codebook"])
def test_a_rounded_model_comes_nearer_to_its_original(original, form: str):
    model = original()
    before = rounded(model, form)
    student, found = train(model, form)
    assert found.after < 0.9 * found.before
    assert 0 < found.best_step <= found.steps == 2 * len(text(60))
    changed = student.finish()
    assert changed.keys() == before.keys()
    for name, one in changed.items():
        assert np.array_equal(one.codes_NV, before[name].codes_NV)
        assert same_array(one.mask_NK, before[name].mask_NK)
        assert not np.array_equal(one.scales_NG, before[name].scales_NG)
    assert not torch.equal(final_norm(student.model), final_norm(model))


def test_the_model_that_is_left_is_the_one_that_was_judged(original):
    """Its weights are the rounded ones, its norms the trained ones; no more and no less is written."""
    model = original()
    student, found = train(model)
    changed = student.finish()
    left, total, count = student.model, 0.0, 0
    weights = dict(left.named_parameters(remove_duplicate=False))
    for name, one in changed.items():
        assert np.array_equal(weights[name].numpy(), one.values())
    assert left.head.output is not None
    assert left.embedding.tokens.weight is left.head.output.weight
    with torch.no_grad():
        for batch in text(12, 5):
            assert batch.targets is not None
            here = batch.targets != IGNORED
            count += int(here.sum())
            total += float(logit_kl(left(batch.batch)[here], model(batch.batch)[here])) * int(here.sum())
    assert total / count == pytest.approx(found.after, rel=1e-4)


def test_where_nothing_is_better_the_start_is_kept(original):
    model = original()
    student, found = train(model, rates=dict.fromkeys(RATES, 3.0))
    assert found.after == found.before
    assert found.best_step == 0
    changed = student.finish()
    for name, one in rounded(model).items():
        for part in ("codes_NV", "scales_NG", "codebook_ED"):
            assert np.array_equal(getattr(one, part), getattr(changed[name], part))
    assert torch.equal(final_norm(student.model), final_norm(model))


@pytest.mark.parametrize("after", [1, 7])
def test_a_run_that_was_stopped_ends_as_one_that_was_not(original, tmp_path: Path, after: int, monkeypatch):
    model = original()
    wanted = train(model)[0].finish()
    divergence = Student.divergence
    taken: list[EncodedBatch] = []

    def stopping(student: Student, batch: EncodedBatch, teacher: Teacher) -> Tensor:
        if student.training:
            taken.append(batch)
            if len(taken) == after + 1:
                raise KeyboardInterrupt
        return divergence(student, batch, teacher)

    def counting(student: Student, batch: EncodedBatch, teacher: Teacher) -> Tensor:
        taken.extend([batch] if student.training else [])
        return divergence(student, batch, teacher)

    again: dict[str, Any] = {"state": tmp_path / "state", "identity": "one"}
    with monkeypatch.context() as patched:
        patched.setattr(Student, "divergence", stopping)
        with pytest.raises(KeyboardInterrupt):
            train(model, **again)
        taken.clear()
        patched.setattr(Student, "divergence", counting)
        student, found = train(model, **again)
    assert len(taken) == found.steps - after
    ended = student.finish()
    for name, one in wanted.items():
        for part in ("codes_NV", "scales_NG", "codebook_ED"):
            assert np.array_equal(getattr(one, part), getattr(ended[name], part))


def test_a_loss_that_is_no_number_is_one_line(original):
    model, broken = original(), original()
    with torch.no_grad():
        broken.norm.weight.fill_(float("nan"))
    student = Student(copy.deepcopy(model), rounded(model))
    with pytest.raises(InputError, match="the loss is nan at step 0; pass --distil 0"):
        distil(student, broken, text(12), text(12, 5), Console(quiet=True))
