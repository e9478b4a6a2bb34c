"""What `inspect` reads from a program's header is what the torch twin has that is made of the whole program."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chinchilla_lm.console import Console
from chinchilla_lm.errors import InputError
from chinchilla_lm.models.checkpoint import load, save
from chinchilla_lm.pipeline.inspect import inspect
from chinchilla_lm.pipeline.inspect_model import describe
from chinchilla_lm.runtime.engine.native import engine_module
from chinchilla_lm.runtime.engine.packed import PROGRAM, read_packed
from chinchilla_lm.runtime.engine.program import Program, write_program
from chinchilla_lm.runtime.engine.unpacking import unpack_checkpoint
from chinchilla_lm.runtime.packing import write_packed
from chinchilla_lm.shorten.surgery import without
from tests.models.tiny import DECODERS, ENCODERS


def compared(folder: Path) -> None:
    found = inspect(str(folder), Console(quiet=True), shape=None)
    twin = describe(unpack_checkpoint(folder), str(folder))
    for size in twin["sizes"].values():
        del size["bytes"]
    program = read_packed(folder)[0]
    assert found == {**twin, "dtype": program.header["format"], "bytes": program.size}


@pytest.mark.parametrize("name", sorted(DECODERS))
def test_language_models(model_folder: Callable[..., Path], tmp_path: Path, name: str):
    write_packed(model_folder(name), "int8", tmp_path / "packed")
    compared(tmp_path / "packed")


@pytest.mark.parametrize("kind", ["token-classification", "text-classification", "ranking", "embedding"])
@pytest.mark.parametrize("name", sorted(ENCODERS))
def test_encoders(model_folder: Callable[..., Path], tmp_path: Path, name: str, kind: str):
    write_packed(model_folder(name, kind), "int4", tmp_path / "packed", kind)
    compared(tmp_path / "packed")


@pytest.mark.parametrize("dropped", [{"0.attn": "lose", "2.mlp": "lose"}, {"1.mlp": "keep"}])
def test_shortened_models(model_folder: Callable[..., Path], tmp_path: Path, dropped: dict[str, Any]):
    bare = "keep" in dropped.values()
    checkpoint = load(model_folder("bert", "token-classification") if bare else model_folder())
    checkpoint.model = without(checkpoint.model, dropped, share=True)
    save(checkpoint, tmp_path / "short", {})
    write_packed(tmp_path / "short", "bf16", tmp_path / "packed")
    compared(tmp_path / "packed")
    assert inspect(str(tmp_path / "packed"), Console(quiet=True), shape=None)["dropped"] == dropped


@pytest.mark.parametrize(
    ("key", "value"), [("num_hidden_layers", 2), ("num_attention_heads", 2), ("intermediate_size", 32)]
)
def test_a_program_of_another_config_is_refused(
    model_folder: Callable[..., Path], tmp_path: Path, key: str, value: int
):
    write_packed(model_folder("bert", "token-classification"), "f32", tmp_path / "packed")
    path = tmp_path / "packed" / "config.json"
    config = json.loads(path.read_text())
    assert config[key] != value
    path.write_text(json.dumps(config | {key: value}))
    with pytest.raises(InputError, match="does not fit its config"):
        inspect(str(tmp_path / "packed"), Console(quiet=True), shape=None)


@pytest.mark.parametrize("damage", ["operations", "head", "embedding"])
def test_a_header_that_lacks_a_part_is_refused(model_folder: Callable[..., Path], tmp_path: Path, damage: str):
    write_packed(model_folder(), "f32", tmp_path / "packed")
    program, _ = read_packed(tmp_path / "packed")
    header = json.loads(json.dumps(program.header))
    part = header["operations"][0] if damage == "operations" else header[damage]
    del part["norm"]
    write_program(Program(header, program.data.copy()), tmp_path / PROGRAM)
    (tmp_path / PROGRAM).replace(tmp_path / "packed" / PROGRAM)
    with pytest.raises(InputError, match="run chinchilla pack again"):
        inspect(str(tmp_path / "packed"), Console(quiet=True), shape=None)


@pytest.mark.skipif(engine_module() is None, reason="the engine is not built")
def test_it_is_timed_in_the_engine(model_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("chinchilla_lm.pipeline.inspect.SECONDS", 0.01)
    write_packed(model_folder("bert", "token-classification"), "int8", tmp_path / "packed")
    time = inspect(str(tmp_path / "packed"), Console(quiet=True), shape=(2, 8), threads=1)["time"]
    assert (time["batch"], time["tokens"]) == (2, 8)
    assert all(spent > 0 for spent in time["link_us"].values())
    assert sum(time["link_us"].values()) + time["fixed_us"] == pytest.approx(time["total_us"])
    with pytest.raises(InputError, match="pass other --batch and --tokens"):
        inspect(str(tmp_path / "packed"), Console(quiet=True), shape=(1, 65))
