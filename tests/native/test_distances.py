"""DeBERTa's scores in the engine: long texts and many distances, every instruction set, threads, formats, the twin."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chinchilla_lm.errors import InputError
from chinchilla_lm.models import checkpoint as checkpoints
from chinchilla_lm.models.transformer import Transformer
from chinchilla_lm.runtime.engine.compile import compile_model
from chinchilla_lm.runtime.engine.native import ISA_VARIABLE, NativeModel, engine_module
from chinchilla_lm.runtime.engine.program import Program
from chinchilla_lm.runtime.loading import load as load_session
from chinchilla_lm.runtime.packing import write_packed
from tests.models.test_checkpoint import add_tokenizer
from tests.models.tiny import saved
from tests.native.examples import assert_near, texts
from tests.native.test_engine import torch_rows

pytestmark = pytest.mark.skipif(engine_module() is None, reason="the engine is not built")
SETS = [] if engine_module() is None else engine_module().kernel_names()  # type: ignore[union-attr]
# Queries are taken 48 at a time and keys 16: ends within and on both, and texts of one token.
LONG = (170, 1, 97, 48, 64, 33)
# Fewer distances than positions, so that the last rows are many pairs'; and as many, 64 panels of them.
SETTINGS: dict[str, dict[str, Any]] = {
    "deberta-v2": {"position_buckets": 50},
    "deberta-v2-own-matrices": {"max_relative_positions": 512},
    "deberta-v2-c2p": {"position_buckets": 20},
    "deberta-v2-p2c": {"pos_att_type": ["p2c"], "max_relative_positions": 64},
}


def long_reader(tmp_path: Path, name: str) -> Transformer:
    case = name.replace("p2c", "own-matrices")
    _, folder = saved(tmp_path, case, max_position_embeddings=200, **SETTINGS[name])
    return checkpoints.load(folder).model.eval().requires_grad_(False)


@pytest.mark.parametrize("isa", SETS)
@pytest.mark.parametrize("name", SETTINGS)
def test_every_instruction_set(name: str, isa: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model = long_reader(tmp_path, name)
    monkeypatch.setenv(ISA_VARIABLE, isa)
    program = compile_model(model, "f32")
    for threads in (1, 3):
        native = NativeModel(program, threads)
        assert_near(native.run(texts(LONG), everywhere=True), torch_rows(model, texts(LONG)))
        assert_near(native.run(texts(LONG)[:1], everywhere=True), torch_rows(model, texts(LONG)[:1]))


def test_windows_see_the_right_distances(tmp_path: Path):
    """No published DeBERTa has them; a window makes the first column of the scores another position than 0."""
    model = long_reader(tmp_path, "deberta-v2-own-matrices")
    windowed = Transformer(replace(model.config, windows=(20, None, 70)))
    windowed.load_state_dict(model.state_dict())
    windowed.eval().requires_grad_(False)
    native = NativeModel(compile_model(windowed, "f32"), 2)
    assert_near(native.run(texts(LONG), everywhere=True), torch_rows(windowed, texts(LONG)))


@pytest.mark.parametrize("form", ["bf16", "int8", "int8-row", "int4"])
@pytest.mark.parametrize("name", ["deberta-v2", "deberta-v2-own-matrices"])
def test_the_twin_is_near(name: str, form: str, tmp_path: Path):
    case, settings = name, SETTINGS[name]
    _, folder = saved(tmp_path, case, max_position_embeddings=200, **settings)
    add_tokenizer(folder)
    write_packed(folder, form, tmp_path / "packed")
    ids = texts((120,))[0].tolist()
    found = load_session(tmp_path / "packed", "native", threads=2).logits(ids)
    twin = load_session(tmp_path / "packed", "torch", dtype="float32").logits(ids)
    limit = {"bf16": 0.03, "int8": 0.05, "int8-row": 0.05, "int4": 0.1}[form]
    assert np.sqrt(np.mean((found - twin) ** 2)) < limit * twin.std()


@pytest.mark.parametrize(
    "change",
    [
        lambda rows: rows.__setitem__(0, -1),
        lambda rows: rows.__setitem__(-1, 1 << 20),
        lambda rows: rows.__setitem__(30, 0),
        lambda rows: rows.reverse(),
        lambda rows: rows.pop(),
        lambda rows: rows.clear(),
    ],
)
def test_rows_of_distances_that_lie_are_refused(change: Any, tmp_path: Path):
    program = compile_model(long_reader(tmp_path, "deberta-v2"), "f32")
    part = program.header["distances"]
    rows = list(part["rows"])
    assert len(rows) == 399
    assert sorted(rows) == rows
    change(rows)
    with pytest.raises(InputError, match=r"distances: have rows out of order|not one for each distance"):
        NativeModel(Program(program.header | {"distances": part | {"rows": rows}}, program.data), 1)


def test_distances_of_another_format_are_refused(tmp_path: Path):
    program = compile_model(long_reader(tmp_path, "deberta-v2"), "f32")
    header = program.header | {"cache": "bf16"}
    with pytest.raises(InputError, match="its distances have another format"):
        NativeModel(Program(header, program.data), 1)


def test_a_program_needs_its_distances(tmp_path: Path):
    program = compile_model(long_reader(tmp_path, "deberta-v2"), "f32")
    with pytest.raises(InputError, match="there are no distances"):
        NativeModel(Program(program.header | {"distances": None}, program.data), 1)
