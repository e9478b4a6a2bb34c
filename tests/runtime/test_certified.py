"""certificate.json by itself: what it says, and what takes it away. No model is needed for that."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chinchilla_lm.runtime.artifact import hashes
from chinchilla_lm.runtime.certified import (
    Agreed,
    Also,
    Artifact,
    CertificateWarning,
    Data,
    Original,
    ReadAs,
    issue,
    valid_certificate,
)

VERDICT: dict[str, Any] = {"metric": "entity_f1", "difference": -0.25, "low": -0.5, "high": 0.0, "margin": 1, "n": 40}
VERDICT |= {"unit": "points", "passed": True, "more_examples": None}
READ = {"window": 128, "context": "document"}
SHARE = {"value": 0.975, "low": 0.95, "high": 1.0}
AGREEMENT = {"answers": 40, "same": SHARE, "flipped": {"value": 0.025, "low": None, "high": None}, "kl": SHARE}
GUARD = {"name": "other/text", "sha256": "2" * 64, "split": "all", "examples": 7, "documents": 6}
ALSO: dict[str, Any] = {"what": "the guard text", "data": GUARD, "agreement": AGREEMENT, **VERDICT}
FACTS: dict[str, Any] = {
    "read": ReadAs.model_validate(READ),
    "original": Original(name="the original", sha256="0" * 64, dropped=2, read=ReadAs.model_validate(READ)),
    "data": Data(name="the data", sha256="1" * 64, split="test", examples=40, documents=12),
    "agreement": Agreed.model_validate(AGREEMENT),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What passes for a model's folder, with its certificate."""
    for name in ("model.safetensors", "config.json", "tokenizer.json", "README.md"):
        (tmp_path / name).write_text(f"all of {name}")
    artifact = Artifact(kind="weights", files=hashes(tmp_path), format="float32", backend="torch", device="cpu")
    issue(tmp_path, VERDICT, artifact=artifact, **FACTS, also=[Also.model_validate(ALSO)])
    return tmp_path


def digest(content: dict[str, Any]) -> str:
    """As docs/architecture.md says it is made."""
    rest = {key: value for key, value in content.items() if key != "digest"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode("ascii")).hexdigest()


