"""Preserving is not adapting: the control, the guard, and the fastest model where no speed is asked for."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chinchilla_lm import cli
from chinchilla_lm.data.load import load_dataset
from chinchilla_lm.models.transformer import Transformer
from chinchilla_lm.pipeline import planning, recovery, timing
from chinchilla_lm.pipeline.recovery import Recovery, Standing
from chinchilla_lm.plan import Plan
from chinchilla_lm.runtime.measuring.clock import Timing
from tests.commands.conftest import SHORTENING, TAGGING, SteadyRace, running_text, write_conll, write_jsonl


def without(words: tuple[object, ...], *flags: str) -> list[object]:
    """The words less some flags and their values."""
    kept, skip = [], False
    for word in words:
        if not skip and word not in flags:
            kept.append(word)
        skip = word in flags
    return kept


def records_of(folder: Path, split: str) -> list[Any]:
    return load_dataset(folder, "token-classification").records(split)


def test_where_the_answers_teach_the_result_is_held_against_a_control(
    tagger: Path, tags: Path, tmp_path: Path, chinchilla
):
    words = ["compress", tagger, *TAGGING, "--data", tags, *SHORTENING, "-o", tmp_path / "run", "--json"]
    done = chinchilla(*words, "--recover-weights-task", 1.0)
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert [row["name"] for row in report["rows"]] == ["original", "control", "shortened", "recovered"]
    assert report["comparisons"][0]["against"] == "control"
    f1 = {row["name"]: row["metrics"]["entity_f1"]["value"] for row in report["rows"]}
    assert report["certificate"]["difference"] == pytest.approx(f1["recovered"] - f1["control"], abs=1e-6)
    assert "which is the original trained on the same data" in report["notes"][0]
    assert done.result["comparisons"] == report["comparisons"]


def test_a_guard_that_the_result_fails_fails_the_job(tagger: Path, tags: Path, tmp_path: Path, chinchilla):
    guard = write_conll(tmp_path / "guard", {"test": 60}, seed=7)
    shortening = without(SHORTENING, "--speedup", "--margin", "--recover-epochs")
    words = ["compress", tagger, *TAGGING, "--data", tags, *shortening, "--speedup", 2.0, "--recover-epochs", 0]
    done = chinchilla(*words, "--guard", guard, "--margin", 0.01, "-o", tmp_path / "run", "--json")
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert [(c["data"], c["against"]) for c in report["comparisons"]] == [("test", "original"), ("guard", "original")]
    assert done.status == 3
    assert "speeds are tried on dev" in done.err
    assert "looked at once" not in done.err, "what is tried for the advice comes after the test"
    assert report["comparisons"][1]["passed"] is False
    assert "on the guard" in report["headline"]
    assert any(note.startswith("what would pass: ") for note in report["notes"])
    page, text = ((tmp_path / "run" / name).read_text() for name in ("report.html", "report.md"))
    for written in (page, text):
        assert "guard" in written
        assert "flipped" in written
    content = json.loads((tmp_path / "run" / "model" / "certificate.json").read_text())
    (also,) = content["also"]
    ours = {record.words for split in ("train", "dev", "test") for record in records_of(tags, split)}
    judged = [record for record in records_of(guard, "test") if record.words not in ours]
    assert 0 < len(judged) < 60
    sha256 = hashlib.sha256("\n".join(map(repr, judged)).encode()).hexdigest()
    count = {"examples": len(judged), "documents": len(judged)}
    assert also["data"] == {"name": str(guard), "sha256": sha256, "split": "test", **count}
    for found, told in ((content, report["comparisons"][0]), (also, report["comparisons"][1])):
        for key in ("difference", "passed", "agreement"):
            assert found[key] == told[key]
    assert f"also guard, against the original ({guard}, {len(judged)} examples), failed: " in " ".join(
        chinchilla("inspect", tmp_path / "run", "--no-time").out.split()
    )


def test_advice_is_not_searched_again_where_the_clock_alone_differs(
    tagger: Path, tags: Path, tmp_path: Path, chinchilla, monkeypatch: pytest.MonkeyPatch
):
    class Slower(SteadyRace):
        """The same models on another day."""

        def run(self, **many: Any) -> dict[str, Timing]:
            return {name: Timing(one.seconds + 1e-5) for name, one in super().run(**many).items()}

    shortening = without(SHORTENING, "--speedup", "--margin", "--recover-epochs")
    words = ["compress", tagger, *TAGGING, "--data", tags, *shortening, "--speedup", 2.0, "--recover-epochs", 0]
    words += ["--margin", 0.01, "-o", tmp_path / "run"]

    def run(*more: object) -> tuple[str, float, list[str]]:
        done = chinchilla(*words, *more)
        assert done.status == 3
        report = json.loads((tmp_path / "run" / "report.json").read_text())
        notes = [note for note in report["notes"] if note.startswith("what would pass")]
        return done.out, report["speedup"]["value"], notes

    out, ratio, notes = run()
    assert "3 speeds are tried on dev: up to 3 models are judged without recovery, about " in out
    monkeypatch.setattr(timing, "race", Slower)
    again, other, same = run()
    assert other != ratio
    assert same == notes
    assert "advice: unchanged, not run again" in again
    assert "speeds are tried" not in again
    asked_anew, _, _ = run("--margin", 0.02)
    assert "3 speeds are tried on dev" in asked_anew


def test_the_guard_is_no_part_of_the_data(tagger: Path, tags: Path, tmp_path: Path, chinchilla):
    words = ["compress", tagger, *TAGGING, "--data", tags, *SHORTENING, "-o", tmp_path / "run"]
    chinchilla(*words, "--guard", tags).refused("--guard", "is text of the data that it is to guard against")


def test_without_a_target_the_fastest_within_the_margin(tagger: Path, tags: Path, tmp_path: Path, chinchilla):
    shortening = without(SHORTENING, "--speedup")
    words = ["compress", tagger, *TAGGING, "--data", tags, *shortening, "-o", tmp_path / "run"]
    done = chinchilla(*words)
    assert done.status == 0
    assert "5 speeds are tried on dev: up to 5 models are recovered on " in done.out
    assert done.out.count("test: 40 windows") == 1, "the test data are looked at once"
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["speedup"]["target"] is None
    trials = json.loads((tmp_path / "run" / "trials.json").read_text())
    speeds = [trial["speedup"] for trial in trials]
    assert speeds == sorted(speeds, reverse=True)
    assert report["plan"]["choices"] in [trial["plan"]["choices"] for trial in trials]
    again = chinchilla(*words)
    assert again.status == 0
    assert "search: unchanged, not run again" in again.out


def test_after_a_fallback_the_report_marks_the_plan_that_was_taken(
    tagger: Path, tags: Path, tmp_path: Path, chinchilla, monkeypatch: pytest.MonkeyPatch
):
    """Every speed holds on dev; once trials.json is there, the fastest model, recovered in full, does not."""
    recovered = []

    def standing(one: Recovery, short: Transformer) -> Standing:
        if (tmp_path / "run" / "trials.json").exists():
            recovered.append(short)
        return Standing(0.9, 0.0, 0.0, 99.0 if len(recovered) == 1 else 0.5)

    monkeypatch.setattr(Recovery, "standing", standing)
    words = ["compress", tagger, *TAGGING, "--data", tags, *without(SHORTENING, "--speedup"), "-o", tmp_path / "run"]
    assert "the next slower model is tried" in chinchilla(*words).out
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    first, second, *_ = json.loads((tmp_path / "run" / "trials.json").read_text())
    assert first["plan"]["choices"] != second["plan"]["choices"] == report["plan"]["choices"]
    (chosen,) = (point for point in report["frontier"] if point["chosen"])
    assert chosen["links"] == len(Plan.from_dict(second["plan"]).kept)
    assert chosen["links"] == report["rows"][-1]["links"]


@pytest.mark.parametrize(("loss", "status"), [(10.0, 0), (47.0, 0), (60.0, 1)])
def test_what_a_trial_leaves_undecided_is_recovered_and_judged_on_dev(
    tagger: Path, tags: Path, tmp_path: Path, chinchilla, monkeypatch: pytest.MonkeyPatch, loss: float, status: int
):
    """Every trial misses the margin of 50 by less than its interval; in full the first holds it, if only by
    its estimate, or none does."""

    def standing(one: Recovery, short: Transformer) -> Standing:
        tried = (tmp_path / "run" / "trials.json").exists()
        return Standing(0.9, loss, loss - 5, loss + 5) if tried else Standing(0.9, 52.0, 48.0, 56.0)

    monkeypatch.setattr(Recovery, "standing", standing)
    monkeypatch.setattr(planning, "RACE_TOKENS", 50)
    words = ["compress", tagger, *TAGGING, "--data", tags, *without(SHORTENING, "--speedup"), "-o", tmp_path / "run"]
    done = chinchilla(*words)
    assert done.status == status
    assert "is recovered in full first" in done.out
    candidates = len(json.loads((tmp_path / "run" / "trials.json").read_text()))
    assert candidates > 1
    assert done.out.count("recover: peak rate") == (1 if status == 0 else candidates)
    assert ("no shortened model holds the margin of 50 on dev" in done.err) is (status == 1)
    assert ("recovered, test" in done.out) is (status == 0), "the test data are looked at only where dev allows it"


def test_a_trial_keeps_the_model_as_it_was_where_training_makes_it_worse(
    tagger: Path, tags: Path, tmp_path: Path, chinchilla, monkeypatch: pytest.MonkeyPatch
):
    """Taught to answer as little like the original as it can."""
    trained: list[tuple[float, float]] = []
    train, loss = Recovery.train, recovery.recovery_loss

    def opposite(*given: Any) -> Any:
        towards = loss(*given)
        return lambda *batch: -towards(*batch)

    monkeypatch.setattr(recovery, "recovery_loss", opposite)

    def noting(one: Recovery, short: Transformer, label: str, **more: Any) -> None:
        before = one.dev(short)
        train(one, short, label, **more)
        trained.append((before, one.dev(short)))

    monkeypatch.setattr(Recovery, "train", noting)
    words = ["compress", tagger, *TAGGING, "--data", tags, *without(SHORTENING, "--speedup"), "-o", tmp_path / "run"]
    chinchilla(*words)
    assert len(trained) > 1
    assert all(after >= before for before, after in trained)
    assert any(before > 0.1 for before, _ in trained), "there is something to lose"


def test_a_margin_that_nothing_holds_is_said(
    tagger: Path, tags: Path, tmp_path: Path, chinchilla, monkeypatch: pytest.MonkeyPatch
):
    """Without recovery a trial is all that there is: what it leaves undecided is not tried on the test data."""
    shortening = without(SHORTENING, "--speedup", "--margin", "--recover-epochs")
    words = ["compress", tagger, *TAGGING, "--data", tags, *shortening, "--recover-epochs", 0, "--margin", 1e-6]
    monkeypatch.setattr(Recovery, "standing", lambda one, short: Standing(0.9, 1.0, -1.0, 3.0))
    chinchilla(*words, "-o", tmp_path / "run").refused("no shortened model holds the margin", "--margin", status=1)


def test_a_guard_for_running_text(model_folder, texts: Path, tmp_path: Path, chinchilla):
    guard = write_jsonl(tmp_path / "guard", {"test": 12}, lambda source: {"text": running_text(source)["text"][::-1]})
    words = ["compress", model_folder("llama-gqa"), "--task", "language-modeling", "--data", texts, "--guard", guard]
    words += ["--speedup", 1.05, "--margin", 50, "--method", "top", "--max-tokens", 16, "--recover-epochs", 1]
    done = chinchilla(*words, "-o", tmp_path / "run", "--json")
    first, second = done.result["comparisons"]
    assert (first["data"], second["data"]) == ("test", "guard")
    assert 0 <= second["agreement"]["same"]["value"] <= 1
    assert second["agreement"]["kl"]["value"] > 0


def entries(folder: Path) -> dict[str, Any]:
    """What a model's chinchilla.json says."""
    found = json.loads((folder / "chinchilla.json").read_text())
    assert isinstance(found, dict)
    return found


