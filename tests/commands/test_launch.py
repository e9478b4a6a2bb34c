"""Verbs run by several processes: what they leave, what they say when something is wrong, and when one dies."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from chinchilla_lm.commands import launch
from tests.commands.conftest import SHORTENING, TAGGING, TUNING, leftovers
from tests.train.together import ROOT, free_port

PYTHON = [sys.executable, "-m", "chinchilla_lm"]
# A process that is killed, or stops answering, at its seventh step, unless it was started again; or a full disk.
FAILING = """
import os, signal, sys, time
from datetime import timedelta
from chinchilla_lm import cli
from chinchilla_lm.errors import InputError
from chinchilla_lm.evaluate.judge import Judge
from chinchilla_lm.runtime import processes
from chinchilla_lm.train import loop, state

state.STATE_INTERVAL_S = 0.0
processes.STEP_TIMEOUT = timedelta(seconds=10)
real, calls = loop._Run.step, 0

def step(*arguments):
    global calls
    calls += 1
    first = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0" and os.environ["RANK"] == "1"
    if first and calls == 7:
        if {how!r} == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        elif {how!r} == "hangs":
            time.sleep(600)
    return real(*arguments)

written, save = 0, state.save_file

def save_file(*arguments, **options):
    global written
    written += 1
    if {how!r} == "full" and written == 4:
        raise OSError(28, "No space left on device")
    return save(*arguments, **options)

judge = Judge.__call__

def judged(*arguments):
    if {how!r} == "unjudged" and calls:
        raise InputError("not to be judged")
    return judge(*arguments)