def shown(folder: Path) -> dict[str, Any] | None:
    """The certificate, without a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = valid_certificate(folder)
    return None if found is None else found.model_dump()


def refused(folder: Path) -> str:
    """The one line that says why there is none."""
    with pytest.warns(CertificateWarning) as caught:
        assert valid_certificate(folder) is None
    assert len(caught) == 1
    line = str(caught[0].message)
    assert "\n" not in line
    assert line.startswith("the certificate ")
    assert line.endswith("; chinchilla evaluate MODEL --against ORIGINAL --margin M issues another")
    return line


def test_what_it_says(folder: Path):
    content = json.loads((folder / "certificate.json").read_text(encoding="utf-8"))
    assert {key: content[key] for key in VERDICT} == VERDICT
    names = ("model.safetensors", "config.json", "tokenizer.json")
    wanted = {name: hashlib.sha256(f"all of {name}".encode()).hexdigest() for name in names}
    assert content["artifact"]["files"] == wanted, "the README decides nothing"
    assert content["digest"] == digest(content)
    assert (content["read"], content["original"]["read"], content["agreement"]) == (READ, READ, AGREEMENT)
    assert content["also"] == [ALSO]
    assert shown(folder) == content
    found = valid_certificate(folder)
    assert found is not None
    first, second, third = found.lines()
    assert first.startswith("certificate passed: entity_f1 -0.25 points [-0.50, +0.00], margin 1; 40 examples in 12 ")
    assert "against the original, which itself lacks 2 links" in first
    assert "in windows of 128 tokens (context document)" in first
    assert second == "97.50% of 40 answers are the same, 2.50% flipped, mean KL 0.9750 nats"
    begin = "also the guard text (other/text, 7 examples), passed: entity_f1 -0.25 points [-0.50, +0.00], margin 1; "
    assert third == begin + second
    assert found.holds


def test_a_guard_that_failed_is_said_first(folder: Path):
    found = valid_certificate(folder)
    assert found is not None
    failed = Also.model_validate({**ALSO, "passed": False})
    said = issue(folder, VERDICT, artifact=found.artifact, **FACTS, control=True, also=[failed])
    assert not said.holds
    assert said.lines()[0].startswith("certificate failed by the guard text; test: entity_f1 -0.25 points")
    assert "against the original, trained on the same data," in said.lines()[0]


def test_without_one_there_is_none_and_no_word(folder: Path):
    (folder / "certificate.json").unlink()
    assert shown(folder) is None


def edited(**changes: Any) -> Callable[[dict[str, Any]], str]:
    return lambda content: json.dumps(content | changes)


def forged(**changes: Any) -> Callable[[dict[str, Any]], str]:
    """With a digest that fits."""

    def make(content: dict[str, Any]) -> str:
        content |= changes
        return json.dumps(content | {"digest": digest(content)})

    return make


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (edited(difference=0.5), "its digest is not that of its text, which was edited"),
        (edited(margin=0.25), "edited"),
        (edited(n=4000), "edited"),
        (edited(also=[]), "edited"),
        (edited(), None),
        (edited(read={"window": 512, "context": "document"}), "edited"),
        (edited(agreement=None), "edited"),
        (edited(also=[{**ALSO, "data": {**GUARD, "name": "another"}}]), "edited"),
        (edited(version=1), "it has version 1, not 2"),
        (edited(version="2"), "it has version '2', not 2"),
        (edited(version=True), "it has version True, not 2"),
        (forged(passed="yes"), "'passed' is refused"),
        (forged(signed="by nobody"), "'signed' is refused"),
        (forged(metric="entity_f1\n\x1b[31m"), "'metric' is refused"),
        (forged(difference="0.0"), "'difference' is refused"),
        (forged(also=[{"what": "guard"}]), "'also.0.metric' is refused"),
        (forged(also=[{**ALSO, "data": {**GUARD, "sha256": "2"}}]), "'also.0.data.sha256' is refused"),
        (forged(also=[{**ALSO, "agreement": 1}]), "'also.0.agreement' is refused"),
        (forged(artifact=None), "'artifact' is refused"),
        (forged(read=None), "'read' is refused"),
        (forged(read={"window": "128", "context": "document"}), "'read.window' is refused"),
        (forged(read={"window": 128, "context": "page"}), "'read.context' is refused"),
        (forged(agreement={**AGREEMENT, "same": {**SHARE, "value": 1.5}}), "'agreement.same.value' is refused"),
        (forged(agreement={**AGREEMENT, "answers": 0}), "'agreement.answers' is refused"),
        (forged(data={key: value for key, value in GUARD.items() if key != "name"}), "'data.name' is refused"),
        (lambda content: json.dumps({key: content[key] for key in content if key != "digest"}), "'digest' is refused"),
        (lambda content: json.dumps(content)[:-1] + ', "passed": true}', "a key is given twice"),
        (lambda content: json.dumps(content | {"low": float("nan")}), "'low' is refused"),
        (lambda content: json.dumps(content)[:-9], "it is not valid JSON"),
        (lambda content: "[" * 90_000, "it is not valid JSON"),
        (lambda content: json.dumps([content]), "it has version None, not 2"),
        (lambda content: json.dumps(content) + " " * 300_000, "it has more than 262144 bytes"),
        (lambda content: "", "it is not valid JSON"),
    ],
)
def test_one_that_is_not_as_it_was_issued(change, said: str | None, folder: Path):
    path = folder / "certificate.json"
    path.write_text(change(json.loads(path.read_text(encoding="utf-8"))), encoding="utf-8")
    if said is None:
        assert shown(folder) is not None, "other white space is no edit"
    else:
        assert said in refused(folder)


def test_one_that_is_no_text_or_no_file(folder: Path):
    path = folder / "certificate.json"
    path.write_bytes(b"\xff\xfe\x00")
    assert "it is not UTF-8 text" in refused(folder)
    path.unlink()
    path.mkdir()
    assert "it is not a file" in refused(folder)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("model.safetensors", "all of model.safetensor5", "model.safetensors has another SHA-256"),
        ("config.json", "", "config.json has another SHA-256"),
        ("tokenizer.json", None, "tokenizer.json, which was judged, is not there"),
        ("model.safetensors", None, "the weights or the program that were judged are not there"),
        ("vocab.txt", "a", "vocab.txt was not there when the model was judged"),
        ("program.bin", "a", "program.bin was not there when the model was judged"),
    ],
)
def test_other_files(name: str, text: str | None, said: str, folder: Path):
    if text is None:
        (folder / name).unlink()
    else:
        (folder / name).write_text(text)
    assert said in refused(folder)


def test_files_that_decide_nothing_may_change(folder: Path):
    (folder / "README.md").write_text("another")
    (folder / "generation_config.json").write_text("{}")
    assert shown(folder) is not None


def test_shards_are_weights_too(folder: Path):
    (folder / "model.safetensors").unlink()
    names = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    for name in names:
        (folder / name).write_text(name)
    index = {"weight_map": {f"tensor.{name}": name for name in names}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    found = hashes(folder)
    assert {*names, "model.safetensors.index.json"} < found.keys()
    artifact = Artifact(kind="weights", files=found, format="float32", backend="torch", device="cpu")
    issue(folder, VERDICT, artifact=artifact, **FACTS)
    assert shown(folder) is not None
    (folder / names[1]).write_text("another")
    assert f"{names[1]} has another SHA-256" in refused(folder)
