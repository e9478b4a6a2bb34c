"""`chinchilla pack --bits`, and the certificate of what was packed."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from chinchilla_lm import api
from chinchilla_lm.pack.formats import FORMATS
from chinchilla_lm.pack.mixed import mixed
from chinchilla_lm.pack.unfinished import Unfinished
from chinchilla_lm.pipeline import mixing
from chinchilla_lm.runtime.engine.native import engine_module
from chinchilla_lm.runtime.engine.program import read_program
from chinchilla_lm.runtime.engine.unpacking import unpack_checkpoint
from chinchilla_lm.runtime.loading import load
from chinchilla_lm.score.ledger import Ledger
from chinchilla_lm.score.measure import Measure
from tests.commands.conftest import Done, running_text, write_jsonl

pytestmark = pytest.mark.skipif(engine_module() is None, reason="the engine is not built")

OFFERED = "int8,int8-row,int4,int4-sym,int4-sym-g64,bf16"
Pack = Callable[..., Done]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Where to pack to."""
    return tmp_path / "out"


@pytest.fixture
def pack(chinchilla, model_folder, out: Path) -> Pack:
    """pack() of the tiny language model into a folder, by default `out`, with --json."""

    def call(*words: object, model: Path | None = None, to: Path = out) -> Done:
        return chinchilla("pack", model or model_folder(), *words, "-o", to, "--json")

    return call


def bits_of(folder: Path) -> float:
    """Bits a weight of the matrices of the tiny language model, from its program's header, whatever was said."""
    header = read_program(folder / "program.bin").header
    parts = [one[place] for one in header["operations"] for place in ("first", "second")] + [header["head"]["output"]]
    size = 0
    for part in parts:
        form = next(one for one in FORMATS.values() if one.matches(part))
        size += form.bytes(part["outputs"], part["inputs"])
    return 8 * size / sum(linear.weight.numel() for linear in unpack_checkpoint(folder).model.matrices().values())


@pytest.mark.parametrize("bits", [8.7, 9.3, 10, 12, 14.5, 16])
def test_the_bytes_keep_within_the_budget(pack: Pack, out: Path, texts: Path, bits: float):
    for name, calibrated in (("plain", ()), ("measured", ("--calibration", texts, "--solver", "round"))):
        folder = out.with_name(name)
        done = pack("--bits", bits, "--formats", OFFERED, *calibrated, to=folder)
        assert done.status == 0, done.err
        found = done.result
        assert bits_of(folder) == pytest.approx(found["mix"]["bits"])
        assert bits_of(folder) <= bits
        assert found["mix"]["asked"] == bits
        assert read_program(folder / "program.bin").header["format"] == found["format"]
        formats = mixed(found["format"])
        assert {matrix: formats.of(matrix).name for matrix in found["mix"]["formats"]} == found["mix"]["formats"]
        assert len(found["mix"]["formats"]) == 13
        measured = [one["kl"] for one in found["mix"]["tried"]]
        assert "the mix" in done.err
        assert "head: " in done.err
        assert (None in measured) == (not calibrated)
        assert all(one["bits"] <= bits for one in found["mix"]["tried"])
        best = min(found["mix"]["tried"], key=lambda one: one["predicted"] if one["kl"] is None else one["kl"]["value"])
        assert found["format"] == best["format"], "the better one is taken"
        assert not folder.with_name(f"{name}.unfinished").exists()
    assert "no calibration data: every matrix counts alike" in pack("--bits", bits, "--formats", OFFERED).err


def test_a_larger_budget_is_never_predicted_to_lose_more(pack: Pack, out: Path):
    predicted = []
    for bits in (8.7, 9, 9.3, 10, 12, 14, 16):
        done = pack("--bits", bits, "--formats", OFFERED, to=out.with_name(f"out{bits}"))
        predicted.append(done.result["mix"]["tried"][0]["predicted"])
    assert predicted == sorted(predicted, reverse=True)
    assert len(set(predicted)) > 4


def test_a_single_format_that_diverges_less_is_taken(pack: Pack, texts: Path, monkeypatch):
    """Whatever was predicted: here that int4 loses nothing."""
    real = mixing.Rounding.alone

    def misled(*given: Any) -> Any:
        found = real(*given)
        return {name: replace(one, errors={**one.errors, "int4": 0.0}) for name, one in found.items()}

    monkeypatch.setattr(mixing.Rounding, "alone", misled)
    done = pack("--bits", 10, "--formats", "int4-sym,int4", "--calibration", texts, "--solver", "round")
    assert (done.result["format"], done.result["mix"]["mixed"]) == ("int4-sym", False)
    assert "the mix of least predicted loss loses more than int4-sym alone, which is taken" in done.err


