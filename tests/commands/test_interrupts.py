"""Ctrl-C at every stage: status 130, nothing half-written, and the same command completes the job."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
from safetensors import safe_open

from chinchilla_lm.console import Console, Progress
from chinchilla_lm.models import checkpoint
from chinchilla_lm.models.checkpoint import load
from tests.commands.conftest import SHORTENING, TAGGING, leftovers

STAGES = ("score", "search", "shorten", "recover")
OUTPUTS = {"score": "costs.json", "search": "plan.json", "shorten": "shortened", "recover": "model"}


@pytest.fixture
def interrupt(monkeypatch):
    """interrupt(stage): the next run is stopped in the midst of it, as by Ctrl-C."""

    class Stopping(Progress):
        def advance(self, n: float = 1, note: str = "") -> None:
            super().advance(n, note)
            if self.done >= 2:
                raise KeyboardInterrupt

    def fail(*given: object) -> None:
        raise KeyboardInterrupt

    def at(stage: str | None) -> None:
        monkeypatch.undo()
        real = Console.progress

        def progress(self: Console, total: float, label: str, unit: str = "") -> Progress:
            return Stopping(total, label, unit) if label == stage else real(self, total, label, unit)

        monkeypatch.setattr(Console, "progress", progress)
        if stage == "shorten":  # it shows no progress: stopped when the weights are written and the config is not
            monkeypatch.setattr(checkpoint, "write_config", fail)

    return at


def test_each_stage_can_be_stopped_and_the_same_command_completes(
    tagger: Path, tags: Path, tmp_path: Path, chinchilla, interrupt
):
    out = tmp_path / "run"
    words = ["compress", tagger, *TAGGING, "--data", tags, *SHORTENING, "-o", out]
    for index, stage in enumerate((*STAGES, "evaluate")):
        interrupt(stage)
        done = chinchilla(*words)
        done.refused("chinchilla compress stopped; run the same command again to resume", status=130)
        assert leftovers(tmp_path) == []
        for earlier in STAGES[:index]:
            assert (out / OUTPUTS[earlier]).exists()
        for later in STAGES[index:]:
            assert not (out / OUTPUTS[later]).exists()
        unchanged = [earlier for earlier in STAGES if f"{earlier}: unchanged" in done.out]
        assert unchanged == list(STAGES[: max(0, index - 1)]), "what the run before finished is not done again"
        assert (out / "recover.state").exists() is (stage == "recover")
        assert ("recover: resumed at step " in done.out) is (stage == "evaluate")
    interrupt(None)
    done = chinchilla(*words)
    assert done.status == 0
    assert [stage for stage in STAGES if f"{stage}: unchanged" in done.out] == list(STAGES)
    assert (out / "report.html").exists()
    assert len(load(out).model.link_names) < 6
    assert leftovers(tmp_path) == []


def test_an_interrupted_report_leaves_the_old_one_whole(
    tagger: Path, tags: Path, run_folder: Path, chinchilla, interrupt
):
    before = (run_folder / "report.json").read_bytes()
    words = ["compress", tagger, *TAGGING, "--data", tags, *SHORTENING, "-o", run_folder]
    interrupt("evaluate")
    assert chinchilla(*words).status == 130
    assert (run_folder / "report.json").read_bytes() == before


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_real_signal_while_it_recovers(run_folder: Path, tmp_path: Path, chinchilla, monkeypatch, number):
    """Sent by the system, not raised. The state of the training is kept; the product of the run before is whole."""

    class Killing(Progress):
        def advance(self, n: float = 1, note: str = "") -> None:
            super().advance(n, note)
            if self.done == 7:
                os.kill(os.getpid(), number)

    real = Console.progress

    def progress(self: Console, total: float, label: str, unit: str = "") -> Progress:
        return (Killing if label == "recover" else Progress)(total, label, unit)

    monkeypatch.setattr(Console, "progress", progress)
    words = ["recover", "-o", run_folder, "--recover-epochs"]
    stopped = chinchilla(*words, 50)
    stopped.refused("chinchilla recover stopped; run the same command again to resume", status=130)
    assert (run_folder / "recover.state").is_file()
    assert leftovers(tmp_path) == []
    assert len(load(run_folder).model.link_names) < 6
    monkeypatch.setattr(Console, "progress", real)
    with safe_open(run_folder / "recover.state", "pt") as file:
        place = json.loads(file.metadata()["place"])
    assert place["step"] == 7
    other = chinchilla(*words, 1)
    assert other.status == 0
    assert "resumed" not in other.out, "the state is of a run with other settings"
