"""`chinchilla evaluate` of packed models: the engine judges them, and no transformer is built of them."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from torch.nn.modules.module import register_module_parameter_registration_hook

from chinchilla_lm.models.checkpoint import load as load_checkpoint
from chinchilla_lm.models.checkpoint import save
from chinchilla_lm.runtime.engine.native import engine_module
from chinchilla_lm.runtime.loading import load
from chinchilla_lm.runtime.packing import write_packed
from tests.commands.conftest import FILLER, Done, running_text, some_words, write_conll, write_jsonl

pytestmark = pytest.mark.skipif(engine_module() is None, reason="the engine is not built")

TAGS = ["O", "B-X", "I-X"]  # of the random models
READING = ("--task", "language-modeling", "--device", "cpu")


@pytest.fixture
def packed(model_folder, tmp_path: Path) -> Callable[..., Path]:
    """A maker of packed folders of the tiny models."""

    def make(form: str = "f32", *kind: str) -> Path:
        folder = tmp_path / f"{form}-{'-'.join(kind)}"
        write_packed(model_folder(*kind), form, folder)
        return folder

    return make


@pytest.fixture
def parameters() -> Iterator[list[str]]:
    """The parameters that modules are given, by their names within those: none, and no transformer was built."""
    given: list[str] = []
    hook = register_module_parameter_registration_hook(lambda module, name, parameter: given.append(name))
    yield given
    hook.remove()


def labelled(source: random.Random) -> dict[str, str]:
    return {"text": some_words(source), "label": source.choice(TAGS)}


def ranked(source: random.Random) -> dict[str, object]:
    return {"text": some_words(source), "text_pair": some_words(source), "relevance": source.random()}


def data_for(task: str, folder: Path) -> Path:
    """A test split of 16 records for the random models."""
    if task != "token-classification":
        rows = {"language-modeling": running_text, "text-classification": labelled, "ranking": ranked}
        return write_jsonl(folder, {"test": 16}, rows[task])
    write_conll(folder, {"test": 1})
    source = random.Random(0)
    blocks = ["\n".join(f"{source.choice(FILLER)} {source.choice(TAGS[:2])}" for _ in range(6)) for _ in range(16)]
    (folder / "test.txt").write_text("\n\n".join(blocks) + "\n", encoding="utf-8")
    return folder


def values(done: Done) -> dict[str, float]:
    assert done.status == 0, done.err
    return {name: metric["value"] for name, metric in done.result["metrics"].items()}


@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("llama-gqa", "language-modeling"),
        ("bert", "token-classification"),
        ("bert", "text-classification"),
        ("bert", "ranking"),
    ],
)
def test_no_transformer_is_built_and_the_metrics_are_the_same(
    name: str, task: str, packed, model_folder, parameters: list[str], tmp_path: Path, chinchilla
):
    folder, original = packed("f32", name, task), model_folder(name, task)
    common = (
        "--task",
        task,
        "--device",
        "cpu",
        "--data",
        data_for(task, tmp_path / "data"),
        "--dtype",
        "float32",
        "--json",
    )
    parameters.clear()
    native = chinchilla("evaluate", folder, *common)
    assert parameters == []
    twin = chinchilla("evaluate", folder, *common, "--backend", "torch")
    assert len(parameters) > 20, "the twin is a transformer"
    torch = chinchilla("evaluate", original, *common, "--backend", "torch")
    assert native.result["n"] == twin.result["n"] == torch.result["n"]
    assert values(native) == pytest.approx(values(torch), rel=1e-4)
    assert values(twin) == pytest.approx(values(torch), rel=1e-4)


def test_the_perplexity_is_that_of_the_sessions_logits(packed, texts: Path, chinchilla):
    folder = packed("int8", "llama-gqa")
    found = chinchilla("evaluate", folder, *READING, "--data", texts, "--max-tokens", 32, "--json")
    session = load(folder)
    lines = (texts / "test.jsonl").read_text(encoding="utf-8").splitlines()
    text = "\n\n".join(json.loads(line)["text"] for line in lines)
    ids = session.tokenizer(text, add_special_tokens=False)["input_ids"]
    nats = []
    for start in range(0, len(ids) - 31, 32):
        logits = session.logits(ids[start : start + 32])[:-1].astype(np.float64)
        chosen = logits[range(31), ids[start + 1 : start + 32]]
        nats.append(np.log(np.exp(logits).sum(-1)) - chosen)
    assert found.result["n"] == len(nats)
    assert values(found)["perplexity"] == pytest.approx(math.exp(np.mean(nats)), rel=1e-4)


def test_only_the_original_is_built_to_compare_with(
    packed, model_folder, texts: Path, parameters: list[str], chinchilla
):
    folder, original = packed("int4", "llama-gqa"), model_folder()
    common = (*READING, "--data", texts, "--dtype", "float32", "--margin", 50, "--json")
    parameters.clear()
    assert chinchilla("evaluate", original, *common).status == 0
    built = parameters.copy()
    differences = []
    for model, other in [(folder, original), (original, folder)]:
        parameters.clear()
        done = chinchilla("evaluate", model, "--against", other, *common)
        assert done.status == 0, done.err
        assert parameters == built
        differences.append(done.result["certificate"]["difference"])
    there, back = differences
    assert there * back < 0, "one of the two is better"
    parameters.clear()
    same = chinchilla("evaluate", folder, "--against", folder, *common)
    assert (same.status, same.result["certificate"]["difference"]) == (0, 0.0)
    assert parameters == []


def test_a_packed_model_keeps_its_window(packed, model_folder, texts: Path, tmp_path: Path, chinchilla):
    save(load_checkpoint(model_folder()), tmp_path / "short", {"window": {"max_tokens": 24}})
    write_packed(tmp_path / "short", "f32", tmp_path / "packed")
    common = (*READING, "--data", texts, "--json")
    done = chinchilla("evaluate", tmp_path / "packed", "--against", model_folder(), *common, "--dtype", "float32")
    assert done.result["n"] == chinchilla("evaluate", tmp_path / "short", *common).result["n"]
    assert done.result["certificate"]["difference"] == pytest.approx(0.0, abs=1e-6)
    long = chinchilla("evaluate", tmp_path / "packed", *common, "--max-tokens", 4000, "--quiet")
    assert long.err.splitlines() == ["warning: --max-tokens 4000 is above the model's 64 positions; 64 are taken"]


@pytest.mark.parametrize("backend", ["native", "torch"])
def test_what_does_not_fit_is_refused(
    backend: str, packed, model_folder, texts: Path, tags: Path, tmp_path, chinchilla
):
    def evaluate(model: Path, task: str, data: Path, *words: object) -> Done:
        return chinchilla(
            "evaluate",
            model,
            "--task",
            task,
            "--device",
            "cpu",
            "--data",
            data,
            "--backend",
            backend,
            "--quiet",
            *words,
        )

    reader, tagger = packed("int8", "llama-gqa"), packed("int8", "bert", "token-classification")
    mismatch = "this packed model is for language-modeling, not token-classification; load another one"
    evaluate(reader, "token-classification", tags).refused(mismatch)
    evaluate(tagger, "token-classification", tags).refused("label 'B-LOC' of the data is not one of the model's")
    masked = packed("int8", "bert", "language-modeling")
    evaluate(masked, "language-modeling", texts).refused("masked language model, which has no perplexity")
    evaluate(model_folder(), "language-modeling", texts, "--against", masked).refused("masked language model")
    evaluate(tmp_path / "nowhere", "language-modeling", texts).refused("nowhere does not exist")
    for meta, said in [
        ({"version": 2}, "version 2, not 1"),
        ({"version": 1, "tags": "IOB1"}, "tags"),
        ({"version": 1, "window": {"context": "page"}}, "context 'page' is not sentence or document"),
    ]:
        (tagger / "chinchilla.json").write_text(json.dumps(meta))
        evaluate(tagger, "token-classification", tags).refused(said)
    (reader / "program.bin").write_bytes((reader / "program.bin").read_bytes()[:-1])
    evaluate(reader, "language-modeling", texts).refused("is damaged", "run chinchilla pack again")