def test_bits_that_cannot_be_had_are_refused(pack: Pack, out: Path):
    done = pack("--bits", 2)
    done.refused("bits 2 is below", "the least that can be had of this model with int8, int8-row, int4")
    least = re.search(r"pass --bits ([\d.]+)", done.err)
    assert least is not None
    assert not any(out.parent.iterdir())
    assert pack("--bits", least[1]).status == 0
    pack("--bits", float(least[1]) - 0.02, to=out.with_name("other")).refused("is below")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--bits", "17"], "bits 17 is above 16, the most that can be had"),
        (["--bits", "nan"], "bits nan is no number of bits above 0"),
        (["--bits", "-1"], "bits -1 is no number of bits above 0"),
        (["--bits", "four"], "argument --bits: invalid float value: 'four'"),
        (["--bits", "4.5", "--format", "int4"], "a format and bits are two ways to say it"),
        ([], "no format is named, nor bits; pass either --format F or --bits B"),
        (["--format", "int4", "--formats", "int4,int8"], "--formats are what --bits may choose from"),
        (["--bits", "6", "--formats", "int4,int5"], "format 'int5' is not one of"),
        (["--bits", "6", "--formats", ""], "format '' is not one of"),
        (["--bits", "16", "--formats", "bf16", "--calibration", "x"], "format bf16 rounds each number by itself"),
        (["--bits", "6", "--solver", "gptq"], "solver gptq needs text to calibrate on"),
        (["--format", "int4", "--against", "x"], "pass --margin M and --data DATA with it"),
        (["--format", "int4", "--margin", "1"], "pass --data DATA with --margin"),
        (["--format", "int4", "--data", "x"], "pass --margin M with it"),
        (["--format", "int4", "--margin", "1", "--data", ""], "--data is empty"),
        (["--format", "int4", "--margin", "0", "--data", "x"], "margin 0.0 is not greater than 0.0"),
        (["--format", "int4", "--margin", "nan", "--data", "x"], "margin nan is not a finite number"),
        (["--format", "int4", "--margin", "1", "--data", "./nowhere"], "nowhere is not there"),
    ],
)
def test_what_does_not_go_together_is_refused(pack: Pack, out: Path, words: list[str], said: str):
    pack(*words).refused(said)
    assert not any(out.parent.iterdir())


def test_what_cannot_be_judged_is_refused_before_it_is_packed(pack: Pack, model_folder, tmp_path: Path, texts: Path):
    judged = ("--format", "int8", "--margin", 5, "--data")
    no_test = write_jsonl(tmp_path / "no test", {"dev": 4}, running_text)
    pack(*judged, no_test).refused("split 'test' is not in 'no test'")
    pack(*judged, texts, model=model_folder("bert", "embedding")).refused("makes vectors", "leave --margin and --data")
    pack(*judged, texts, model=model_folder("bert")).refused("fills in masked words")
    pack(*judged, texts, "--against", tmp_path / "none").refused("none does not exist")
    assert pack("--format", "int8", to=tmp_path / "packed").status == 0
    pack(*judged, texts, "--against", tmp_path / "packed").refused("is packed, no original")
    assert not (tmp_path / "out").exists()


def test_the_packed_model_has_its_certificate(pack: Pack, out: Path, model_folder, texts: Path):
    """Against the model that it was made of, or one that is named; it is the one that `evaluate` would issue."""
    done = pack("--bits", 9, "--margin", 50, "--data", texts)
    assert done.status == 0, done.err
    held = load(out).certificate
    assert held is not None
    verdict = done.result["certificate"]
    assert (held.passed, held.margin, held.metric) == (True, 50.0, verdict["metric"])
    assert held.difference == verdict["difference"]
    assert held.original.name == str(model_folder())
    assert held.data.split == "test"
    assert held.artifact.format == done.result["format"]
    assert done.result["evaluation"]["issued"] == str(out / "certificate.json")
    assert "no certificate" not in done.err
    found = api.evaluate(
        str(out), task="language-modeling", data=str(texts), against=str(model_folder()), margin=50.0, quiet=True
    )
    assert found["certificate"] == verdict


def test_a_margin_that_is_not_held_leaves_the_model_with_a_certificate_that_says_so(
    pack: Pack, out: Path, model_folder, texts: Path
):
    done = pack("--format", "int4-sym", "--margin", 1e-6, "--data", texts, "--against", model_folder())
    assert (done.status, done.result["certificate"]["passed"]) == (3, False)
    held = load(out).certificate
    assert held is not None
    assert not held.passed


