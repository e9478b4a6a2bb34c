"""`chinchilla finetune`, end to end: it learns, resumes, and leaves a model that others can load."""

from __future__ import annotations

import json
import random
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import yaml
from safetensors.torch import load_file

from chinchilla_lm.models.batch import Batch
from chinchilla_lm.models.checkpoint import load
from chinchilla_lm.runtime.loading import load as load_session
from chinchilla_lm.train import loop
from chinchilla_lm.train import state as states
from tests.commands.conftest import TAGGING, TUNING, leftovers, some_words, write_jsonl

SIZES = {"train": 80, "dev": 20, "test": 24}


def test_a_tagger_learns_its_tags(tagger: Path):
    session = load_session(tagger)
    found = session.entities(["is Siemens the Munich where Angela Merkel slept", "Once Siemens met Angela Merkel"])
    assert [[(one.label, one.text) for one in entities] for entities in found] == [
        [("LOC", "Siemens"), ("LOC", "Munich"), ("PER", "Angela Merkel")],
        [("ORG", "Siemens"), ("PER", "Angela Merkel")],
    ]
    assert load(tagger).model.config.head.labels == ("O", "B-LOC", "I-LOC", "B-ORG", "I-ORG", "B-PER", "I-PER")


def test_transformers_loads_the_model_and_gives_the_same_logits(tagger: Path):
    stock = transformers.AutoModelForTokenClassification.from_pretrained(tagger / "model").eval()
    ours = load(tagger)
    ids = torch.tensor([ours.tokenizer("is Siemens in Munich")["input_ids"]])
    with torch.no_grad():
        wanted, found = stock(ids).logits, ours.model(Batch(ids))
    assert torch.allclose(found, wanted, atol=1e-4)
    assert wanted.std() > 0.5


def test_what_it_leaves_and_prints(tagger: Path, tags: Path, model_folder, chinchilla):
    assert {path.name for path in tagger.iterdir()} == {"recipe.yaml", "stages.json", "log.jsonl", "model"}
    assert leftovers(tagger.parent) == []
    before = (tagger / "model" / "model.safetensors").stat()
    words = ["finetune", model_folder("bert"), *TAGGING, "--data", tags, *TUNING, "-o", tagger]
    again = chinchilla(*words, "--json")
    assert again.status == 0
    assert "finetune: unchanged, not run again" in again.err
    after = (tagger / "model" / "model.safetensors").stat()
    assert (after.st_mtime_ns, after.st_ino) == (before.st_mtime_ns, before.st_ino)
    assert {"model", "task", "splits", "seconds"} <= again.result.keys()
    assert set(again.result["splits"]) == {"dev", "test"}
    metric = again.result["splits"]["test"]["entity_f1"]
    assert metric["low"] <= metric["value"] <= metric["high"]
    assert metric["value"] > 0.95
    events = [json.loads(line) for line in (tagger / "log.jsonl").read_text().splitlines()]
    assert events[0]["stage"] == "finetune"
    assert (events[-1]["finetune"]["test"]["entity_f1"] == metric) is True


def test_an_interrupted_run_ends_like_one_that_was_not(
    model_folder, tags: Path, tmp_path: Path, chinchilla, monkeypatch
):
    """Stopped in the second of three epochs, between two steps."""
    words = ["finetune", model_folder("bert"), *TAGGING, "--data", tags, "--finetune-epochs", 3]
    words += ["--finetune-batch-tokens", 256, "--quiet"]
    real, calls, last = loop.autocast, 0, -1

    def counting(*asked: Any):
        """Entered once a step."""
        nonlocal calls
        if calls == last:
            raise KeyboardInterrupt
        calls += 1
        return real(*asked)

    monkeypatch.setattr(loop, "autocast", counting)
    assert chinchilla(*words, "-o", tmp_path / "whole").status == 0
    steps, calls, last = calls, 0, calls // 2
    stopped = chinchilla(*words, "-o", tmp_path / "cut")
    stopped.refused("chinchilla finetune stopped; run the same command again to resume", status=130)
    assert (tmp_path / "cut" / "finetune.state").is_file()
    assert not (tmp_path / "cut" / "model").exists()
    assert leftovers(tmp_path) == []
    last = -1
    assert chinchilla(*words, "-o", tmp_path / "cut").status == 0
    assert calls == steps, "no step is taken twice"
    assert not (tmp_path / "cut" / "finetune.state").exists()
    whole, resumed = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "cut"))
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_failed_save_does_not_cost_the_training(model_folder, tags: Path, tmp_path: Path, chinchilla, monkeypatch):
    """A file in the way of the model is noticed when hours have been spent; the state must be there still."""
    monkeypatch.setattr(states, "STATE_INTERVAL_S", 0.0)
    words = ["finetune", model_folder("bert"), *TAGGING, "--data", tags, "--finetune-epochs", 1, "-o", tmp_path / "run"]
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.yaml").write_text("{}")
    (tmp_path / "run" / "model").write_text("in the way")
    chinchilla(*words, "--quiet").refused("is a file, not a folder; remove it or pass another -o")
    assert (tmp_path / "run" / "finetune.state").is_file()
    (tmp_path / "run" / "model").unlink()
    done = chinchilla(*words)
    assert done.status == 0
    assert "finetune: resumed at step" in done.out
    assert load(tmp_path / "run").model.config.head.kind == "token-classification"


