"""`chinchilla compress`, end to end on tiny models: what it leaves, when it works again, and its verdicts."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

import chinchilla_lm
from chinchilla_lm.files import sha256_of
from chinchilla_lm.models.checkpoint import load
from chinchilla_lm.plan import CostTable, Plan, chain
from tests.commands.conftest import SHORTENING, TAGGING, leftovers, running_text, some_words, write_conll, write_jsonl

STAGES = ("score", "search", "shorten", "recover")
SIZES = {"train": 40, "dev": 12, "test": 16}


def command(tagger: Path, tags: Path, out: Path) -> list[object]:
    return ["compress", tagger, *TAGGING, "--data", tags, *SHORTENING, "-o", out]


def ran(text: str) -> list[str]:
    """The stages that were not skipped."""
    return [stage for stage in STAGES if f"{stage}: unchanged, not run again" not in text]


def test_the_product_is_a_shorter_model_with_its_certificate(tagger: Path, short_run: Path):
    product, original = load(short_run), load(tagger)
    plan = Plan.load(short_run / "plan.json")
    assert 0 < len(plan.dropped) < 6
    assert tuple(product.model.link_names) == plan.kept
    assert product.model.dropped.keys() == set(plan.dropped)
    assert original.model.link_names == list(original.model.names), "the original is whole"
    size = [sum(p.numel() for p in one.model.parameters()) for one in (product, original)]
    assert size[0] < size[1]
    meta = json.loads((short_run / "model" / "chinchilla.json").read_text())
    assert meta["plan"] == plan.to_dict()
    assert meta["original"] == original.sha256
    certificate = json.loads((short_run / "model" / "certificate.json").read_text())
    assert certificate["passed"] is True
    assert certificate["original"]["sha256"] == original.sha256
    assert certificate["artifact"]["files"]["model.safetensors"] == sha256_of(short_run / "model" / "model.safetensors")
    modes = {path.name: path.stat().st_mode for path in (short_run / "model").iterdir()}
    assert set(modes.values()) == {modes["config.json"]}, "who may read one file may read all"


def test_the_product_is_as_good_as_the_report_says(tagger: Path, tags: Path, run_folder: Path, chinchilla):
    report = json.loads((run_folder / "report.json").read_text())
    done = chinchilla("evaluate", run_folder, "--against", tagger, *TAGGING, "--data", tags, "--margin", 50, "--json")
    assert done.status == 0
    for key in ("difference", "low", "high", "margin", "n"):
        assert done.result["certificate"][key] == report["certificate"][key]
    stated = report["rows"][-1]["metrics"]["entity_f1"]["value"]
    assert 100 * done.result["metrics"]["entity_f1"]["value"] == pytest.approx(stated)


def test_each_arrow_of_the_job_is_a_file(short_run: Path):
    names = {
        "recipe.yaml",
        "costs.json",
        "plan.json",
        "frontier.json",
        "shortened",
        "model",
        "stages.json",
        "log.jsonl",
        "measurements",
    }
    assert {path.name for path in short_run.iterdir()} == names | {"report.json", "report.md", "report.html"}
    assert leftovers(short_run.parent) == []
    table = CostTable.load(short_run / "costs.json")
    assert len(table.entries) == 9
    assert table.post_norm
    events = [json.loads(line) for line in (short_run / "log.jsonl").read_text().splitlines()]
    assert [event.get("stage") for event in events[:4]] == list(STAGES)
    assert events[-1]["verdict"] == "passed"


def test_the_keys_of_the_json_object_and_a_second_run_that_works_no_more(
    tagger: Path, tags: Path, run_folder: Path, chinchilla
):
    files = ("costs.json", "plan.json", "frontier.json", "model/model.safetensors", "shortened/model.safetensors")
    before = {name: sha256_of(run_folder / name) for name in files}
    first = json.loads((run_folder / "report.json").read_text())
    done = chinchilla(*command(tagger, tags, run_folder), "--json")
    assert done.status == 0
    assert ran(done.err) == []
    assert {name: sha256_of(run_folder / name) for name in files} == before
    result = done.result
    assert {"verdict", "certificate", "speedup", "rows", "plan", "seconds"} <= result.keys()
    assert {"metric", "difference", "low", "high", "margin", "n"} <= result["certificate"].keys()
    assert [row["name"] for row in result["rows"]] == ["original", "shortened", "recovered"]
    for row in result["rows"]:
        assert {"metrics", "latency_ms", "throughput", "parameters", "bytes"} <= row.keys()
        assert row["latency_ms"].keys() == {"p50", "p95"}
    assert result["plan"] == json.loads((run_folder / "plan.json").read_text())
    assert (result["verdict"], result["certificate"]["n"]) == (first["verdict"], 40)
    for key in ("metric", "difference", "low", "high", "margin", "n"):
        assert result["certificate"][key] == first["certificate"][key]
    f1 = [row["metrics"]["entity_f1"]["value"] for row in result["rows"]]
    assert 100 * (f1[2] - f1[0]) == pytest.approx(result["certificate"]["difference"])


@pytest.mark.parametrize(
    ("change", "again"),
    [
        (("--margin", 49), []),
        (("--metric", "token_micro"), []),
        (("--recover-epochs", 1), ["recover"]),
        (("--speedup", 1.25), ["search"]),
        (("--calibration-tokens", 600), ["score"]),
        (("--max-tokens", 9), ["score", "shorten", "recover"]),
    ],
)
def test_only_what_depends_on_a_change_is_done_again(
    tagger: Path, tags: Path, run_folder: Path, chinchilla, change, again
):
    """A changed margin does not retrain; another window does, even where the plan stays the same."""
    done = chinchilla(*command(tagger, tags, run_folder), *change)
    assert done.status == 0, done.err
    found = ran(done.out)
    assert [stage for stage in STAGES if stage in again and stage not in found] == []
    downstream = STAGES[STAGES.index(again[0]) :] if again else ()
    assert set(found) <= set(downstream)


def test_a_certificate_that_fails_is_status_3_and_stands_on_top(tagger: Path, tags: Path, run_folder: Path, chinchilla):
    """A plan edited by hand that drops everything: what `Siemens` is can no longer be told."""
    Plan.from_dropped(3, [link.name for link in chain(3)]).save(run_folder / "plan.json")
    words = [*command(tagger, tags, run_folder), "--margin", 0.5, "--recover-epochs", 0]
    done = chinchilla(*words, "--json")
    assert done.status == 3
    assert ran(done.err) == ["shorten", "recover"]
    assert done.result["verdict"] == "failed"
    assert done.result["certificate"]["high"] < -0.5
    assert load(run_folder).model.link_names == []
    assert json.loads((run_folder / "model" / "certificate.json").read_text())["passed"] is False
    report = (run_folder / "report.md").read_text(encoding="utf-8")
    assert "fail" in report[:600].lower()
    assert chinchilla(*words, "--quiet").out.count("FAILED: ") == 1


def test_one_class_is_refused_before_anything_is_trained(model_folder, tmp_path: Path, chinchilla):
    made = write_jsonl(tmp_path / "one", SIZES, lambda source: {"text": some_words(source), "label": "B-X"})
    words = ["compress", model_folder("bert", "text-classification"), "--task", "text-classification", "--data", made]
    chinchilla(*words, *SHORTENING, "-o", tmp_path / "out").refused("all 40 labels", "two different")
    assert not (tmp_path / "out" / "costs.json").exists()


def test_a_speed_that_cannot_be_had_is_status_1(tagger: Path, tags: Path, tmp_path: Path, chinchilla):
    words = ["compress", tagger, *TAGGING, "--data", tags, "--latency", 0.0001, "--batch", 4, "-o", tmp_path / "run"]
    done = chinchilla(*words, "--quiet")
    done.refused("latency 0.0001 ms cannot be had: without any link the model is", "such as --latency", status=1)
    assert not (tmp_path / "run" / "plan.json").exists()
    assert leftovers(tmp_path) == []


def test_a_latency_in_milliseconds_is_a_target_too(tagger: Path, tags: Path, run_folder: Path, chinchilla):
    words = ["--latency", 10_000, "--recover-epochs", 0]
    base = [word for word in command(tagger, tags, run_folder) if word not in ("--speedup", 1.2)]
    done = chinchilla(*base, *words, "--json")
    assert done.status == 0
    assert done.result["certificate"]["difference"] == 0.0, "it is fast enough as it is"
    assert load(run_folder).model.dropped == {}


def labelled(source: random.Random) -> dict[str, str]:
    return {"text": some_words(source), "label": source.choice(["O", "B-X", "I-X"])}


def ranked(source: random.Random) -> dict[str, object]:
    return {"text": some_words(source), "text_pair": some_words(source), "relevance": source.random()}


@pytest.mark.parametrize(
    ("name", "task", "row", "metric"),
    [
        ("llama-gqa", "language-modeling", running_text, "perplexity"),
        ("bert", "text-classification", labelled, "accuracy"),
        ("bert", "ranking", ranked, "mean_squared_error"),
    ],
)
def test_every_task_comes_through(model_folder, tmp_path: Path, chinchilla, name: str, task: str, row, metric: str):
    """On random models: the plan holds, the keys are there, and the gold labels make up for what was lost."""
    data = write_jsonl(tmp_path / "data", SIZES, row)
    words = ["--speedup", 1.2, "--margin", 50, "--max-measures", 8, "--batch", 2, "--tokens", 12]
    words += ["--recover-epochs", 2, "--recover-learning-rate", 3e-3, "--recover-weights-task", 1, "--max-tokens", 24]
    words += ["--recover-batch-tokens", 256]
    model = model_folder(name, task)
    done = chinchilla("compress", model, "--task", task, "--data", data, *words, "-o", tmp_path / "run", "--json")
    assert done.status in (0, 3), done.err
    assert done.result["certificate"]["metric"] == metric
    assert (done.status == 0) is (done.result["verdict"] == "passed")
    values = {row["name"]: row["metrics"][metric]["value"] for row in done.result["rows"]}
    assert values["shortened"] != values["original"] or task == "text-classification"
    product = load(tmp_path / "run")
    assert product.model.dropped.keys() == set(Plan.load(tmp_path / "run" / "plan.json").dropped) != set()
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    timed = report["speedup"]
    assert ("new_tokens" in timed["shape"]) is (task == "language-modeling"), "a language model writes"
    assert timed["shape"] == CostTable.load(tmp_path / "run" / "costs.json").shape
    aa = dict(timed["aa"])
    assert aa.pop("against", None) == "control"  # the answers took part, so there is one, and it is the copy
    assert aa == {"value": 1.0, "low": 1.0, "high": 1.0}
    if task == "language-modeling":
        assert done.status == 0, "training on the text helps a random model more than the links did"
        assert values["recovered"] < values["original"]
        assert [sample.keys() for sample in report["samples"]] == [{"prompt", "original", "changed"}]
    else:
        assert report["samples"] == []


def test_test_data_among_the_calibration_data_is_left_out(tagger: Path, tags: Path, tmp_path: Path, chinchilla):
    """Not measured on: a plan that was chosen on the test's own text would be certified on what it was chosen for."""
    leak = tmp_path / "leak"
    leak.mkdir()
    shutil.copy(tags / "test.txt", leak / "test.txt")
    done = chinchilla(*command(tagger, tags, tmp_path / "run"), "--calibration", leak, "--quiet")
    assert done.status == 2
    assert "warning: 40 training records stand in dev or test too and were left out\n" in done.err
    assert "0 calibration windows" in done.err
    other = write_conll(tmp_path / "other", {"train": 8, "dev": 3, "test": 3}, seed=7)
    with (other / "train.txt").open("a") as file:
        file.write("\n" + (tags / "test.txt").read_text())
    done = chinchilla(*command(tagger, tags, tmp_path / "run"), "--calibration", other)
    assert done.status == 0
    assert "warning: 40 training records stand in dev or test too and were left out\n" in done.err
    assert "calibration" in (tmp_path / "run" / "recipe.yaml").read_text()
    assert CostTable.load(tmp_path / "run" / "costs.json").tokens < (8 + 3 + 3) * 16