def test_calibration_text_that_is_test_text_is_left_out(pack: Pack, tmp_path: Path, texts: Path):
    lines = (texts / "test.jsonl").read_text(encoding="utf-8").splitlines()
    mixed_in = tmp_path / "more"
    mixed_in.mkdir()
    ours = (texts / "train.jsonl").read_text(encoding="utf-8").splitlines()
    (mixed_in / "train.jsonl").write_text("\n".join([*ours, *lines]) + "\n", encoding="utf-8")
    judged = ("--margin", 50, "--data", texts)
    done = pack("--bits", 9, "--solver", "round", "--calibration", mixed_in, *judged)
    assert re.search(rf"\d+ calibration records stand in the test data of {texts} and were left out", done.err)
    clean = pack("--bits", 9, "--solver", "round", "--calibration", texts, *judged, to=tmp_path / "clean")
    assert "were left out" not in clean.err


def test_a_model_whose_activations_overflow_is_refused(
    pack: Pack, out: Path, model_folder, texts: Path, tmp_path: Path
):
    broken = shutil.copytree(model_folder(), tmp_path / "broken")
    tensors = load_file(broken / "model.safetensors")
    for name in tensors:
        if name.endswith("o_proj.weight"):
            tensors[name] = torch.full_like(tensors[name], 3e38)
    save_file(tensors, broken / "model.safetensors", {"format": "pt"})
    done = pack("--bits", 10, "--calibration", texts, "--quiet", model=broken)
    done.refused("outputs are not numbers; check its weights")
    assert not out.exists()


@pytest.mark.parametrize("when", ["measuring", "verifying", "solving"])
def test_a_run_that_was_stopped_goes_on(pack: Pack, out: Path, texts: Path, monkeypatch, when: str):
    words = ("--bits", 10, "--formats", "int8,int4,int4-sym", "--calibration", texts, "--calibration-tokens", 4000)
    whole = pack(*words, to=out.with_name("whole"))
    assert whole.status == 0, whole.err
    put, put_codes, calls = Ledger.put, Unfinished.put, []

    def stopping(ledger: Ledger, fates: Any, cost: Any) -> None:
        put(ledger, fates, cost)
        calls.append(1)
        if (when == "measuring" and len(calls) == 20) or (when == "verifying" and "all" in fates):
            raise KeyboardInterrupt

    def stopping_codes(unfinished: Unfinished, name: str, rounded: Any) -> None:
        put_codes(unfinished, name, rounded)
        if when == "solving":
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Ledger, "put", stopping)
        patched.setattr(Unfinished, "put", stopping_codes)
        done = pack(*words)
        assert done.status == 130
        assert "the same command goes on from there" in done.err
        assert not out.exists()
    measured: list[int] = []
    cost_of = Measure.cost_of

    def counted(*given: Any) -> Any:
        measured.append(1)
        return cost_of(*given)

    monkeypatch.setattr(Measure, "cost_of", counted)
    again = pack(*words)
    assert again.status == 0, again.err
    tried = len(whole.result["mix"]["tried"])
    assert len(measured) == {"measuring": 9 + tried, "verifying": tried - 1, "solving": 0}[when]
    for key in ("mix", "format", "bits"):
        assert again.result[key] == whole.result[key]
    assert (out / "program.bin").read_bytes() == (out.with_name("whole") / "program.bin").read_bytes()
    assert not out.with_name("out.unfinished").exists()


def test_a_tagger_in_python(tagger: Path, tags: Path, tmp_path: Path):
    """The function of the API, on labelled data; its matrices have a budget, its embeddings do not."""
    found = api.pack(
        str(tagger),
        out=str(tmp_path / "out"),
        bits=9.0,
        formats=["int4-sym", "int8"],
        calibration=str(tags),
        margin=50.0,
        data=str(tags),
        quiet=True,
    )
    assert found["mix"] is not None
    assert found["mix"]["bits"] <= 9.0
    assert set(found["mix"]["formats"].values()) <= {"int4-sym", "int8"}
    assert found["evaluation"] is not None
    assert found["certificate"] == found["evaluation"].get("certificate")
    held = load(tmp_path / "out").certificate
    assert held is not None
    assert held.metric == "entity_f1"
    assert json.dumps(found)
    plain = api.pack(str(tagger), out=str(tmp_path / "plain"), bits=9.0, formats="int4-sym,int8", quiet=True)
    assert plain["mix"] is not None
    assert plain["certificate"] is None
    assert plain["evaluation"] is None
