"""Programs whose header lies where the engine does not look: one line of the torch twin and of a race."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chinchilla_lm.errors import InputError
from chinchilla_lm.runtime.engine.native import engine_module
from chinchilla_lm.runtime.engine.packed import PROGRAM
from chinchilla_lm.runtime.engine.program import Program, read_program, write_program
from chinchilla_lm.runtime.loading import load
from chinchilla_lm.runtime.measuring.engines import NATIVE, EngineSpec, open_engine
from chinchilla_lm.runtime.packing import write_packed
from tests.models.test_checkpoint import add_tokenizer
from tests.models.tiny import saved

pytestmark = pytest.mark.skipif(engine_module() is None, reason="the engine is not built")

Header = dict[str, Any]


def lying(folder: Path, tmp_path: Path, change: Callable[[Header], object]) -> Path:
    """A copy of a packed model, whole by its hashes, with another header."""
    whole = read_program(folder / PROGRAM)
    header = {key: value for key, value in whole.header.items() if key not in ("bytes", "sha256", "version")}
    header = copy.deepcopy(header)
    change(header)
    data = np.array(whole.data)
    shutil.copytree(folder, tmp_path / "lies")
    write_program(Program(header, data), tmp_path / "lies" / PROGRAM)
    return tmp_path / "lies"


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("qwen3_5", lambda header: header["operations"][2].update(head_dim=2**27 + 1)),
        ("qwen3_5", lambda header: header["operations"][2].update(heads=-4)),
        ("mpnet", lambda header: header["relative"].update(positions=-1)),
        ("mpnet", lambda header: header["relative"].update(positions=0)),
    ],
)
def test_sizes_that_tables_are_made_of(name: str, change: Callable[[Header], object], tmp_path: Path):
    """Of the first the twin would need 9 GB for the numbers of its rows."""
    folder = saved(tmp_path, name)[1]
    add_tokenizer(folder)
    write_packed(folder, "int8", tmp_path / "packed")
    lies = lying(tmp_path / "packed", tmp_path, change)
    for backend in ("native", "torch"):
        with pytest.raises(InputError, match="run chinchilla pack again"):
            load(lies, backend, threads=1)


@pytest.mark.parametrize("key", ["relative", "distances"])
def test_a_race_with_a_program_that_lacks_what_only_the_twin_reads(
    key: str, model_folder: Callable[..., Path], tmp_path: Path
):
    write_packed(model_folder(), "int8", tmp_path / "packed")
    lies = lying(tmp_path / "packed", tmp_path, lambda header: header.pop(key))
    with pytest.raises(InputError, match="does not say how large its parts are"):
        open_engine(EngineSpec(NATIVE, str(lies), "auto", "cpu", threads=1))
