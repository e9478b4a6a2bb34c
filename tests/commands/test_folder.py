"""The run folder's account of its stages."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from chinchilla_lm.commands import folder as folders
from chinchilla_lm.commands.folder import RunFolder
from chinchilla_lm.console import Console


def test_the_seconds_of_a_stage_count_the_attempts_that_were_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    now = 0.0

    def work(seconds: float, stopped: bool = False) -> None:
        nonlocal now
        now += seconds
        if stopped:
            raise KeyboardInterrupt

    monkeypatch.setattr(folders.time, "monotonic", lambda: now)
    folder = RunFolder(tmp_path, Console(quiet=True))
    for seconds in (5.0, 6.0):
        with pytest.raises(KeyboardInterrupt):
            folder.stage("train", {"epochs": 2}, [], partial(work, seconds, stopped=True), lambda: None)
    assert folder.timings() == {}
    folder.stage("train", {"epochs": 2}, [], lambda: work(7.0), lambda: None)
    assert folder.timings() == {"train": 18.0}
    with pytest.raises(KeyboardInterrupt):
        folder.stage("train", {"epochs": 3}, [], lambda: work(1.0, stopped=True), lambda: None)
    folder.stage("train", {"epochs": 4}, [], lambda: work(2.0), lambda: None)
    assert folder.timings() == {"train": 2.0}, "what another training took is not part of this one"


def test_a_stage_that_is_stopped_leaves_what_was_finished_before(tmp_path: Path):
    folder = RunFolder(tmp_path, Console(quiet=True))

    def stop() -> str:
        raise KeyboardInterrupt

    assert folder.stage("search", {"speedup": 2}, [], lambda: "worked", lambda: "read") == "worked"
    with pytest.raises(KeyboardInterrupt):
        folder.stage("search", {"speedup": 3}, [], stop, lambda: "read")
    assert folder.stage("search", {"speedup": 2}, [], lambda: "worked", lambda: "read") == "read"
