"""A certificate is about one model's files: who gets one, who shows one, and what takes it away."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from chinchilla_lm.models import checkpoint as checkpoints
from chinchilla_lm.runtime.certified import CertificateWarning, ReadAs, read_certificate
from chinchilla_lm.runtime.engine.native import engine_module
from chinchilla_lm.runtime.loading import load
from tests.commands.conftest import SHORTENING, TAGGING

needs_engine = pytest.mark.skipif(engine_module() is None, reason="the engine is not built")


@pytest.fixture
def model(run_folder: Path) -> Path:
    """The folder of a certified model, to change."""
    return run_folder / "model"


@pytest.fixture
def pack(tmp_path: Path, chinchilla) -> Callable[..., Path]:
    """Packs a model into a folder."""

    def make(source: Path, form: str = "int8") -> Path:
        out = tmp_path / form
        assert chinchilla("pack", source, "--format", form, "-o", out).status == 0
        return out

    return make


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def digest(content: dict[str, Any]) -> str:
    """As docs say it is made."""
    rest = {key: value for key, value in content.items() if key != "digest"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode("ascii")).hexdigest()


def content_of(folder: Path) -> dict[str, Any]:
    content = json.loads((folder / "certificate.json").read_text(encoding="utf-8"))
    assert isinstance(content, dict)
    assert content["digest"] == digest(content)
    return content


def shows(folder: Path, chinchilla) -> dict[str, Any] | None:
    """What `inspect` shows without a warning, which a session of the folder has too."""
    done = chinchilla("inspect", folder, "--no-time", "--json")
    assert (done.status, done.err.count("warning")) == (0, 0), done.err
    with warnings.catch_warnings():
        warnings.simplefilter("error", CertificateWarning)
        found = load(folder).certificate
    shown = done.result["certificate"]
    assert shown == (None if found is None else found.model_dump())
    assert shown is None or isinstance(shown, dict)
    return shown


def shows_none(folder: Path, chinchilla, *said: str) -> None:
    """`inspect` goes on, shows no certificate, and says why in one line."""
    done = chinchilla("inspect", folder, "--no-time", "--json")
    assert (done.status, done.result["certificate"]) == (0, None)
    lines = [line for line in done.err.splitlines() if line.startswith("warning: the certificate")]
    assert len(lines) == 1, done.err
    for word in ("is not shown: ", *said, "--against ORIGINAL --margin M issues another"):
        assert word in lines[0]
    assert "certificate passed" not in chinchilla("inspect", folder, "--no-time").out


def zero_a_link(folder: Path) -> None:
    """Take the effect of one link out of the weights, whose shapes stay."""
    tensors = load_file(folder / "model.safetensors")
    name = next(name for name in tensors if name.endswith("output.dense.weight"))
    tensors[name] = np.zeros_like(tensors[name])
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_compress_names_what_it_judged(tagger: Path, tags: Path, model: Path, run_folder: Path, chinchilla):
    content, report = content_of(model), json.loads((run_folder / "report.json").read_text())
    for key in ("metric", "difference", "low", "high", "margin", "n", "unit", "passed"):
        assert content[key] == report["certificate"][key]
    artifact = content["artifact"]
    assert artifact["kind"] == "weights"
    assert {"model.safetensors", "config.json", "chinchilla.json", "tokenizer.json"} <= artifact["files"].keys()
    assert artifact["files"] == {name: sha256(model / name) for name in artifact["files"]}
    original = checkpoints.load(tagger)
    read = {"window": original.model.config.max_positions, "context": "sentence"}
    assert content["read"] == read
    assert content["original"] == {"name": str(tagger), "sha256": original.sha256, "dropped": 0, "read": read}
    data = content["data"]
    assert (data["name"], data["split"], data["examples"], data["documents"]) == (str(tags), "test", 40, 40)
    assert content["agreement"] == report["comparisons"][0]["agreement"]
    assert (content["speed"]["batch"], content["speed"]["tokens"]) == (4, 12)
    assert content["speed"]["value"] == report["speedup"]["value"]
    assert content["also"] == []
    meta = json.loads((model / "chinchilla.json").read_text())
    assert not {"certificate", "sha256"} & meta.keys(), "no copy stays where others copy it from"
    assert shows(run_folder, chinchilla) == content
    said = chinchilla("inspect", run_folder, "--no-time").out
    assert "certificate passed: entity_f1 " in said
    assert f"40 examples in 40 documents of test; judged as weights in {artifact['format']} on " in " ".join(
        said.split()
    )


def test_a_link_zeroed_after_certification(model: Path, tagger: Path, tags: Path, chinchilla):
    zero_a_link(model)
    why = "model.safetensors has another SHA-256 than the file that was judged"
    shows_none(model, chinchilla, why)
    with pytest.warns(CertificateWarning, match=why):
        assert load(model).certificate is None
    done = chinchilla("evaluate", model, *TAGGING, "--data", tags)
    assert (done.status, done.err.count(why)) == (0, 1)
    assert "certificate passed" not in done.out


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "chinchilla.json"])
def test_another_file_that_decides(name: str, model: Path, chinchilla):
    path = model / name
    path.write_text(path.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    shows_none(model, chinchilla, f"{name} has another SHA-256")


def test_files_that_came_and_went(model: Path, chinchilla):
    (model / "README.md").write_text("a model card")
    (model / "generation_config.json").write_text("{}")
    assert shows(model, chinchilla) is not None
    (model / "added_tokens.json").write_text("{}")
    shows_none(model, chinchilla, "added_tokens.json was not there when the model was judged")
    (model / "added_tokens.json").unlink()
    (model / "tokenizer_config.json").unlink()
    shows_none(model, chinchilla, "tokenizer_config.json, which was judged, is not there")


def test_one_of_the_earlier_layout_is_neither_shown_nor_copied(model: Path, tmp_path: Path, chinchilla):
    (model / "certificate.json").unlink()
    path = model / "chinchilla.json"
    before = json.loads(path.read_text())
    path.write_text(json.dumps(before | {"certificate": {"passed": True}, "sha256": {"weights": "0" * 64}}))
    shows_none(model, chinchilla, "it is of a layout before version 1")
    checkpoints.save(checkpoints.load(model), tmp_path / "copy")
    assert json.loads((tmp_path / "copy" / "chinchilla.json").read_text()) == before
    assert not (tmp_path / "copy" / "certificate.json").exists()


def test_a_model_made_of_a_certified_one_has_none(model: Path, tmp_path: Path, chinchilla):
    done = chinchilla("export", model, "--to", "hf", "-o", tmp_path / "stock")
    assert "no certificate: that of" in done.out
    assert not (tmp_path / "stock" / "certificate.json").exists()
    (tmp_path / "stock" / "certificate.json").write_text("{}")
    again = chinchilla("export", model, "--to", "hf", "-o", tmp_path / "stock", "--force", "--json")
    assert again.status == 0
    zero_a_link(model)
    assert "no certificate" not in chinchilla("export", model, "--to", "hf", "-o", tmp_path / "other").out


@needs_engine
def test_an_int4_copy_of_a_certified_model_has_none(model: Path, tagger: Path, pack, tmp_path, chinchilla):
    done = chinchilla("pack", model, "--format", "int4", "-o", tmp_path / "packed")
    lines = [line for line in done.out.splitlines() if line.startswith("no certificate: ")]
    assert len(lines) == 1
    assert "is of its own weights, not of these" in lines[0]
    how = f"chinchilla evaluate {tmp_path / 'packed'} --against {tagger} --task token-classification --data DATA"
    assert lines[0].endswith(f"{how} --margin M")
    assert not (tmp_path / "packed" / "certificate.json").exists()
    assert "certificate" not in (tmp_path / "packed" / "chinchilla.json").read_text()
    assert shows(tmp_path / "packed", chinchilla) is None
    shutil.copy(model / "certificate.json", tmp_path / "packed")
    shows_none(tmp_path / "packed", chinchilla, "program.bin was not there when the model was judged")
    shutil.copy(tmp_path / "packed" / "program.bin", model)
    shows_none(model, chinchilla, "program.bin was not there when the model was judged")


@needs_engine
def test_evaluate_issues_one_for_the_program(model: Path, tagger: Path, tags: Path, pack, chinchilla, monkeypatch):
    packed = pack(model)
    words = ("evaluate", packed, "--against", tagger, *TAGGING, "--data", tags, "--margin", 50)
    done = chinchilla(*words, "--json")
    assert (done.status, done.result["issued"]) == (0, str(packed / "certificate.json"))
    content = content_of(packed)
    for key, value in done.result["certificate"].items():
        assert content[key] == value
    artifact = content["artifact"]
    assert (artifact["kind"], artifact["format"], artifact["backend"]) == ("program", "int8", "native")
    assert artifact["files"] == {name: sha256(packed / name) for name in artifact["files"]}
    assert {"program.bin", "config.json", "tokenizer.json"} <= artifact["files"].keys()
    assert content["original"]["sha256"] == checkpoints.load(tagger).sha256
    assert (content["data"], content["speed"]) == (content_of(model)["data"], None)
    assert content["agreement"] == done.result["agreement"]
    assert shows(packed, chinchilla) == content
    monkeypatch.setattr("chinchilla_lm.runtime.measuring.roof.measure_bandwidth", lambda size: 10.0)
    monkeypatch.setattr("chinchilla_lm.runtime.measuring.roof.measure_products", lambda kind: 100.0)
    raced = chinchilla("bench", packed, "--no-memory", "--seconds", 0.1, "--tokens", 8, "--batch", 1)
    assert f"{packed}: certificate passed: entity_f1 " in raced.out
    other = pack(model, "int4")
    shutil.copy(packed / "certificate.json", other)
    shows_none(other, chinchilla, "program.bin has another SHA-256")


def test_evaluate_issues_one_for_a_float_model(model: Path, tagger: Path, tags: Path, chinchilla):
    earlier = content_of(model)
    zero_a_link(model)
    words = ("evaluate", model, "--against", tagger, *TAGGING, "--data", tags, "--dtype", "float32")
    done = chinchilla(*words, "--margin", 50, "--backend", "torch")
    assert f"certificate: {model / 'certificate.json'}" in done.out
    content = content_of(model)
    assert (content["artifact"]["backend"], content["artifact"]["format"]) == ("torch", "float32")
    assert content["artifact"]["files"]["model.safetensors"] == sha256(model / "model.safetensors")
    assert content["artifact"]["files"] != earlier["artifact"]["files"]
    assert shows(model, chinchilla) == content


def test_a_random_model_does_not_pass(model: Path, tagger: Path, tags: Path, chinchilla):
    checkpoint = checkpoints.load(model)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in checkpoint.model.parameters():
            weight.copy_(0.1 * torch.randn(weight.shape, generator=generator))
    checkpoints.save(checkpoint, model)
    assert shows(model, chinchilla) is None
    done = chinchilla("evaluate", model, "--against", tagger, *TAGGING, "--data", tags, "--margin", 1, "--json")
    assert done.status == 3
    assert content_of(model)["passed"] is False
    shown = shows(model, chinchilla)
    assert shown is not None
    assert shown["passed"] is False
    assert "certificate failed: entity_f1 -" in chinchilla("inspect", model, "--no-time").out


def test_who_gets_none(model: Path, tagger: Path, tags: Path, chinchilla):
    (model / "certificate.json").unlink()
    for words, said in [
        (("--against", tagger), "no margin was chosen; pass --margin"),
        (("--against", tagger, "--margin", 50, "--split", "dev"), "split dev is not test"),
        (("--against", model, "--margin", 50), "a model is not certified against itself"),
        (("--against", model.parent, "--margin", 50), "a model is not certified against itself"),
    ]:
        done = chinchilla("evaluate", model, *words, *TAGGING, "--data", tags, "--json")
        assert done.result["issued"] is None
        assert said in done.err
    assert not (model / "certificate.json").exists()
    assert "issued" not in chinchilla("evaluate", model, *TAGGING, "--data", tags, "--margin", 50, "--json").result


@needs_engine
def test_a_packed_model_is_no_original(model: Path, tagger: Path, tags: Path, pack, tmp_path: Path, chinchilla):
    packed, before = pack(tagger), (model / "certificate.json").read_text()
    for verb in ("compress", "score", "search", "shorten", "recover"):
        out = tmp_path / f"out-{verb}"
        done = chinchilla(verb, packed, *TAGGING, "--data", tags, *SHORTENING, "-o", out)
        done.refused(f"{packed} is packed", "pass the model that it came from")
        assert not out.exists()
    words = ("--against", packed, *TAGGING, "--data", tags, "--margin", 50, "--json")
    done = chinchilla("evaluate", model, *words)
    assert done.result["issued"] is None
    assert "is packed, no original" in done.err
    assert (model / "certificate.json").read_text() == before


@pytest.mark.parametrize("put_back", [False, True])
@pytest.mark.parametrize("whose", ["model", "original"])
def test_files_that_change_meanwhile(
    whose: str, put_back: bool, model: Path, tagger: Path, tags: Path, tmp_path: Path, chinchilla, monkeypatch
):
    """While a model is loaded its weights are swapped for others: no certificate names what was not judged."""
    (model / "certificate.json").unlink()
    original = shutil.copytree(tagger / "model", tmp_path / "original")
    victim = {"model": model, "original": original}[whose]
    swapped = []

    def load_and_swap(source: str, **many: Any) -> checkpoints.Checkpoint:
        if Path(source) != victim:
            return checkpoints.load(source, **many)
        swapped.append(source)
        shutil.copy2(victim / "model.safetensors", tmp_path / "kept")
        loaded = checkpoints.load(source, **many)
        zero_a_link(victim)
        if put_back:
            loaded = checkpoints.load(source, **many)
            shutil.copy2(tmp_path / "kept", victim / "model.safetensors")
        return loaded

    monkeypatch.setattr("chinchilla_lm.pipeline.job.load", load_and_swap)
    words = ("evaluate", model, "--against", original, *TAGGING, "--data", tags, "--margin", 50, "--backend", "torch")
    done = chinchilla(*words, "--json")
    assert swapped == [str(victim)]
    assert done.result["issued"] is None
    assert f"the files in {victim} changed while they were judged" in done.err
    assert not (model / "certificate.json").exists()
    monkeypatch.undo()
    assert chinchilla(*words, "--json").result["issued"] is not None


def test_how_the_original_read_is_said_where_it_read_otherwise(model: Path):
    found = read_certificate(model)
    assert found is not None
    assert "read in" not in found.lines()[0]
    other = found.original.model_copy(update={"read": ReadAs(window=7, context="document")})
    line = found.model_copy(update={"original": other}).lines()[0]
    assert f"against {found.original.name}, read in windows of 7 tokens (context document), " in line


def test_what_was_loaded_must_still_lie_there(model: Path, tmp_path: Path):
    """Weights that were swapped for the load and put back have no certificate either."""
    shutil.copy2(model / "model.safetensors", tmp_path / "kept")
    zero_a_link(model)
    session = load(model)
    shutil.copy2(tmp_path / "kept", model / "model.safetensors")
    with pytest.warns(CertificateWarning, match="changed since they were loaded"):
        assert session.certificate is None
    assert load(model).certificate is not None


def test_a_certificate_is_read_without_torch(model: Path):
    code = (
        "import sys; from pathlib import Path; from chinchilla_lm.runtime.certified import valid_certificate; "
        f"print(valid_certificate(Path({str(model)!r})).passed, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False"]
