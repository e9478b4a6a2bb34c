"""The bias of positions in the engine: every instruction set, threads, windows, caches and formats, against torch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from chinchilla_lm.models.relative import RelativeBias
from chinchilla_lm.models.transformer import Transformer
from chinchilla_lm.runtime.engine.compile import compile_model
from chinchilla_lm.runtime.engine.native import ISA_VARIABLE, NativeModel, engine_module
from chinchilla_lm.runtime.engine.program import Program
from tests.native.examples import assert_near, load, texts
from tests.native.test_engine import torch_rows

pytestmark = pytest.mark.skipif(engine_module() is None, reason="the engine is not built")
SETS = [] if engine_module() is None else engine_module().kernel_names()  # type: ignore[union-attr]


def biased(model: Transformer, buckets: int = 12, distance: int = 9) -> Transformer:
    """The same model with a random bias that is large beside its scores."""
    made = Transformer(replace(model.config, relative_buckets=buckets, relative_distance=distance))
    table = made.embedding.relative
    assert isinstance(table, RelativeBias)
    made.load_state_dict(model.state_dict(), strict=False)
    with torch.no_grad():
        table.weight.copy_(3 * torch.randn(table.weight.shape, generator=torch.Generator().manual_seed(2)))
    return made.eval().requires_grad_(False)


@pytest.mark.parametrize("isa", SETS)
@pytest.mark.parametrize("name", ["bert", "mistral-window", "llama-gqa"])
def test_every_instruction_set(name: str, isa: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Windows begin the keys within a vector; heads that share a key have each their own bias."""
    plain = load(tmp_path, name)
    model = biased(plain)
    monkeypatch.setenv(ISA_VARIABLE, isa)
    expected = torch_rows(model, texts())
    assert np.abs(expected - torch_rows(plain, texts())).max() > 0.1
    for threads in (1, 3):
        native = NativeModel(compile_model(model, "f32"), threads)
        assert_near(native.run(texts(), everywhere=True), expected)


def test_a_cache_knows_how_far_back_its_positions_are(tmp_path: Path):
    model = biased(load(tmp_path, "llama-gqa"))
    native = NativeModel(compile_model(model, "f32"), 2)
    (one,) = texts((40,))
    cache = native.cache(40)
    got = [
        native.run([one[start:stop]], [cache], everywhere=True) for start, stop in [(0, 7), (7, 8), (8, 33), (33, 40)]
    ]
    assert_near(np.concatenate(got), torch_rows(model, [one]))


@pytest.mark.parametrize("form", ["bf16", "int8", "int8-row", "int4"])
def test_formats_round_nothing_of_it(form: str, tmp_path: Path):
    model = load(tmp_path, "mpnet")
    got = NativeModel(compile_model(model, form), 2).run(texts(), everywhere=True)
    exact = torch_rows(model, texts())
    limit = {"bf16": 0.03, "int8": 0.06, "int8-row": 0.1, "int4": 0.5}[form] * exact.std()
    assert np.sqrt(np.mean((got - exact) ** 2)) < limit


@pytest.mark.parametrize("heads", [3, 5])
def test_a_bias_for_other_heads_is_refused(heads: int, tmp_path: Path):
    program = compile_model(load(tmp_path, "mpnet"), "f32")
    header = program.header | {"relative": program.header["relative"] | {"heads": heads}}
    with pytest.raises(Exception, match=r"the bias has other heads|outside the program"):
        NativeModel(Program(header, program.data), 1)
