"""`chinchilla pack --screen-head`: the same texts, and bytes that are counted."""

import json
from typing import Any

import numpy as np
import pytest

from chinchilla_lm.cli import main
from chinchilla_lm.runtime.engine.demand import SCREENED_ROWS, ProgramDemand, matrix_bytes, screen_bytes
from chinchilla_lm.runtime.engine.native import NativeBackend, engine_module
from chinchilla_lm.runtime.engine.packed import read_packed
from chinchilla_lm.runtime.engine.program import read_program
from chinchilla_lm.runtime.loading import load

pytestmark = pytest.mark.skipif(engine_module() is None, reason="the engine is not built")


def test_a_screen_writes_the_same_text(model_folder, tmp_path, capsys):
    """Beside sampling, penalties and several texts, which ask for all logits; and the figures count it."""
    folders = [tmp_path / name for name in ("plain", "screened")]
    command = ["pack", str(model_folder()), "--format", "int8,head=bf16", "--json", "-o"]
    found = []
    for folder, more in zip(folders, ([], ["--screen-head"]), strict=True):
        assert main([*command, str(folder), *more]) == 0
        found.append(json.loads(capsys.readouterr().out))
    plain, screened = (load(folder, "native", threads=2) for folder in folders)
    options: list[dict[str, Any]] = [{}, {"temperature": 1.1, "seed": 3}, {"repetition_penalty": 1.3}]
    for one in options:
        texts = {session.generate("Once upon", 24, ignore_eos=True, **one) for session in (plain, screened)}
        assert len(texts) == 1
    prompts = ["Once upon", "good", "is it bad"]
    assert plain.generate(prompts, 12, ignore_eos=True) == screened.generate(prompts, 12, ignore_eos=True)
    assert isinstance(screened.runner, NativeBackend)
    assert screened.runner.model.take_screened()[0] >= 24 + 3 * 12
    twin = load(folders[1], "torch", dtype="float32")
    assert np.allclose(twin.logits([5, 9]), load(folders[0], "torch", dtype="float32").logits([5, 9]))
    programs = [read_program(folder / "program.bin") for folder in folders]
    extra = programs[1].size - programs[0].size
    weights = _weights(programs[0].header)
    assert found[1]["bits"] - found[0]["bits"] == pytest.approx(8 * screen_bytes(programs[1].header) / weights)
    assert screen_bytes(programs[1].header) <= extra < screen_bytes(programs[1].header) + 6 * 64
    assert main(["inspect", str(folders[1]), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["bytes"] == programs[1].size


def _weights(header: dict[str, Any]) -> int:
    """Of all matrices and the table."""
    parts = [one[place] for one in header["operations"] for place in ("first", "second")] + [header["head"]["output"]]
    tokens = header["embedding"]["tokens"]
    return sum(part["outputs"] * part["inputs"] for part in parts) + int(tokens["rows"] * tokens["size"])


def test_a_greedy_step_reads_the_screen_and_little_of_the_head(model_folder, tmp_path):
    found = []
    for name, more in (("plain", []), ("screened", ["--screen-head"])):
        folder = tmp_path / name
        assert main(["pack", str(model_folder()), "--format", "bf16", "-o", str(folder), *more]) == 0
        program, card = read_packed(folder)
        found.append((ProgramDemand(program, card), program.header))
    (plain, _), (screened, header) = found
    output = header["head"]["output"]
    panels = -(-output["outputs"] // 16)
    panel = matrix_bytes(output) // panels
    extra = screened.bytes - plain.bytes
    assert screened.decode_bytes(1, 5) == plain.decode_bytes(1, 5) + extra - (panels - 1) * panel
    assert (
        screened.decode_bytes(SCREENED_ROWS, 5) == plain.decode_bytes(SCREENED_ROWS, 5) + extra - (panels - 8) * panel
    )
    assert plain.decode_bytes(9, 5) <= screened.decode_bytes(9, 5) < plain.decode_bytes(9, 5) + 6 * 64
    assert screened.parameters == plain.parameters


@pytest.mark.parametrize(
    ("family", "kind", "form", "said"),
    [
        ("llama", "language-modeling", "int4", "4 bits"),
        ("bert", "token-classification", "bf16", "writes text"),
        ("bert", "language-modeling", "bf16", "writes text"),
    ],
)
def test_heads_without_a_screen(model_folder, tmp_path, capsys, family, kind, form, said):
    folder = tmp_path / "out"
    model = model_folder() if family == "llama" else model_folder(family, kind)
    assert main(["pack", str(model), "--format", form, "--screen-head", "-o", str(folder)]) == 2
    assert said in capsys.readouterr().err
    assert not folder.exists()