def labelled(source: random.Random) -> dict[str, str]:
    good = source.random() < 0.5
    return {"text": f"{some_words(source)} {'good' if good else 'bad'} {some_words(source)}", "label": str(good)}


def ranked(source: random.Random) -> dict[str, object]:
    good = source.random() < 0.5
    return {"text": some_words(source), "text_pair": "good" if good else "bad", "relevance": 0.75 if good else -0.5}


@pytest.mark.parametrize(
    ("task", "row", "metric"),
    [("text-classification", labelled, "accuracy"), ("ranking", ranked, "mean_squared_error")],
)
def test_texts_and_pairs_of_texts_are_learnt(model_folder, tmp_path: Path, chinchilla, task: str, row, metric: str):
    data = write_jsonl(tmp_path / "data", SIZES, row)
    tuning = ["--finetune-epochs", 15, "--finetune-batch-tokens", 200, "--finetune-learning-rate", 5e-3]
    words = ["finetune", model_folder("bert"), "--task", task, "--data", data, *tuning, "-o", tmp_path / "run"]
    done = chinchilla(*words, "--json", "--quiet")
    assert done.status == 0, done.err
    value = done.result["splits"]["test"][metric]["value"]
    assert value > 0.9 if metric == "accuracy" else value < 0.2, value  # 0.39 without an answer
    if task == "ranking":
        good, bad = load_session(tmp_path / "run").score([("the fox", "good"), ("the fox", "bad")])
        assert good - bad > 0.3  # 1.25 in the data


def test_a_language_model_learns_its_text(model_folder, texts: Path, tmp_path: Path, chinchilla):
    words = ["--task", "language-modeling", "--data", texts, "--max-tokens", 24, "--json", "--quiet"]
    before = chinchilla("evaluate", model_folder(), *words).result["metrics"]["perplexity"]["value"]
    tuning = ["--finetune-epochs", 3, "--finetune-batch-tokens", 512, "--finetune-learning-rate", 3e-3]
    done = chinchilla("finetune", model_folder(), *words, *tuning, "-o", tmp_path / "run")
    assert done.status == 0
    assert done.result["splits"]["test"]["perplexity"]["value"] < 0.5 * before


@pytest.mark.parametrize("as_model", ["run", "run/model"])
def test_a_model_is_not_trained_over_itself(tagger: Path, tags: Path, chinchilla, as_model: str):
    model = tagger if as_model == "run" else tagger / "model"
    before = (tagger / "model" / "model.safetensors").stat().st_mtime_ns
    done = chinchilla("finetune", model, *TAGGING, "--data", tags, "-o", tagger)
    done.refused(f"model {model} is where the verb writes its own; pass another -o")
    assert (tagger / "model" / "model.safetensors").stat().st_mtime_ns == before


@pytest.mark.parametrize("asked", [True, False])
def test_a_decoder_becomes_a_bidirectional_classifier_where_that_is_asked(model_folder, tmp_path, chinchilla, asked):
    data = write_jsonl(tmp_path / "data", SIZES, labelled)
    out = tmp_path / "run"
    words = ["finetune", model_folder("llama-gqa"), "--task", "text-classification", "--data", data, *TUNING]
    done = chinchilla(*words, "--bidirectional", asked, "-o", out, "--quiet")
    assert done.status == 0, done.err
    assert load(out).model.config.causal is not asked
    assert (json.loads((out / "model" / "config.json").read_text()).get("is_causal") is False) is asked


@pytest.mark.parametrize(
    ("task", "row", "said"),
    [
        ("text-classification", {"label": "good"}, "all 12 labels"),
        ("token-classification", {"tokens": ["a", "b"], "tags": ["O", "O"]}, "all 24 tags"),
        ("ranking", {"text_pair": "a", "label": 1}, "all 12 relevances"),
    ],
)
def test_one_class_is_refused_before_anything_is_trained(task, row, said, tmp_path, model_folder, chinchilla):
    made = write_jsonl(
        tmp_path / "one", {"train": 12, "dev": 9, "test": 9}, lambda source: {"text": some_words(source), **row}
    )
    words = ["finetune", model_folder("bert"), "--task", task, "--data", made, "-o", tmp_path / "out"]
    chinchilla(*words).refused(said, "two different")
    assert not (tmp_path / "out" / "model").exists()


