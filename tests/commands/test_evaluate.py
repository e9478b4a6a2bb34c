"""`chinchilla evaluate`, end to end: keys, predictions that anybody can check, and paired verdicts."""

from __future__ import annotations

import json
import math
import re
import shutil
from itertools import pairwise
from pathlib import Path

import pytest
import seqeval.metrics
import torch
import torch.nn.functional as F

from chinchilla_lm.models.batch import Batch
from chinchilla_lm.models.checkpoint import load, save
from tests.commands.conftest import TAGGING

READING = ("--task", "language-modeling")


@pytest.fixture(scope="module")
def worse(tagger: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tagger, but it never says that something is an organisation."""
    checkpoint = load(tagger)
    output = checkpoint.model.head.output
    assert output is not None
    with torch.no_grad():
        output.bias[checkpoint.model.config.head.labels.index("B-ORG")] = -100.0
    folder = tmp_path_factory.mktemp("worse") / "model"
    save(checkpoint, folder)
    return folder


def test_predictions_rescored_with_seqeval_give_the_same_f1(worse: Path, tags: Path, tmp_path: Path, chinchilla):
    file = tmp_path / "new folder" / "predictions.jsonl"
    done = chinchilla("evaluate", worse, *TAGGING, "--data", tags, "--predictions", file, "--json")
    assert done.status == 0
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert len(rows) == done.result["n"] == 40
    assert all(row.keys() == {"id", "gold", "predicted", "score"} for row in rows)
    assert all(len(row["gold"]) == len(row["predicted"]) == len(row["score"]) for row in rows)
    lines = (tags / "test.txt").read_text(encoding="utf-8").split("\n\n")
    assert [row["gold"] for row in rows] == [[line.split()[1] for line in block.splitlines()] for block in lines]
    wanted = seqeval.metrics.f1_score([row["gold"] for row in rows], [row["predicted"] for row in rows])
    assert 0.3 < wanted < 0.98
    assert done.result["metrics"]["entity_f1"]["value"] == pytest.approx(wanted, abs=1e-9)


def test_the_keys_of_the_json_object(tagger: Path, tags: Path, chinchilla):
    done = chinchilla("evaluate", tagger, *TAGGING, "--data", tags, "--split", "dev", "--against", tagger, "--json")
    assert done.status == 0
    result = done.result
    assert result["task"] == "token-classification"
    assert (result["split"], result["n"]) == ("dev", 30)
    assert set(result["metrics"]) == {"entity_f1", "token_micro", "token_macro", "token_weighted"}
    assert all(metric.keys() == {"value", "low", "high"} for metric in result["metrics"].values())
    assert set(result["tables"]) == {"entities", "tokens"}
    keys = {"metric", "difference", "low", "high", "margin", "n", "unit", "passed", "more_examples"}
    assert result["certificate"].keys() == keys
    assert (result["certificate"]["difference"], result["certificate"]["passed"]) == (0.0, True)


def test_a_worse_model_fails_and_a_better_one_passes(tagger: Path, worse: Path, tags: Path, chinchilla):
    words = [*TAGGING, "--data", tags, "--json"]
    failed = chinchilla("evaluate", worse, "--against", tagger, *words)
    assert failed.status == 3
    assert failed.result["certificate"]["passed"] is False
    assert failed.result["certificate"]["high"] < 0
    assert "FAILED: failed: entity F1 -" in failed.err
    passed = chinchilla("evaluate", tagger, "--against", worse, *words)
    assert passed.status == 0
    assert passed.result["certificate"]["difference"] == pytest.approx(-failed.result["certificate"]["difference"])
    other = chinchilla("evaluate", worse, "--against", tagger, *words, "--metric", "token_micro", "--margin", 50)
    assert (other.status, other.result["certificate"]["metric"]) == (0, "token_micro")


def test_people_get_tables_and_a_verdict(tagger: Path, worse: Path, tags: Path, chinchilla):
    done = chinchilla("evaluate", worse, "--against", tagger, *TAGGING, "--data", tags, "--quiet")
    assert done.status == 3
    assert done.err == ""
    assert "test: entities" in done.out
    assert "FAILED: failed: entity F1" in done.out


def test_perplexity_is_that_of_the_model_on_windows_of_the_text(model_folder, texts: Path, chinchilla):
    words = [*READING, "--data", texts, "--max-tokens", 32, "--dtype", "float32", "--json"]
    done = chinchilla("evaluate", model_folder(), *words)
    checkpoint = load(model_folder())
    lines = (texts / "test.jsonl").read_text(encoding="utf-8").splitlines()
    ids = checkpoint.tokenizer("\n\n".join(json.loads(line)["text"] for line in lines))["input_ids"]
    windows = torch.tensor([ids[at : at + 32] for at in range(0, len(ids) - 31, 32)])
    with torch.no_grad():
        logits = checkpoint.model(Batch(windows))[:, :-1].double()
    wanted = math.exp(F.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten()).item())
    assert done.result["n"] == len(windows)
    assert done.result["metrics"]["perplexity"]["value"] == pytest.approx(wanted, rel=1e-4)


def test_both_language_models_read_the_same_windows(model_folder, texts: Path, tmp_path: Path, chinchilla):
    """A shortened model remembers its window; the original, which does not, must not be judged on longer ones."""
    checkpoint = load(model_folder())
    save(checkpoint, tmp_path / "short", {"window": {"context": "sentence", "max_tokens": 24}})
    words = [*READING, "--data", texts, "--json"]
    alone = chinchilla("evaluate", model_folder(), *words).result["metrics"]["perplexity"]["value"]
    done = chinchilla("evaluate", tmp_path / "short", "--against", model_folder(), *words)
    assert done.status == 0
    assert done.result["certificate"]["difference"] == 0.0
    assert done.result["metrics"]["perplexity"]["value"] != pytest.approx(alone, rel=1e-6)
    asked = chinchilla("evaluate", tmp_path / "short", "--against", model_folder(), *words, "--max-tokens", 40)
    assert asked.result["certificate"]["difference"] == 0.0
    assert asked.result["n"] < done.result["n"]


def test_a_window_that_the_model_does_not_take_is_said_aloud(model_folder, texts: Path, chinchilla):
    done = chinchilla("evaluate", model_folder(), *READING, "--data", texts, "--max-tokens", 4000, "--quiet")
    assert done.status == 0
    assert done.err.splitlines() == ["warning: --max-tokens 4000 is above the model's 64 positions; 64 are taken"]


@pytest.fixture(scope="module")
def fewer_merges(model_folder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The language model with a tokenizer that cuts text in smaller pieces."""
    folder = tmp_path_factory.mktemp("pieces") / "model"
    shutil.copytree(model_folder(), folder)
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    merges = tokenizer["model"]["merges"]
    tokenizer["model"]["merges"] = merges[: len(merges) // 3]
    path.write_text(json.dumps(tokenizer), encoding="utf-8")
    return folder


def test_a_tokenizer_that_does_not_spell_the_text_again_gets_no_comparison(
    fewer_merges: Path, model_folder, texts: Path, tmp_path: Path, chinchilla
):
    """Of either model, whichever is asked about, before one runs."""
    lossy = shutil.copytree(fewer_merges, tmp_path / "lossy")
    tokenizer = json.loads((lossy / "tokenizer.json").read_text(encoding="utf-8"))
    tokenizer["normalizer"] = {"type": "Lowercase"}
    (lossy / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    for pair in ((lossy, "--against", model_folder()), (model_folder(), "--against", lossy)):
        done = chinchilla("evaluate", *pair, *READING, "--data", texts, "--max-tokens", 64, "--margin", 50)
        done.refused(f"the tokens of {lossy} make", "compare models with one tokenizer")
        assert "95 % interval" not in done.out


def test_models_that_read_no_document_to_its_end_are_not_compared(
    fewer_merges: Path, model_folder, tmp_path: Path, chinchilla
):
    (tmp_path / "test.jsonl").write_text(json.dumps({"text": "Once upon a time the fox " * 30}), encoding="utf-8")
    words = ["evaluate", fewer_merges, "--against", model_folder(), *READING, "--data", tmp_path, "--max-tokens", 16]
    done = chinchilla(*words, "--margin", 50)
    done.refused("no document in common that both models read to its end", "pass more text, or a smaller --max-tokens")
    assert "95 % interval" not in done.out


def bits_by_document(folder: Path, texts: list[str], window: int) -> dict[int, tuple[float, int]]:
    """Document → bits and bytes of what is predicted in it; less the one in which the last window ends."""
    checkpoint = load(folder)
    whole = "\n\n".join(texts)
    found = checkpoint.tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True)
    ids, begins = found["input_ids"], [begin for begin, _ in found["offset_mapping"]]
    owner_of = [number for number, text in enumerate(texts) for _ in text + "\n\n"]
    document = [owner_of[begin] + (whole[begin] == "\n") for begin in begins]  # what joins two counts to the second
    sizes = [len(whole[at:end].encode()) for at, end in pairwise([*begins, len(whole)])]
    rows: dict[int, tuple[float, int]] = {}
    for start in range(0, len(ids) - window + 1, window):
        part = torch.tensor([ids[start : start + window]])
        with torch.no_grad():
            logits = checkpoint.model(Batch(part))[0, :-1].double()
        each = F.cross_entropy(logits, part[0, 1:], reduction="none") / math.log(2)
        for place, bits in enumerate(each.tolist(), start + 1):
            before = rows.get(document[place], (0.0, 0))
            rows[document[place]] = (before[0] + bits, before[1] + sizes[place])
    del rows[max(rows)]
    return rows


def test_language_models_with_other_tokens_are_compared_byte_by_byte(
    model_folder, fewer_merges: Path, texts: Path, chinchilla
):
    words = ["evaluate", fewer_merges, "--against", model_folder(), *READING, "--data", texts, "--max-tokens", 64]
    words += ["--dtype", "float32", "--margin", 50]
    done = chinchilla(*words, "--json")
    assert "different tokens, so bits_per_byte is compared in place of perplexity, and the margin is in" in done.err
    assert re.search(r"a margin of 50 % of bits per byte is [0-9.e+]+ % of perplexity for the original, at ", done.err)
    certificate = done.result["certificate"]
    lines = (texts / "test.jsonl").read_text(encoding="utf-8").splitlines()
    documents = [json.loads(line)["text"] for line in lines]
    ours, theirs = (bits_by_document(folder, documents, 64) for folder in (fewer_merges, model_folder()))
    both = ours.keys() & theirs.keys()
    new, old = (sum(rows[i][0] for i in both) / sum(rows[i][1] for i in both) for rows in (ours, theirs))
    assert certificate["metric"] == "bits_per_byte"
    assert certificate["difference"] == pytest.approx(100 * (new / old - 1), abs=1e-3)
    issued = json.loads((fewer_merges / "certificate.json").read_text())
    assert (issued["data"]["documents"], issued["agreement"]) == (len(both), None)
    assert issued["data"]["examples"] == certificate["n"] == done.result["n"]
    assert issued["read"] == issued["original"]["read"] == {"window": 64, "context": None}
    assert chinchilla(*words, "--json", "--metric", "bits_per_byte").result["certificate"] == certificate
    done = chinchilla(*words, "--metric", "perplexity")
    done.refused("perplexity counts tokens", "have different ones; pass --metric bits_per_byte")
    assert "95 % interval" not in done.out, "refused before a model runs"


def test_a_metric_of_another_task_is_refused_before_a_model_runs(tagger: Path, tags: Path, chinchilla):
    done = chinchilla("evaluate", tagger, *TAGGING, "--data", tags, "--metric", "accuracy")
    done.refused("metric 'accuracy' is not one of entity_f1, token_micro", "pass --metric entity_f1")
