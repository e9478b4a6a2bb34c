"""The run folder's account of its stages."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest

from chinchilla_lm.console import Console
from chinchilla_lm.errors import InputError
from chinchilla_lm.pipeline import folder as folders
from chinchilla_lm.pipeline.folder import RunFolder


def test_the_seconds_of_a_stage_count_the_attempts_that_were_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    now = 0.0

    def work(seconds: float, stopped: bool = False) -> None:
        nonlocal now
        now += seconds
        if stopped:
            raise KeyboardInterrupt

    monkeypatch.setattr(folders.time, "monotonic", lambda: now)
    folder = RunFolder(tmp_path, Console(quiet=True))
    (tmp_path / "recipe.yaml").touch()
    for seconds in (5.0, 6.0):
        with pytest.raises(KeyboardInterrupt):
            folder.stage("train", {"epochs": 2}, [], partial(work, seconds, stopped=True), lambda: None)
    assert folder.timings() == {}
    folder.stage("train", {"epochs": 2}, [], lambda: work(7.0), lambda: None)
    assert folder.timings() == {"train": 18.0}
    assert folder.earlier() == 11.0
    assert RunFolder(tmp_path, Console(quiet=True)).earlier() == 18.0
    events = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [event.get("stopped_after") for event in events] == [5.0, 6.0, None]
    assert (events[-1]["seconds"], events[-1]["all_attempts"]) == (7.0, 18.0)
    with pytest.raises(KeyboardInterrupt):
        folder.stage("train", {"epochs": 3}, [], lambda: work(1.0, stopped=True), lambda: None)
    folder.stage("train", {"epochs": 4}, [], lambda: work(2.0), lambda: None)
    assert folder.timings() == {"train": 2.0}, "what another training took is not part of this one"
    folder.stage("train", {"epochs": 4}, ["lost"], lambda: work(3.0), lambda: None)
    assert folder.timings() == {"train": 3.0}, "nor what this one took when its product was lost"


def test_a_stage_that_is_stopped_leaves_what_was_finished_before(tmp_path: Path):
    folder = RunFolder(tmp_path, Console(quiet=True))

    def stop() -> str:
        raise KeyboardInterrupt

    assert folder.stage("search", {"speedup": 2}, [], lambda: "worked", lambda: "read") == "worked"
    with pytest.raises(KeyboardInterrupt):
        folder.stage("search", {"speedup": 3}, [], stop, lambda: "read")
    assert folder.stage("search", {"speedup": 2}, [], lambda: "worked", lambda: "read") == "read"


def test_a_stage_that_failed_is_not_one_that_was_stopped(tmp_path: Path):
    folder = RunFolder(tmp_path, Console(quiet=True))

    def refuse() -> None:
        raise InputError("no")

    with pytest.raises(InputError):
        folder.stage("search", {}, [], refuse, lambda: None)
    assert not (tmp_path / "stages.json").exists()


def test_a_full_disk_does_not_hide_what_stopped_a_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = RunFolder(tmp_path, Console(quiet=True))

    def full(*_: object) -> None:
        raise InputError("the disk is full")

    def stop() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(folders, "write_atomic", full)
    with pytest.raises(KeyboardInterrupt):
        folder.stage("search", {}, [], stop, lambda: None)
