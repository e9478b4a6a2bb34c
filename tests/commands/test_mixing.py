"""`chinchilla compress --formats`, end to end on tiny models: a mix of dropped links and formats, packed and judged."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import chinchilla_lm
from chinchilla_lm import cli
from chinchilla_lm.console import Console
from chinchilla_lm.files import sha256_of
from chinchilla_lm.models.checkpoint import load
from chinchilla_lm.pipeline import compress, timing
from chinchilla_lm.pipeline.job import Job
from chinchilla_lm.pipeline.outcome import hold_bytes
from chinchilla_lm.pipeline.stages import Stages
from chinchilla_lm.plan import FormatTable, Plan
from chinchilla_lm.recipe import make_recipe, read_yaml
from chinchilla_lm.runtime.engine.packed import read_packed
from chinchilla_lm.runtime.measuring.clock import Timing
from chinchilla_lm.runtime.measuring.operations import LinkTimes
from tests.commands.conftest import TAGGING, Done, SteadyRace

MIXING = (
    *("--speedup", 1.5, "--margin", 50, "--formats", "bf16,int8,int4", "--max-measures", 20),
    *("--batch", 4, "--tokens", 12, "--backend", "native", "--threads", 1),
    *("--recover-epochs", 1, "--recover-batch-tokens", 256, "--recover-learning-rate", 3e-3),
)
# Microseconds of a link in each format, on a machine where nothing else runs.
TAKES = {"f32": 40.0, "bf16": 40.0, "int8": 26.0, "int4": 20.0}


def microseconds(program_header: dict[str, Any]) -> float:
    """Of a program on that machine: 30 for the rest, or, of a decoder, what its head takes."""
    links = [one for one in program_header["operations"] if one["kind"] != "norm"]
    output = program_header["head"]["output"]
    decodes = output["outputs"] > 16
    return sum(TAKES[one["first"]["format"]] for one in links) + (TAKES[output["format"]] if decodes else 30.0)


class FormatRace(SteadyRace):
    """The same as `SteadyRace`, of formats too."""

    def run(self, *, rounds: int | None = None, seconds: float | None = None) -> dict[str, Timing]:
        self.real.run(rounds=1)
        self.rounds += rounds or 15
        taken = {name: microseconds(one.model.program.header) for name, one in self.served.items()}
        return {name: Timing(np.full(self.rounds, 1e-6 * one)) for name, one in taken.items()}


def steady_times(job: Job, served: Any, seconds: float) -> LinkTimes:
    """A clock that no other process disturbs."""
    header = served.model.program.header
    links = {one["name"]: TAKES[one["first"]["format"]] for one in header["operations"]}
    total = microseconds(header)
    return LinkTimes(total, total - sum(links.values()), links)


@pytest.fixture(scope="module")
def steady() -> Any:
    """Clocks that say what `TAKES` does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timing, "race", FormatRace)
        patch.setattr(timing, "link_times", steady_times)
        yield


