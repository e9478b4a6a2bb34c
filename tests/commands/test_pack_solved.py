"""`chinchilla pack` on calibration text, and with formats matrix by matrix."""

import json

import numpy as np
import pytest

from chinchilla_lm.cli import main
from chinchilla_lm.pack.unfinished import Unfinished
from chinchilla_lm.runtime.engine.native import engine_module
from chinchilla_lm.runtime.engine.program import read_program
from chinchilla_lm.runtime.loading import load
from tests.commands.conftest import CALIBRATION

pytestmark = pytest.mark.skipif(engine_module() is None, reason="the engine is not built")


def solving(model, out, *more):
    return [str(model), "--format", "int4", "-o", str(out), *more]


def test_packing_on_calibration_text(model_folder, tmp_path, text, capsys):
    """The same command gives the same bytes, and nothing is left beside them."""
    programs = []
    for name in ("one", "two"):
        arguments = solving(model_folder(), tmp_path / name, "--calibration", text, "--calibration-tokens", "2000")
        assert main(["pack", *arguments, "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert (found["format"], found["solver"]) == ("int4", "gptq")
        assert 4 < found["bits"] < 16
        programs.append((tmp_path / name / "program.bin").read_bytes())
    assert programs[0] == programs[1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "text.jsonl", "two"]
    plain = solving(model_folder(), tmp_path / "plain")
    assert main(["pack", *plain, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["solver"] == "round"
    original = load(model_folder(), "native", dtype="float32")
    tokens = original.tokenizer(CALIBRATION[-1])["input_ids"][:60]
    logits = {name: load(tmp_path / name).logits(tokens) for name in ("one", "plain")}
    errors = {name: float(np.square(found - original.logits(tokens)).sum()) for name, found in logits.items()}
    assert errors["one"] < errors["plain"]


def test_calibration_text_that_will_not_do(model_folder, tmp_path, text, capsys):
    (tmp_path / "short.txt").write_text("A short text .\n" * 20)
    (tmp_path / "split").mkdir()
    for name in ("dev", "test"):
        (tmp_path / "split" / f"{name}.txt").write_text("A text to judge on .\n" * 20)
    for name, said in [("short.txt", "tokens of calibration text are too few"), ("split", "has no training split")]:
        arguments = solving(model_folder(), tmp_path / "out", "--calibration", str(tmp_path / name), "--quiet")
        assert main(["pack", *arguments]) == 2
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1
    arguments = solving(model_folder(), tmp_path / "out", "--calibration-tokens", "10", "--quiet")
    assert main(["pack", *arguments, "--calibration", text]) == 2
    assert "--calibration-tokens 10 is too few; pass 1024 or more" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["short.txt", "split", "text.jsonl"]


def test_formats_matrix_by_matrix(model_folder, tmp_path):
    out = tmp_path / "mixed"
    assert main(["pack", str(model_folder()), "--format", "int4,head=int8,1.*=bf16", "-o", str(out)]) == 0
    header = read_program(out / "program.bin").header
    assert header["format"] == "int4,head=int8,1.*=bf16"
    assert header["head"]["output"]["format"] == "int8"
    kinds = {operation["name"]: operation["second"]["format"] for operation in header["operations"]}
    assert kinds == {
        f"{block}.{link}": "bf16" if block == 1 else "int4" for block in range(3) for link in ("attn", "mlp")
    }
    native, twin = load(out, "native"), load(out, "torch", dtype="float32")
    ours, theirs = (session.logits([5, 9, 23, 41, 2]) for session in (native, twin))
    assert float(np.square(ours - theirs).sum()) < 0.003 * float(np.square(theirs).sum())


def test_what_cannot_be_solved_is_refused(model_folder, tmp_path, capsys):
    vectors, masked = model_folder("bert", "embedding"), model_folder("bert")
    model_folder()
    capsys.readouterr()
    for arguments, said in [
        (solving(model_folder(), tmp_path / "b", "--solver", "gptq"), "needs text to calibrate on"),
        (solving(model_folder(), tmp_path / "b", "--solver", "awq"), "solver 'awq' is not one of round, gptq"),
        (solving(model_folder(), tmp_path / "b", "--solver", "round", "--calibration", "x"), "looks at no data"),
        (solving(model_folder(), tmp_path / "b", "--calibration", str(tmp_path / "none")), "none"),
        (
            solving(model_folder(), tmp_path / "b", "--calibration", "x", "--calibration-tokens", "0"),
            "--calibration-tokens 0 is not above 0",
        ),
        (
            ["--format", "bf16", "--calibration", "x", str(model_folder()), "-o", str(tmp_path / "b")],
            "format bf16 rounds each number by itself",
        ),
        (
            solving(vectors, tmp_path / "b", "--calibration", "x"),
            "makes vectors",
        ),
        (
            solving(masked, tmp_path / "b", "--calibration", "x"),
            "fills in masked words",
        ),
        (solving(model_folder(), tmp_path / "b", "--calibration-tokens", "9"), "is of calibration data"),
        (solving(model_folder(), tmp_path / "b", "--calibration", "x", "--cache", "f16"), "cache 'f16' is not one of"),
        (solving(model_folder(), tmp_path / "b", "--calibration", ""), "--calibration is empty"),
        (solving(model_folder(), tmp_path / "b", "--calibration", "x", "--task", "chess"), "chess"),
        (
            ["--format", "int4,*=bf16", "--calibration", "x", str(model_folder()), "-o", str(tmp_path / "b")],
            "rounds no matrix",
        ),
    ]:
        assert main(["pack", *arguments]) == 2
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("when", ["solving", "writing"])
def test_a_run_that_was_stopped_goes_on(model_folder, tmp_path, text, capsys, monkeypatch, when):
    """By Ctrl-C: the folder is not there, what was done is beside it, and the same command ends with the same bytes."""
    arguments = solving(model_folder(), tmp_path / "out", "--calibration", text, "--calibration-tokens", "2000")
    kept: list[str] = []
    put = Unfinished.put

    def stopping(unfinished, name, rounded):
        put(unfinished, name, rounded)
        kept.append(name)
        if when == "solving" and len(kept) == 3:
            raise KeyboardInterrupt

    def stopped(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Unfinished, "put", stopping)
        if when == "writing":
            patched.setattr("chinchilla_lm.pipeline.pack.write_checkpoint", stopped)
        assert main(["pack", *arguments]) == 130
        said = capsys.readouterr()
        assert "the same command goes on from there" in said.out
        assert not (tmp_path / "out").exists()
        assert len(list((tmp_path / "out.unfinished").iterdir())) == len(kept) >= 3
    done: list[str] = []
    monkeypatch.setattr(Unfinished, "put", lambda unfinished, name, rounded: done.append(name))
    assert main(["pack", *arguments]) == 0
    assert not set(done) & set(kept)
    assert not (tmp_path / "out.unfinished").exists()
    monkeypatch.undo()
    assert main(["pack", *solving(model_folder(), tmp_path / "again", *arguments[5:])]) == 0
    programs = [(tmp_path / name / "program.bin").read_bytes() for name in ("out", "again")]
    assert programs[0] == programs[1]


def test_a_head_that_cannot_have_a_screen_is_refused_before_the_solver_runs(model_folder, tmp_path, text, capsys):
    more = ("--calibration", text, "--calibration-tokens", "2000", "--screen-head", "--quiet")
    assert main(["pack", *solving(model_folder(), tmp_path / "out", *more)]) == 2
    assert "a head in 4 bits or fewer is as small as its screen" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["text.jsonl"]  # no matrix was solved and kept


def test_an_original_without_a_trained_head_is_refused_before_anything_is_packed(model_folder, tmp_path, text, capsys):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "test.txt").write_text("A text to judge on .\n" * 20)
    other = str(model_folder("llama-gqa", "token-classification"))
    judged = ("--margin", "1", "--data", str(tmp_path / "data"), "--against", other)
    assert main(["pack", *solving(model_folder(), tmp_path / "out", *judged)]) == 2
    assert f"{other} has no trained head for language-modeling" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
