"""The format of keys and values: a switch that no weight depends on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chinchilla_lm.errors import InputError
from chinchilla_lm.runtime.engine.native import NativeBackend
from chinchilla_lm.runtime.loading import load
from chinchilla_lm.runtime.packing import write_packed
from chinchilla_lm.runtime.session import Session

IDS = list(range(5, 69))


def program_of(session: Session) -> dict[str, Any]:
    runner = session.runner
    assert isinstance(runner, NativeBackend)
    return runner.model.program.header


@pytest.mark.parametrize("packed", [False, True])
def test_the_cache_is_switched_and_named(model_folder, tmp_path: Path, packed: bool):
    source = model_folder("llama-gqa")
    if packed:
        write_packed(source, "int8", tmp_path / "packed")
        source = tmp_path / "packed"
    logits = {}
    for cache in ("auto", "bf16", "int8"):
        session = load(source, backend="native", threads=1, cache=cache)
        header = program_of(session)
        assert header["cache"] == (("int8" if packed else "bf16") if cache == "auto" else cache)
        logits[cache] = session.logits(IDS)
    same, other = ("int8", "bf16") if packed else ("bf16", "int8")
    np.testing.assert_array_equal(logits["auto"], logits[same])
    assert 0 < np.abs(logits[same] - logits[other]).max() < 0.2


def test_a_packed_model_keeps_the_cache_that_it_was_packed_with(model_folder, tmp_path: Path):
    write_packed(model_folder("llama-gqa"), "int8", tmp_path / "packed", cache="bf16")
    session = load(tmp_path / "packed", threads=1)
    assert program_of(session)["cache"] == "bf16"


def test_what_cannot_be_is_refused(model_folder, tmp_path: Path):
    with pytest.raises(InputError, match="cache 'int3' is not one of auto, bf16, int8"):
        load(model_folder("llama-gqa"), backend="native", cache="int3")
    with pytest.raises(InputError, match="cache int8 is of the keys and values of a model that writes"):
        load(model_folder("bert", "token-classification"), backend="native", cache="int8")
    with pytest.raises(InputError, match="cache int8 is the native engine's"):
        load(model_folder("llama-gqa"), backend="torch", cache="int8")
    with pytest.raises(InputError, match="is not one of auto, bf16, int8"):
        write_packed(model_folder("llama-gqa"), "int8", tmp_path / "packed", cache="f16")
    assert not (tmp_path / "packed").exists()
