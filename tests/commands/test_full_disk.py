"""A disk without room, made by a limit on the size of files: one line, status 2, nothing half-written, nothing lost."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from chinchilla_lm.errors import InputError
from chinchilla_lm.files import building, sha256_of
from chinchilla_lm.models.checkpoint import load
from chinchilla_lm.train import state as states
from tests.commands.conftest import SHORTENING, TAGGING, leftovers

# Between the small files of a run (reports: 50 kB) and the weights of a tiny model (86 kB and more).
ROOM = 65_000
pytestmark = pytest.mark.skipif(os.name == "nt", reason="needs POSIX limits")


@contextmanager
def no_file_beyond(size: int) -> Iterator[None]:
    """Python ignores the signal, so that a write beyond the limit fails as one on a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_no_room_for_a_file_of_a_folder_names_the_folder(tmp_path: Path):
    refused = pytest.raises(InputError, match=r"cannot write .*model: File too large; free room")
    with no_file_beyond(1000), refused, building(tmp_path / "model") as folder:
        (folder / "tokenizer.json").write_text("x" * 2000)
    assert list(tmp_path.iterdir()) == []


def finetune(model_folder, tags: Path, out: Path) -> list[object]:
    words = ["finetune", model_folder("bert"), *TAGGING, "--data", tags, "--finetune-epochs", 1, "-o", out]
    return [*words, "--finetune-batch-tokens", 256]


def test_no_room_for_a_fine_tuned_model(model_folder, tags: Path, tmp_path: Path, chinchilla):
    words = finetune(model_folder, tags, tmp_path / "run")
    with no_file_beyond(ROOM):
        done = chinchilla(*words, "--quiet")
    done.refused("cannot write", "File too large", "free room or pass another -o")
    assert leftovers(tmp_path) == []
    assert not (tmp_path / "run" / "model").exists()
    assert chinchilla(*words).status == 0


def test_no_room_for_the_state_of_a_training(model_folder, tags: Path, tmp_path: Path, chinchilla, monkeypatch):
    monkeypatch.setattr(states, "STATE_INTERVAL_S", 0.0)
    with no_file_beyond(ROOM):
        done = chinchilla(*finetune(model_folder, tags, tmp_path / "run"), "--quiet")
    done.refused(f"cannot write {tmp_path / 'run' / 'finetune.state'}", "free room or pass another -o")
    assert leftovers(tmp_path) == []


def test_no_room_for_a_shortened_model_leaves_the_old_one_whole(
    tagger: Path, tags: Path, run_folder: Path, tmp_path: Path, chinchilla
):
    names = ("model/model.safetensors", "shortened/model.safetensors", "plan.json")
    before = {name: sha256_of(run_folder / name) for name in names}
    words = ["compress", tagger, *TAGGING, "--data", tags, *SHORTENING, "-o", run_folder, "--recover-epochs", 1]
    with no_file_beyond(ROOM):
        done = chinchilla(*words, "--quiet")
    done.refused("cannot write", "File too large", "free room or pass another -o")
    assert {name: sha256_of(run_folder / name) for name in names} == before
    assert len(load(run_folder).model.link_names) < 6
    assert leftovers(tmp_path) == []
    assert chinchilla(*words).status == 0


@pytest.mark.parametrize(
    ("lost", "verb"), [("costs.json", "score"), ("plan.json", "search"), ("shortened", "shorten"), ("model", "recover")]
)
def test_no_room_at_all_for_a_stage(run_folder: Path, tmp_path: Path, chinchilla, lost: str, verb: str):
    (run_folder / lost).rename(tmp_path / "lost")
    with no_file_beyond(1000):
        done = chinchilla(verb, "-o", run_folder, "--quiet")
    done.refused("File too large", "free room or pass another -o")
    assert not (run_folder / lost).exists()
    assert leftovers(tmp_path) == []
    assert chinchilla(verb, "-o", run_folder, "--quiet").status == 0


def test_no_room_for_the_report_keeps_the_old_one(
    tagger: Path, tags: Path, run_folder: Path, tmp_path: Path, chinchilla
):
    before = sha256_of(run_folder / "report.json")
    words = ["compress", tagger, *TAGGING, "--data", tags, *SHORTENING, "-o", run_folder, "--quiet"]
    with no_file_beyond(4000):
        done = chinchilla(*words)
    done.refused("cannot write", "File too large", "free room or pass another -o")
    assert sha256_of(run_folder / "report.json") == before
    assert leftovers(tmp_path) == []


def test_no_room_for_predictions(tagger: Path, tags: Path, tmp_path: Path, chinchilla):
    file = tmp_path / "predictions.jsonl"
    words = ["evaluate", tagger, *TAGGING, "--data", tags, "--predictions", file, "--quiet"]
    with no_file_beyond(1000):
        done = chinchilla(*words)
    done.refused("File too large")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_may_not_be_written(tagger: Path, tags: Path, chinchilla):
    """Where even an administrator may not write."""
    done = chinchilla("compress", tagger, *TAGGING, "--data", tags, *SHORTENING, "-o", "/proc/chinchilla/run")
    done.refused("/proc/chinchilla", "; ")