def test_a_model_learns_what_its_teachers_answer(tagger: Path, tags: Path, model_folder, tmp_path: Path, chinchilla):
    """The training data's own tags are wrong throughout, so that what is right can only come from the teachers. They
    read words with another tokenizer than their pupil."""
    data = tmp_path / "data"
    shutil.copytree(tags, data)
    turned = {"LOC": "PER", "PER": "ORG", "ORG": "LOC"}
    wrong = re.sub("-(LOC|PER|ORG)", lambda match: f"-{turned[match[1]]}", (data / "train.txt").read_text())
    (data / "train.txt").write_text(wrong)
    teaching = ["--finetune-teachers", tagger / "model", tagger, "--finetune-teacher-weight", 1]
    words = ["finetune", model_folder(), *TAGGING, "--data", data, *TUNING, *teaching, "-o", tmp_path / "run"]
    done = chinchilla(*words, "--json")
    assert done.status == 0, done.err
    assert done.result["splits"]["test"]["entity_f1"]["value"] > 0.9
    assert "on the training data" in done.err
    assert "finetune: unchanged, not run again" in chinchilla(*words, "--json").err
    asked = yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())["finetune"]
    assert asked["teachers"] == [str(tagger / "model"), str(tagger)]


def test_text_without_labels_is_learnt_by_the_teachers_answers(
    tagger: Path, tags: Path, model_folder, tmp_path: Path, chinchilla
):
    """Of six labelled sentences little can be learnt; of a hundred more that teachers read, nearly all."""
    data = tmp_path / "data"
    shutil.copytree(tags, data)
    sentences = (data / "train.txt").read_text().split("\n\n")
    (data / "train.txt").write_text("\n\n".join(sentences[:6]) + "\n")
    texts = [" ".join(line.split()[0] for line in sentence.splitlines()) for sentence in sentences[6:]]
    (tmp_path / "more.txt").write_text("\n".join(texts) + "\n")
    words = ["finetune", model_folder(), *TAGGING, "--data", data, *TUNING, "--finetune-teachers", tagger]
    alone = chinchilla(*words, "-o", tmp_path / "alone", "--json")
    more = chinchilla(*words, "--finetune-unlabelled", tmp_path / "more.txt", "-o", tmp_path / "more", "--json")
    assert (alone.status, more.status) == (0, 0), more.err
    few, many = (done.result["splits"]["test"]["entity_f1"]["value"] for done in (alone, more))
    assert many > max(0.85, few + 0.1), (few, many)


def test_what_cannot_teach_is_refused(tagger: Path, tags: Path, texts: Path, model_folder, tmp_path: Path, chinchilla):
    words = ["finetune", model_folder(), "-o", tmp_path / "run"]
    teaching = ["--finetune-teachers", tagger / "model"]
    text = ["--task", "language-modeling", "--data", texts]
    chinchilla(*words, *text, *teaching).refused("is for tasks with labels, not language-modeling", "leave out")
    data = tmp_path / "data"
    shutil.copytree(tags, data)
    for file in data.iterdir():
        file.write_text(file.read_text().replace("ORG", "FIRM"))
    chinchilla(*words, *TAGGING, "--data", data, *teaching).refused("B-ORG", "B-FIRM", "pass teachers that were")
    nobody = ["--finetune-unlabelled", tags / "train.txt"]
    chinchilla(*words, *TAGGING, "--data", tags, *nobody).refused("nobody to label it", "--finetune-teachers")
    held_out = tmp_path / "held.txt"
    first = (tags / "test.txt").read_text().split("\n\n")[0]
    held_out.write_text(" ".join(line.split()[0] for line in first.splitlines()) + "\n")
    only = [*teaching, "--finetune-unlabelled", held_out]
    chinchilla(*words, *TAGGING, "--data", tags, *only).refused("has 0 lines", "pass other text")
    bare = ["--finetune-teachers", model_folder("bert")]
    chinchilla(*words, *TAGGING, "--data", tags, *bare).refused("no trained head for token-classification")
    absent = tmp_path / "absent"
    chinchilla(*words, *TAGGING, "--data", tags, "--finetune-teachers", absent).refused(str(absent))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("finetune: {teachers: one}")
    chinchilla(*words, *TAGGING, "--data", tags, "--recipe", recipe).refused("finetune.teachers one is not a list")
    assert not (tmp_path / "run" / "model").exists()


def test_without_a_rate_the_width_decides(model_folder, texts: Path, tmp_path: Path, chinchilla):
    """Tiny models are narrower than any that the rule was measured on: four times the rate of a base-size model."""
    words = ["finetune", model_folder(), "--task", "language-modeling", "--data", texts, "--max-tokens", 24]
    words += ["--finetune-epochs", 1, "--quiet"]
    for name, asked in (("none", []), ("same", [2e-4]), ("other", [5e-5])):
        rate = [word for value in asked for word in ("--finetune-learning-rate", value)]
        assert chinchilla(*words, *rate, "-o", tmp_path / name).status == 0
    none, same, other = (load_file(tmp_path / name / "model/model.safetensors") for name in ("none", "same", "other"))
    assert all(torch.equal(none[name], same[name]) for name in none)
    assert not all(torch.equal(none[name], other[name]) for name in none)