def sha256_of(records: list[Any]) -> str:
    return hashlib.sha256("\n".join(map(repr, records)).encode()).hexdigest()


@pytest.fixture(scope="module")
def taught_run(quick: None, tagger: Path, tags: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tagger, compressed, whose recovery the tags of the data took part in. Do not write into it."""
    out = tmp_path_factory.mktemp("taught") / "run"
    words = ["compress", tagger, *TAGGING, "--data", tags, *SHORTENING, "--recover-weights-task", 1.0, "-o", out]
    assert cli.main([str(word) for word in [*words, "--quiet"]]) in (0, 3)
    return out


@pytest.fixture
def issued(tags: Path, chinchilla) -> Callable[[Path, Path], bool]:
    """Whether `evaluate` issues a certificate for a copy of one tagger against another."""

    def ask(model: Path, against: Path) -> bool:
        words = ["evaluate", model, "--against", against, *TAGGING, "--data", tags, "--margin", 50]
        done = chinchilla(*words, "--json")
        assert (done.result["issued"] is None) == ("it learnt from the answers of data that" in done.err)
        return done.result["issued"] is not None

    return ask


def test_what_learnt_from_answers_needs_an_original_that_did(
    taught_run: Path, tagger: Path, tags: Path, tmp_path: Path, issued, chinchilla
):
    model = shutil.copytree(taught_run / "model", tmp_path / "model")
    before = (model / "certificate.json").read_text()
    train, held_out = records_of(tags, "train"), [*records_of(tags, "dev"), *records_of(tags, "test")]
    once, words = sha256_of(train), {record.words for record in held_out}
    again = sha256_of([record for record in train if record.words not in words])
    assert entries(tagger / "model")["adapted"] == [once]
    assert entries(model)["adapted"] == sorted([once, again])
    assert entries(taught_run / "shortened")["adapted"] == [once], "not taught yet"
    assert not issued(model, tagger)
    assert (model / "certificate.json").read_text() == before
    kept = ("adapted", "tags", "window")
    assert [entries(taught_run / "control")[key] for key in kept] == [entries(model)[key] for key in kept]
    assert issued(model, taught_run / "control")
    packed = tmp_path / "packed"
    assert chinchilla("pack", model, "--format", "int8", "-o", packed).status == 0
    assert not issued(packed, tagger)
    assert issued(packed, model)
    export = ["export", model, "--to", "hf", "-o", tmp_path / "stock"]
    assert [chinchilla(*export).status, chinchilla(*export, "--force").status] == [0, 0]
    assert not issued(tmp_path / "stock", tagger)


def test_what_is_made_of_a_model_that_learnt_from_answers_keeps_that(
    taught_run: Path, tagger: Path, tags: Path, tmp_path: Path, issued, chinchilla
):
    """It was trained once more on other data, and another one on these alone."""
    data = write_conll(tmp_path / "more", {"train": 40, "dev": 20, "test": 20}, seed=3)
    tuning = [*TAGGING, "--data", data, "--finetune-epochs", 1]
    for name, source in (("again", taught_run), ("peer", taught_run / "control"), ("plain", tagger)):
        assert chinchilla("finetune", source, *tuning, "-o", tmp_path / name).status == 0
    other = sha256_of(records_of(data, "train"))
    again, plain = tmp_path / "again" / "model", tmp_path / "plain" / "model"
    assert entries(again)["adapted"] == sorted([*entries(taught_run / "model")["adapted"], other])
    assert entries(plain)["adapted"] == sorted([*entries(tagger / "model")["adapted"], other])
    assert not issued(again, tagger)
    assert not issued(again, plain), "which learnt one time less"
    assert issued(again, tmp_path / "peer")


def test_a_language_model_that_was_only_adapted_is_not_certified(model_folder, texts: Path, tmp_path: Path, chinchilla):
    base, run = model_folder("llama-gqa"), tmp_path / "run"
    words = ["--task", "language-modeling", "--data", texts, "--max-tokens", 16]
    assert chinchilla("finetune", base, *words, "--finetune-epochs", 1, "-o", run).status == 0
    done = chinchilla("evaluate", run / "model", "--against", base, *words, "--margin", 1, "--json")
    assert done.result["issued"] is None
    assert "it learnt from the answers of data that" in done.err
    assert not (run / "model" / "certificate.json").exists()


def compressed_with_a_guard(tagger: Path, tags: Path, folder: Path, chinchilla) -> Path:
    guard = write_conll(folder / "guard", {"test": 60}, seed=7)
    words = ["compress", tagger, *TAGGING, "--data", tags, *SHORTENING, "-o", folder / "run", "--guard", guard]
    assert chinchilla(*words).status in (0, 3)
    return folder / "run" / "model"


def test_a_certificate_that_speaks_of_a_guard_is_not_replaced(tagger: Path, tags: Path, tmp_path: Path, chinchilla):
    """Nor is one of an earlier version, or one that was edited; one about other files is."""
    model = compressed_with_a_guard(tagger, tags, tmp_path, chinchilla)
    path = model / "certificate.json"
    whole = json.loads(path.read_text())
    against = ["--against", tagger, *TAGGING, "--data", tags, "--margin", 50, "--json"]
    for change in ({}, {"version": 1}, {"passed": not whole["passed"]}):
        path.write_text(json.dumps(whole | change))
        done = chinchilla("evaluate", model, *against)
        assert done.result["issued"] is None
        assert "speaks of more than this data" in done.err
        assert json.loads(path.read_text()) == whole | change
    (model / "tokenizer_config.json").write_text((model / "tokenizer_config.json").read_text() + "\n")
    assert chinchilla("evaluate", model, *against).result["issued"] is not None
    assert json.loads(path.read_text())["also"] == []


def test_a_product_that_was_edited_is_made_again(run_folder: Path, tagger: Path, tags: Path, chinchilla):
    path = run_folder / "model" / "tokenizer_config.json"
    before = path.read_text()
    path.write_text(before.rstrip().removesuffix("}") + ', "edited": true}')
    done = chinchilla("compress", tagger, *TAGGING, "--data", tags, *SHORTENING, "-o", run_folder)
    assert done.status == 0
    assert "recover: unchanged, not run again" not in done.out
    assert path.read_text() == before


@pytest.mark.parametrize("damage", ["", "{", "[1]", "[{}]"])
def test_damaged_trials_are_one_line(tagger: Path, tags: Path, tmp_path: Path, chinchilla, damage: str):
    words = ["compress", tagger, *TAGGING, "--data", tags, *without(SHORTENING, "--speedup"), "-o", tmp_path / "run"]
    assert chinchilla(*words).status == 0
    (tmp_path / "run" / "trials.json").write_text(damage)
    done = chinchilla(*words)
    assert done.status in (0, 2), "searched again, or refused in one line"
    assert "Traceback" not in done.err
