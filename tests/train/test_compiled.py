"""Compiled links train as they do uncompiled, and are uncompiled again when training ends."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from chinchilla_lm.console import Console
from chinchilla_lm.train import compiled as module
from chinchilla_lm.train.compiled import compiled
from chinchilla_lm.train.loop import fit
from chinchilla_lm.train.recover import Teacher, Weights, recovery_loss
from tests.train.toy import SETTINGS, epochs


def test_a_step_of_recovery_is_the_same(tiny_config, tiny_model, monkeypatch: pytest.MonkeyPatch):
    """Weights after epochs whose batches differ in shape, some with padding, some without. Torch traces the links as it
    does for a GPU, without a compiler behind it, which would take minutes."""
    monkeypatch.setattr(module, "on_gpu", lambda model: True)
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    found = []
    for run in (False, True):
        torch.manual_seed(0)
        teacher = tiny_model(tiny_config(num_kv_heads=4))
        student = tiny_model(tiny_config(num_kv_heads=4), {"1.mlp": "lose"})
        loss = recovery_loss(Teacher(teacher.eval(), lambda: epochs()(0)[0]), Weights(kl=1.0, hidden=0.5))
        with compiled(*([student, teacher] if run else [])):
            assert run == all(link._compiled_call_impl is not None for link in student.links.values())
            fit(student, epochs(), loss, SETTINGS, Console(quiet=True), label="toy")
        assert all(link._compiled_call_impl is None for link in (*student.links.values(), *teacher.links.values()))
        found.append({name: one.detach() for name, one in student.named_parameters()})
    for name, one in found[0].items():
        torch.testing.assert_close(found[1][name], one, rtol=1e-3, atol=1e-5)


def test_on_the_cpu_nothing_is_compiled(tiny_config, tiny_model):
    model = tiny_model(tiny_config())
    with compiled(model):
        assert all(link._compiled_call_impl is None for link in model.links.values())
