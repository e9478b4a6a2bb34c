"""What is set before torch loads, for whom, and that torch's OpenMP reads it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from chinchilla_lm.openmp import POLICY, SPINS, VARIABLE, for_others, share_cores


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment without settings, and no torch yet."""
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.delenv(POLICY, raising=False)
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    return monkeypatch


def test_threads_wait_briefly_unless_the_user_has_said_how(bare: pytest.MonkeyPatch) -> None:
    share_cores()
    assert os.environ[VARIABLE] == SPINS
    bare.setenv(VARIABLE, "17")
    share_cores()
    assert os.environ[VARIABLE] == "17"


def test_a_policy_of_the_user_stays(bare: pytest.MonkeyPatch) -> None:
    bare.setenv(POLICY, "active")
    share_cores()
    assert VARIABLE not in os.environ


def test_once_torch_is_there_nothing_is_set(bare: pytest.MonkeyPatch) -> None:
    bare.setitem(sys.modules, "torch", sys)
    share_cores()
    assert VARIABLE not in os.environ


def test_other_programs_get_the_settings_of_the_user_alone() -> None:
    assert for_others({"PATH": "x", VARIABLE: SPINS}) == {"PATH": "x"}
    assert for_others({"PATH": "x", VARIABLE: "17"}) == {"PATH": "x", VARIABLE: "17"}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="torch brings libgomp on Linux alone")
def test_the_command_line_sets_it_before_torch_reads_it() -> None:
    code = "from chinchilla_lm.cli import main; main(['--version']); import torch"
    environment = {name: value for name, value in os.environ.items() if name not in (VARIABLE, POLICY)}
    shown = subprocess.run(
        [sys.executable, "-c", code],
        env=environment | {"OMP_DISPLAY_ENV": "verbose"},
        capture_output=True,
        text=True,
        check=True,
    ).stderr
    assert f"GOMP_SPINCOUNT = '{SPINS}'" in shown