@pytest.fixture(scope="module")
def mixed_run(steady: None, quick: None, tagger: Path, tags: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of the tiny tagger, mixed. Do not write into it."""
    out = tmp_path_factory.mktemp("mixed") / "run"
    words = ["compress", tagger, *TAGGING, "--data", tags, *MIXING, "-o", out, "--quiet", "--json"]
    assert cli.main([str(word) for word in words]) == 0
    return out


def test_the_result_is_the_packed_program_and_its_certificate(mixed_run: Path, tagger: Path) -> None:
    plan = Plan.load(mixed_run / "plan.json")
    assert plan.packed
    program, _ = read_packed(mixed_run / "packed")
    assert program.header["format"] == plan.format
    kept = [one["name"] for one in program.header["operations"] if one["kind"] != "norm"]
    assert tuple(kept) == plan.kept
    assert load(mixed_run / "model").model.link_names == list(plan.kept)
    certificate = json.loads((mixed_run / "packed" / "certificate.json").read_text())
    assert certificate["passed"] is True
    assert certificate["artifact"]["kind"] == "program"
    assert certificate["artifact"]["format"] == plan.format
    assert certificate["artifact"]["files"]["program.bin"] == sha256_of(mixed_run / "packed" / "program.bin")
    assert certificate["original"]["sha256"] == load(tagger).sha256
    assert not (mixed_run / "model" / "certificate.json").exists()
    assert microseconds(program.header) <= (30 + 6 * 40) / 1.5
    session = chinchilla_lm.load(str(mixed_run / "packed"))
    assert session.certificate is not None


def test_the_report_says_what_was_packed_and_beside_what(mixed_run: Path) -> None:
    report = json.loads((mixed_run / "report.json").read_text())
    plan, packed = Plan.load(mixed_run / "plan.json"), report["packed"]
    assert {one["what"]: one["format"] for one in packed["parts"]} == plan.formats
    assert packed["bytes"] == (mixed_run / "packed" / "program.bin").stat().st_size == report["rows"][-1]["bytes"]
    names = [row["name"] for row in report["rows"]]
    assert names[0] == "original"
    assert names[-1] == "packed"
    assert f"original in {packed['single']['format']}" in names
    assert ("recovered" in names) == bool(plan.dropped)
    single = next(row for row in report["rows"] if row["name"].startswith("original in"))
    ratio = single["latency_ms"]["p50"] / report["rows"][-1]["latency_ms"]["p50"]
    assert packed["single"]["value"] == pytest.approx(ratio)
    points = {point["method"] for point in report["frontier"]}
    assert points == {"original", "int8", "int4", "mix"}
    assert sum(bool(point["chosen"]) for point in report["frontier"]) == 1
    costs = {point["method"]: point["quality"] for point in report["frontier"]}
    assert costs["original"] == 0 < costs["int8"] < costs["int4"]


def test_the_same_command_does_nothing_again(
    mixed_run: Path, tagger: Path, tags: Path, steady: None, chinchilla
) -> None:
    before = {path: path.read_bytes() for path in mixed_run.rglob("*.bin")}
    done = chinchilla("compress", tagger, *TAGGING, "--data", tags, *MIXING, "-o", mixed_run)
    assert done.status == 0, done.err
    for stage in ("score", "formats", "search", "shorten", "recover", "pack"):
        assert f"{stage}: unchanged, not run again" in done.out
    assert before == {path: path.read_bytes() for path in mixed_run.rglob("*.bin")}


def test_too_little_text_to_solve_on_is_refused_before_anything_is_measured(
    tagger: Path, tags: Path, tmp_path: Path, chinchilla
) -> None:
    (tmp_path / "few").mkdir()
    lines = (tags / "train.txt").read_text().split("\n\n")[:20]
    (tmp_path / "few" / "train.txt").write_text("\n\n".join(lines) + "\n")
    words = ["--calibration", tmp_path / "few", *MIXING, "-o", tmp_path / "run"]
    done = chinchilla("compress", tagger, *TAGGING, "--data", tags, *words)
    done.refused("tokens of calibration text are too few; pass data with 1,024 or more")
    assert not (tmp_path / "run" / "costs.json").exists()


def test_a_search_takes_the_tables_of_its_model_and_formats_only(
    mixed_run: Path, tmp_path: Path, steady: None, chinchilla
) -> None:
    out = shutil.copytree(mixed_run, tmp_path / "run")
    done = chinchilla("search", "-o", out, "--formats", "int8")
    done.refused("formats.json is of bf16, int4, int8, not of int8; run chinchilla score", "first")
    for name in ("formats.json", "costs.json"):
        table = json.loads((mixed_run / name).read_text()) | {"model_sha256": "0" * 64}
        (out / name).write_text(json.dumps(table))
        done = chinchilla("search", "-o", out, "--formats", "bf16,int8,int4")
        done.refused(f"{name} holds another model's costs; run chinchilla score", "first")


def test_formats_alone_need_no_recovery(tagger: Path, tags: Path, tmp_path: Path, steady: None, chinchilla) -> None:
    words = ["--speedup", 1.2, "--margin", 50, "--formats", "int8", "--threads", 1, "--batch", 4, "--tokens", 12]
    done = chinchilla("compress", tagger, *TAGGING, "--data", tags, *words, "-o", tmp_path / "run", "--json")
    assert done.status == 0, done.err
    assert [row["name"] for row in done.result["rows"]] == ["original", "original in int8", "packed"]
    assert done.result["packed"] == str(tmp_path / "run" / "packed")
    assert set(Plan.from_dict(done.result["plan"]).formats.values()) == {"int8"}
    assert not Plan.from_dict(done.result["plan"]).dropped
    whole = [load(folder).model.state_dict() for folder in (tagger, tmp_path / "run" / "model")]
    assert all(np.array_equal(one, whole[1][name]) for name, one in whole[0].items())


def test_bytes_are_kept_too(tagger: Path, tags: Path, tmp_path: Path, steady: None, chinchilla) -> None:
    words = ["--margin", 50, "--formats", "bf16,int8,int4", "--threads", 1, "--recover-epochs", 0]
    common = ["compress", tagger, *TAGGING, "--data", tags, *words, "-o", tmp_path / "run"]
    found = []
    megabytes = 0.2
    for _ in range(2):
        done = chinchilla(*common, "--memory", megabytes)
        assert done.status == 0, done.err
        assert (tmp_path / "run" / "packed" / "program.bin").stat().st_size <= 1e6 * megabytes
        found.append(set(Plan.load(tmp_path / "run" / "plan.json").formats.values()))
        wholes = {one.format: one.bytes for one in FormatTable.load(tmp_path / "run" / "formats.json").wholes}
        megabytes = (wholes["int8"] + wholes["int4"]) / 2e6
    assert found[0] == {"bf16"}  # there is room for all
    assert "int4" in found[1]
    assert found[1] != {"int4"}  # part of them keep more bits
    plan = Plan.load(tmp_path / "run" / "plan.json")
    plan.packed_as(dict.fromkeys(plan.kept, "bf16"), None).save(tmp_path / "run" / "plan.json")
    done = chinchilla(*common, "--memory", (wholes["int8"] + wholes["int4"]) / 2e6)
    done.refused("the program has", "pass more --memory", status=1)


def test_a_program_with_too_many_bytes_fails_the_verdict() -> None:
    report: dict[str, Any] = {"verdict": "passed", "headline": "As good", "notes": []}
    assert hold_bytes(report, 1_500_000, None) == hold_bytes(report, 1_500_000, 1_500_000) == []
    assert report["verdict"] == "passed"
    assert hold_bytes(report, 1_500_001, 1_500_000) == report["notes"]
    assert report["verdict"] == "failed"
    assert report["headline"] == "--memory 1.5 was asked for, which the program's 1.5 MB exceed. As good"


def test_a_program_solved_on_other_windows_is_packed_again(mixed_run: Path, tmp_path: Path, capsys) -> None:
    out = shutil.copytree(mixed_run, tmp_path / "run")
    plan, recipe = Plan.load(out / "plan.json"), {**read_yaml(out / "recipe.yaml"), "output": str(out)}
    said = []
    for seed in (0, 7):
        stages = Stages(make_recipe({**recipe, "seed": seed}), Console())
        capsys.readouterr()
        stages.pack(plan)
        said.append("pack: unchanged" in "".join(capsys.readouterr()))
    assert said == [True, False]


def test_a_program_that_changes_after_it_was_read_is_not_certified(
    mixed_run: Path, tagger: Path, tags: Path, tmp_path: Path, steady: None, chinchilla, monkeypatch
) -> None:
    out = shutil.copytree(mixed_run, tmp_path / "run")

    def read_then_change(folder: Path) -> Any:
        found = read_packed(folder)
        path = folder / "config.json"
        path.write_text(path.read_text() + "\n")
        return found

    monkeypatch.setattr(compress, "read_packed", read_then_change)
    done = chinchilla("compress", tagger, *TAGGING, "--data", tags, *MIXING, "-o", out)
    done.refused("changed while they were judged")


def test_a_runs_model_is_packed_by_its_plan(mixed_run: Path, tagger: Path, tmp_path: Path, chinchilla) -> None:
    done = chinchilla("pack", mixed_run / "model", "--format", "plan", "-o", tmp_path / "packed")
    assert done.status == 0, done.err
    assert read_packed(tmp_path / "packed")[0].header["format"] == Plan.load(mixed_run / "plan.json").format
    done = chinchilla("pack", tagger, "--format", "plan", "-o", tmp_path / "other")
    done.refused("has no plan with formats; pass a format")


def test_a_head_that_is_not_packed_has_no_format(
    mixed_run: Path, tagger: Path, tags: Path, tmp_path: Path, steady: None, chinchilla
) -> None:
    out = shutil.copytree(mixed_run, tmp_path / "run")
    values = json.loads((out / "plan.json").read_text())
    (out / "plan.json").write_text(json.dumps(values | {"head": "int8"}))
    done = chinchilla("compress", tagger, *TAGGING, "--data", tags, *MIXING, "-o", out)
    done.refused("has head 'int8', and the model no head that is packed; make it null")


@pytest.fixture(scope="module")
def decoder_run(
    steady: None, quick: None, model_folder, texts: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Done, Path]:
    """A tiny decoder, mixed; its run folder is not to be written into."""
    out = tmp_path_factory.mktemp("decoder") / "run"
    words = ["--task", "language-modeling", "--data", texts, "--max-tokens", 32, "--tokens", 8, "--new-tokens", 4]
    words += ["--speedup", 1.6, "--margin", 50, "--formats", "int8,int4", "--threads", 1, "--max-measures", 20]
    words += ["--recover-epochs", 0.2, "--recover-batch-tokens", 256]
    status = cli.main([str(word) for word in ["compress", model_folder(), *words, "-o", out, "--quiet"]])
    return Done(status, "", ""), out


def test_a_decoders_head_has_a_format(decoder_run: tuple[Done, Path]) -> None:
    done, out = decoder_run
    assert done.status in (0, 3)
    plan = Plan.load(out / "plan.json")
    assert plan.head in ("int8", "int4")
    table = FormatTable.load(out / "formats.json")
    assert table.has_head
    assert {entry.format for entry in table.options("head")} == {"int8", "int4"}
    program, _ = read_packed(out / "packed")
    assert program.header["head"]["output"]["format"] == plan.head
    report = json.loads((out / "report.json").read_text())
    assert report["packed"]["parts"][-1]["what"] == "head"
    assert report["samples"][0]["changed"]


def test_a_plan_edited_by_hand_is_packed_as_it_says(
    decoder_run: tuple[Done, Path], model_folder, texts: Path, tmp_path: Path, steady: None, chinchilla
) -> None:
    out = shutil.copytree(decoder_run[1], tmp_path / "run")
    values = json.loads((out / "plan.json").read_text())
    (out / "plan.json").write_text(json.dumps(values | {"head": "bf16"}))
    words = ["--task", "language-modeling", "--data", texts, "--max-tokens", 32, "--tokens", 8, "--new-tokens", 4]
    words += ["--speedup", 1.6, "--margin", 50, "--formats", "int8,int4", "--threads", 1, "--max-measures", 20]
    words += ["--recover-epochs", 0.2, "--recover-batch-tokens", 256]
    done = chinchilla("compress", model_folder(), *words, "-o", out)
    assert done.status in (0, 3), done.err
    assert "search: unchanged" in done.out
    assert read_packed(out / "packed")[0].header["head"]["output"]["format"] == "bf16"
    (out / "plan.json").write_text(json.dumps(values | {"head": "int9"}))
    chinchilla("compress", model_folder(), *words, "-o", out).refused("format 'int9' of head in the plan")
    (out / "plan.json").write_text(json.dumps(values | {"head": None}))
    chinchilla("compress", model_folder(), *words, "-o", out).refused("has head null, and the model's head is packed")
    plain = Plan.from_dict(values)
    Plan.from_dropped(plain.num_blocks, plain.dropped).save(out / "plan.json")
    chinchilla("compress", model_folder(), *words, "-o", out).refused("names no formats, as it must with --formats")


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--formats", "int8"], "pass --speedup 2, --latency 20 or --memory 100"),
        (["--formats", "int9", "--speedup", 2], "format 'int9' is not one of f32, bf16"),
        (["--formats", "int8,", "--speedup", 2], "format '' is not one of"),
        (["--formats", "", "--speedup", 2], "formats '' is empty"),
        (["--memory", 10, "--speedup", 2], "memory_mb 10 is of a packed program; pass --formats auto"),
        (["--formats", "auto", "--memory", 0], "memory_mb 0 is not greater than 0"),
        (["--formats", "auto", "--memory", "nan"], "memory_mb nan"),
        (["--formats", "auto", "--memory", 1e-7], "--memory 1e-07 is less than a byte; pass megabytes"),
        (["--formats", "auto", "--speedup", 2, "--method", "greedy"], "method greedy drops links alone"),
        (["--formats", "auto", "--speedup", 2, "--backend", "torch"], "pass --backend native --device cpu"),
    ],
)
def test_what_does_not_go_together_is_refused_at_once(tagger, tags, tmp_path, chinchilla, words, named) -> None:
    chinchilla("compress", tagger, *TAGGING, "--data", tags, *words, "-o", tmp_path / "run").refused(named)


def test_what_cannot_be_had_is_said(tagger: Path, tags: Path, tmp_path: Path, steady: None, chinchilla) -> None:
    common = [
        "compress",
        tagger,
        *TAGGING,
        "--data",
        tags,
        "--threads",
        1,
        "-o",
        tmp_path / "run",
        "--formats",
        "int8",
        "--quiet",
    ]
    done = chinchilla(*common, "--memory", 0.001)
    done.refused("budget 0.001 MB is below the least to be had", "pass more --memory", status=1)
    done = chinchilla(*common, "--memory", 0.001, "--speedup", 1.5)
    done.refused("budget 0.001 MB is below the least to be had", "pass more --memory", status=1)
    done = chinchilla(*common, "--speedup", 19)
    done.refused("speed-up 19 cannot be had", status=1)
