"""`chinchilla pack --distil`: what a solver rounded learns the original's outputs."""

import json

import numpy as np
import pytest

from chinchilla_lm.cli import main
from chinchilla_lm.pack.formats import FORMATS
from chinchilla_lm.runtime.engine.native import engine_module
from chinchilla_lm.runtime.engine.program import read_program
from chinchilla_lm.runtime.loading import load
from chinchilla_lm.train.distil import Student
from tests.commands.conftest import CALIBRATION

pytestmark = pytest.mark.skipif(engine_module() is None, reason="the engine is not built")


def packing(model, out, text, *more, form="int4-sym"):
    calibration = ["--calibration", text, "--calibration-tokens", "2000"]
    return ["pack", str(model), "--format", form, "-o", str(out), *calibration, *more]


@pytest.mark.parametrize("form", ["int4-sym", "codebook-2x64"])
def test_a_model_that_learnt_is_nearer_to_its_original(model_folder, tmp_path, text, capsys, form):
    """The engine runs what torch trained: codes as the solver left them, other scales and norms."""
    folder, found = model_folder(), {}
    for name, tokens in (("solved", "0"), ("learnt", "40000")):
        assert main([*packing(folder, tmp_path / name, text, "--distil", tokens, form=form), "--json"]) == 0
        found[name] = json.loads(capsys.readouterr().out)
    assert found["solved"]["distilled"] is None
    learnt = found["learnt"]["distilled"]
    assert learnt["tokens"] >= 40_000
    assert learnt["kl_after"] < 0.9 * learnt["kl_before"]
    programs = {name: read_program(tmp_path / name / "program.bin") for name in found}
    matrices = {}
    for name, program in programs.items():
        part = program.header["operations"][1]["second"]
        packed = program.data[part["offset"] :][: FORMATS[form].bytes(part["outputs"], part["inputs"])]
        matrices[name] = FORMATS[form].rounded(np.asarray(packed), part["outputs"], part["inputs"])
    assert np.array_equal(matrices["solved"].codes_NV, matrices["learnt"].codes_NV)
    assert not np.array_equal(matrices["solved"].scales_NG, matrices["learnt"].scales_NG)
    original = load(folder, "native", dtype="float32")
    tokens = original.tokenizer(CALIBRATION[-1])["input_ids"][:60]
    logits = {name: load(tmp_path / name).logits(tokens) for name in found}
    errors = {name: float(np.square(one - original.logits(tokens)).sum()) for name, one in logits.items()}
    assert errors["learnt"] < errors["solved"]
    twin = load(tmp_path / "learnt", "torch", dtype="float32").logits(tokens)
    assert float(np.square(logits["learnt"] - twin).sum()) < 0.003 * float(np.square(twin).sum())


@pytest.mark.parametrize("after", [2, 4])
def test_a_run_that_was_stopped_ends_with_the_same_bytes(model_folder, tmp_path, text, capsys, monkeypatch, after):
    arguments = packing(model_folder(), tmp_path / "out", text, "--distil", "12000")
    divergence, taken = Student.divergence, []

    def stopping(student, batch, teacher):
        taken.extend([batch] if student.training else [])
        if len(taken) == after and student.training:
            raise KeyboardInterrupt
        return divergence(student, batch, teacher)

    monkeypatch.setattr(Student, "divergence", stopping)
    assert main(arguments) == 130
    said = capsys.readouterr()
    assert "the same command goes on from there" in said.out
    assert not (tmp_path / "out").exists()
    assert (tmp_path / "out.unfinished" / "distil.state").exists()
    assert main(arguments) == 0
    assert f"resumed at step {after - 1} of " in capsys.readouterr().out
    assert not (tmp_path / "out.unfinished").exists()
    monkeypatch.undo()
    assert main(packing(model_folder(), tmp_path / "again", text, "--distil", "12000")) == 0
    programs = [(tmp_path / name / "program.bin").read_bytes() for name in ("out", "again")]
    assert programs[0] == programs[1]


def test_what_cannot_be_distilled_is_refused(model_folder, tmp_path, text, capsys):
    plain = ["pack", str(model_folder()), "--format", "int4", "-o", str(tmp_path / "b")]
    capsys.readouterr()
    for arguments, said in [
        (
            [*plain, "--distil", "100"],
            "--distil 100 trains what a solver rounded on calibration data; pass --calibration",
        ),
        ([*packing(model_folder(), tmp_path / "b", text, "--distil", "-5")], "--distil -5 is below 0"),
        ([*packing(model_folder(), tmp_path / "b", text, "--distil", "many")], "--distil"),
        (
            [*plain[:2], "--bits", "5", *plain[4:], "--calibration", text, "--solver", "round", "--distil", "9"],
            "--distil 9 trains what a solver rounded on calibration data; leave --solver round away",
        ),
    ]:
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert said in error
        assert error.strip().count("\n") == 0 or "usage" in error
    assert not (tmp_path / "b").exists()
