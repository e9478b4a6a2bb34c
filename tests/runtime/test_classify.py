"""What a text classifier's outputs mean: transformers' pipeline is the reference, for every `problem_type`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from chinchilla_lm.errors import InputError
from chinchilla_lm.export.hf import export_hf
from chinchilla_lm.models.checkpoint import load as load_checkpoint
from chinchilla_lm.models.checkpoint import save
from chinchilla_lm.runtime.loading import load
from chinchilla_lm.runtime.packing import write_packed
from chinchilla_lm.shorten.surgery import without
from tests.conftest import byte_level_tokenizer, word_piece_tokenizer
from tests.models.tiny import DECODERS, build

TEXTS = ["the quick brown fox", "very good prices", "is it bad ?"]
MULTI, SINGLE, REGRESSION = "multi_label_classification", "single_label_classification", "regression"
LABELS = {1: ("rating",), 3: ("good", "bad", "odd")}


def classifier(folder: Path, kind: str | None, labels: int, name: str = "bert") -> Path:
    """A random classifier with its tokenizer; the weights of the head are large, so that no score is near 1/2."""
    tokenizer = byte_level_tokenizer() if name in DECODERS else word_piece_tokenizer()
    names = dict(enumerate(LABELS[labels]))
    more = {} if kind is None else {"problem_type": kind}
    pad = tokenizer.pad_token_id
    model = build(
        name, "text-classification", vocab_size=len(tokenizer), pad_token_id=pad,
        num_labels=labels, id2label=names, label2id={label: i for i, label in names.items()}, **more,
    )  # fmt: skip
    with torch.no_grad():
        (model.classifier if name == "bert" else model.score).weight.mul_(10)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def stock(folder: Path) -> list[dict[str, float]]:
    found = transformers.pipeline("text-classification", model=str(folder), tokenizer=str(folder), top_k=None)(TEXTS)
    return [{one["label"]: one["score"] for one in each} for each in found]


def same(found: list[dict[str, Any]], wanted: list[dict[str, float]]) -> None:
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours["scores"] == pytest.approx(theirs, abs=2e-5)
        assert ours["label"] == max(theirs, key=lambda label: theirs[label])
        assert ours["score"] == ours["scores"][ours["label"]]


@pytest.mark.parametrize("name", ["bert", "llama-gqa"])
@pytest.mark.parametrize(
    ("kind", "labels"),
    [(None, 3), (SINGLE, 3), (MULTI, 3), (REGRESSION, 3), (None, 1), (REGRESSION, 1), (MULTI, 1)],
)
def test_scores_are_those_of_the_pipeline_wherever_the_model_goes(name, kind, labels, tmp_path: Path):
    source = classifier(tmp_path / "stock", kind, labels, name)
    wanted = stock(source)
    write_packed(source, "f32", tmp_path / "packed")
    save(load_checkpoint(source), tmp_path / "saved")
    export_hf(load_checkpoint(source), tmp_path / "exported")
    for backend in ("native", "torch"):
        for folder in ("stock", "packed", "saved", "exported"):
            dtype = "auto" if folder == "packed" and backend == "native" else "float32"
            same(load(tmp_path / folder, backend=backend, dtype=dtype, threads=1).classify(TEXTS), wanted)
    same(load(source, backend="torch", dtype="float32", task="text-classification").classify(TEXTS), wanted)
    assert stock(tmp_path / "exported") == wanted
    if kind is not None:
        assert json.loads((tmp_path / "exported" / "config.json").read_text())["problem_type"] == kind


def test_a_shortened_model_goes_on_giving_each_label_its_own_probability(tmp_path: Path):
    source = load_checkpoint(classifier(tmp_path / "stock", MULTI, 3))
    short = source.with_model(without(source.model, {"1.attn": "lose", "1.mlp": "lose"}, share=False))
    save(short, tmp_path / "short")
    export_hf(short, tmp_path / "exported")
    same(load(tmp_path / "short", backend="torch", dtype="float32").classify(TEXTS), stock(tmp_path / "exported"))


def test_a_problem_type_that_nobody_knows_is_refused(tmp_path: Path):
    source = classifier(tmp_path / "stock", None, 3)
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"problem_type": "ordinal"}))
    with pytest.raises(InputError, match=r"problem_type 'ordinal' is not one of single_label_classification, .*model$"):
        load(source)


def texts(folder: Path) -> Path:
    folder.mkdir()
    for split in ("train", "dev", "test"):
        rows = [f"{split} the quick fox {i},{'good' if i % 2 else 'bad'}" for i in range(12)]
        (folder / f"{split}.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    return folder


def test_data_with_one_label_a_text_judges_no_model_of_several(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    from chinchilla_lm.cli import main

    source, data = classifier(tmp_path / "stock", MULTI, 3), texts(tmp_path / "data")
    common = ["--task", "text-classification", "--data", str(data), "--device", "cpu", "--threads", "1", "--quiet"]
    for verb in (["evaluate", str(source)], ["compress", str(source), "--speedup", "1.2", "-o", str(tmp_path / "c")]):
        assert main([*verb, *common]) == 2
        assert "gives every label a probability of its own" in capsys.readouterr().err


def test_fine_tuning_makes_it_choose_one_label(tmp_path: Path):
    from chinchilla_lm.cli import main

    source, data = classifier(tmp_path / "stock", MULTI, 3), texts(tmp_path / "data")
    common = ["--task", "text-classification", "--data", str(data), "--device", "cpu", "--threads", "1", "--quiet"]
    assert main(["finetune", str(source), *common, "--finetune-epochs", "1", "-o", str(tmp_path / "run")]) == 0
    model = tmp_path / "run" / "model"
    assert json.loads((model / "config.json").read_text())["problem_type"] == SINGLE
    found = load(model, backend="torch", dtype="float32").classify(TEXTS)
    assert [sum(one["scores"].values()) for one in found] == pytest.approx([1.0] * 3)
    same(found, stock(model))
    assert main(["evaluate", str(model), *common]) == 0
