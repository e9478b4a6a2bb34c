"""`chinchilla compress --formats`, end to end on tiny models: a mix of dropped links and formats, packed and judged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import chinchilla_lm
from chinchilla_lm import cli
from chinchilla_lm.files import sha256_of
from chinchilla_lm.models.checkpoint import load
from chinchilla_lm.pipeline import timing
from chinchilla_lm.pipeline.job import Job
from chinchilla_lm.plan import FormatTable, Plan
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
    program, card = read_packed(mixed_run / "packed")
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