def test_a_shortened_model_is_not_an_original(short_run: Path, tags: Path, tmp_path: Path, chinchilla):
    done = chinchilla(*command(short_run, tags, tmp_path / "run"), "--quiet")
    done.refused("is shortened already; start from the original")


@pytest.mark.parametrize("as_model", ["run", "run/model"])
def test_the_original_is_never_overwritten(tagger: Path, tags: Path, tmp_path: Path, chinchilla, as_model: str):
    run = shutil.copytree(tagger, tmp_path / "run")
    before = sha256_of(run / "model" / "model.safetensors")
    done = chinchilla(*command(tmp_path / as_model, tags, run))
    done.refused("is where the verb writes its own; pass another -o")
    assert sha256_of(run / "model" / "model.safetensors") == before


def test_the_python_function_gives_the_same_object(tagger: Path, tags: Path, run_folder: Path, quick):
    fields: dict[str, Any] = {
        "speedup": 1.2,
        "margin": 50,
        "method": "refine",
        "max_measures": 20,
        "batch": 4,
        "tokens": 12,
        "quiet": True,
    }
    fields["recover"] = {"epochs": 2, "batch_tokens": 256, "learning_rate": 3e-3}
    result = chinchilla_lm.compress(
        str(tagger), task="token-classification", data=str(tags), out=str(run_folder), **fields
    )
    report = json.loads((run_folder / "report.json").read_text())
    assert result["verdict"] == report["verdict"] == "passed"
    assert result["plan"] == report["plan"]