loop._Run.step, state.save_file, Judge.__call__ = step, save_file, judged
sys.exit(cli.main())
"""


def ran(*words: object, **environment: str) -> subprocess.CompletedProcess[str]:
    known = {"CHINCHILLA_KEEP": "0", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [str(word) for word in words], env=os.environ | known | environment, capture_output=True, text=True, timeout=280
    )


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "model.safetensors")


def close(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    """Within what Adam makes of roundings; a bias of keys, which softmax does not see, is nothing but that."""
    assert found.keys() == wanted.keys()
    for name, one in wanted.items():
        if not name.endswith("key.bias"):
            torch.testing.assert_close(found[name], one, rtol=1e-3, atol=1e-4)


def refused(done: subprocess.CompletedProcess[str], *named: str, status: int = 2) -> None:
    """One line on standard error, whatever the number of processes."""
    assert done.returncode == status, done.stderr
    lines = [line for line in done.stderr.splitlines() if "OMP_NUM_THREADS" not in line and set(line) != {"*"}]
    assert len(lines) == 1, done.stderr
    for word in named:
        assert word in lines[0]


def test_recovery_by_two_processes_is_that_of_one(tagger: Path, tags: Path, tmp_path: Path, chinchilla):
    """The first process alone searches, writes and speaks; a plan is the same for all."""
    one, two = tmp_path / "one", tmp_path / "two"
    common = [tagger, *TAGGING, "--data", tags, *SHORTENING, "--speedup", 2, "--dtype", "float32"]
    for verb in ("score", "search", "shorten"):
        assert chinchilla(verb, *common, "-o", one).status == 0
    shutil.copytree(one, two)
    assert chinchilla("recover", *common, "-o", one).status == 0
    words = ["launch", "--json", "--nproc", 2, "recover", *common, "--parallel", "dp=2,shard", "-o", two]
    done = ran(*PYTHON, *words)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"model": str(two / "model")}
    close(weights(two), weights(one))
    assert leftovers(tmp_path) == []


def started(how: str, folder: Path, command: list[object], **environment: str) -> subprocess.CompletedProcess[str]:
    """The command by two processes of which the second fails."""
    script = folder / f"{how}.py"
    script.write_text(FAILING.format(how=how))
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=1"]
    return ran(sys.executable, "-m", *torchrun, script, *command, "-o", folder / how, **environment)


def test_a_process_that_dies_is_started_again_and_the_result_is_the_same(
    model_folder, tags: Path, tmp_path: Path, chinchilla
):
    """To the last bit: all processes go on from what was saved last. And near what one process makes."""
    command = ["finetune", model_folder("bert"), *TAGGING, "--data", tags, *TUNING, "--finetune-epochs", 4]
    command += ["--dtype", "float32"]
    assert chinchilla(*command, "-o", tmp_path / "one").status == 0
    assert started("goes on", tmp_path, command).returncode == 0
    wanted = weights(tmp_path / "goes on")
    close(wanted, weights(tmp_path / "one"))
    for how in ("killed", "hangs"):
        done = started(how, tmp_path, command)
        assert done.returncode == 0, done.stderr
        assert "finetune: resumed at step" in done.stdout
        found = weights(tmp_path / how)
        assert all(torch.equal(found[name], one) for name, one in wanted.items())


@pytest.mark.parametrize("how", ["full", "unjudged"])
def test_an_error_of_the_first_process_alone_ends_all_with_one_line(model_folder, tags: Path, tmp_path: Path, how: str):
    """In the middle of training, by a full disk or a model that cannot be judged; what was saved before is whole."""
    command = ["finetune", model_folder("bert"), *TAGGING, "--data", tags, *TUNING, "--dtype", "float32"]
    began = time.monotonic()
    (tmp_path / "told").mkdir()
    done = started(how, tmp_path, command, CHINCHILLA_STATUS=str(tmp_path / "told"))
    assert time.monotonic() - began < 60
    assert done.returncode == 0, "nothing to start again for"
    assert (tmp_path / "told" / "0").read_text() == "2"
    said = [line for line in done.stderr.splitlines() if line.startswith("chinchilla")]
    assert len(said) == 1, done.stderr
    assert ("cannot write" if how == "full" else "not to be judged") in said[0]
    if how == "full":
        with safe_open(tmp_path / "full" / "finetune.state", "pt") as state:
            assert json.loads(state.metadata()["place"])["step"] == 3
    assert leftovers(tmp_path) == []


def test_a_launch_that_is_stopped(model_folder, tags: Path, tmp_path: Path):
    """By SIGTERM to it alone: status 130, one line, and no process is left."""
    words = [*PYTHON, "launch", "--nproc", 2, "finetune", model_folder("bert"), *TAGGING, "--data", tags, *TUNING]
    words += ["--finetune-epochs", 900, "-o", tmp_path / "out"]
    environment = os.environ | {"CHINCHILLA_KEEP": "0", "PYTHONPATH": str(ROOT)}
    running = subprocess.Popen(
        [str(word) for word in words], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert running.stdout is not None
    for line in running.stdout:
        if "step 5" in line:
            break
    running.terminate()
    _, said = running.communicate(timeout=60)
    assert running.returncode == 130
    first, *rest = said.splitlines()
    assert first.startswith("torchrun --standalone")
    assert rest == ["chinchilla finetune stopped; run the same command again to resume from what is done"]


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--nproc", 2, "evaluate", "x"], ["launch runs finetune, recover, compress, not evaluate"]),
        (["--nproc", 2], ["not nothing"]),
        (["--nproc", 0, "finetune"], ["--nproc 0 is not in 1"]),
        (["--nproc", 2, "--nnodes", 2, "finetune"], ["--meet None is not HOST:PORT"]),
        (["--nproc", 2, "--nnodes", 2, "--meet", "host:99999", "finetune"], ["HOST:PORT"]),
        (["--nproc", 2, "--max-restarts", -1, "finetune"], ["--max-restarts -1"]),
    ],
)
def test_what_cannot_be_launched(chinchilla, words, named):
    chinchilla("launch", *words).refused(*named)


def test_what_is_launched():
    import argparse

    parser = argparse.ArgumentParser()
    launch.add_arguments(parser)
    args = parser.parse_args(["--nproc", "4", "--nnodes", "2", "--meet", "a:1", "finetune", "m", "--nproc", "9"])
    assert launch.torchrun_arguments(args) == [
        *("--rdzv-backend", "c10d", "--rdzv-endpoint", "a:1", "--rdzv-id", "chinchilla"),
        *("--nnodes=2", "--nproc-per-node=4", "--max-restarts=0", "-m", "chinchilla_lm"),
        *("finetune", "m", "--nproc", "9"),
    ]


def test_bad_input_is_one_line_of_one_process(tagger: Path, tags: Path, tmp_path: Path):
    finetune = ["finetune", tagger, *TAGGING, "-o", tmp_path / "out"]
    two = [*PYTHON, "launch", "--quiet", "--nproc", 2, "--max-restarts", 2]
    refused(ran(*two, *finetune, "--data", tmp_path / "none"), f"{tmp_path}/none is not there")
    refused(ran(*two, *finetune, "--data", tags, "--parallel", "dp=3"), "is for 3 processes, and 2 are started")
    refused(ran(*two, *finetune, "--data", tags, "--nonsense"), "unrecognized arguments: --nonsense")
    one = [*PYTHON, "launch", "--quiet", "--nproc", 1, "--max-restarts", 2]
    refused(ran(*one, *finetune, "--data", tmp_path / "none"), f"{tmp_path}/none is not there")
    assert not (tmp_path / "out" / "model").exists()


def test_processes_that_were_started_differently(tagger: Path, tags: Path, tmp_path: Path):
    common = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "WORLD_SIZE": "2",
        "TORCHELASTIC_RUN_ID": "x",
    }
    running = []
    for rank in (0, 1):
        words = [*PYTHON, "finetune", tagger, *TAGGING, "--data", tags, "--seed", rank, "-o", tmp_path / "out"]
        environment = os.environ | common | {"RANK": str(rank), "LOCAL_RANK": str(rank), "PYTHONPATH": str(ROOT)}
        running.append(
            subprocess.Popen([str(word) for word in words], env=environment, stderr=subprocess.PIPE, text=True)
        )
    said = [one.communicate(timeout=120)[1] for one in running]
    assert [one.returncode for one in running] == [2, 2]
    assert "process 1 on " in said[0]
    assert "has another arguments than process 0" in said[0]
    assert said[1] == ""
