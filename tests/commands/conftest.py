"""The verbs of the main job on tiny models and data: a tagger that was fine-tuned, a shortened one, and their texts."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chinchilla_lm import cli
from chinchilla_lm.pipeline import stages, timing
from chinchilla_lm.pipeline.job import Job
from chinchilla_lm.runtime.measuring.clock import Interleaved, Timing

WORDS = "the quick brown fox met where lazy dog slept good bad answer very time prices rose"
FILLER = WORDS.split()
TEXT_FILLER = [*FILLER, "Once", "upon", "Munich", "Siemens", "naïve", "3.5", "%"]
TAGGING = ("--task", "token-classification")
TUNING = (
    *("--finetune-epochs", 30, "--finetune-batch-tokens", 256),
    *("--finetune-learning-rate", 3e-3, "--finetune-head-learning-rate", 1e-2),
)
SHORTENING = (
    *("--speedup", 1.2, "--margin", 50, "--method", "refine", "--max-measures", 20),
    *("--batch", 4, "--tokens", 12),
    *("--recover-epochs", 2, "--recover-batch-tokens", 256, "--recover-learning-rate", 3e-3),
)
LEFTOVERS = ("*.writing", ".*.tmp", ".*.building-*", ".*.replaced-*")


CALIBRATION = [f"{number} times the quick brown fox met the lazy dog in Munich . " * 4 for number in range(60)]


@pytest.fixture
def text(tmp_path: Path) -> str:
    """A file of calibration text."""
    path = tmp_path / "text.jsonl"
    path.write_text("".join(json.dumps({"text": one}) + "\n" for one in CALIBRATION))
    return str(path)


@dataclass(frozen=True)
class Done:
    """What one command left behind."""

    status: int
    out: str
    err: str

    @property
    def result(self) -> Any:
        """The object that --json printed."""
        return json.loads(self.out)

    def refused(self, *named: str, status: int = 2) -> None:
        """Checks that it ended with one line on standard error that names what is wrong."""
        lines = [line for line in self.err.splitlines() if not line.startswith("warning: ")]
        assert (self.status, len(lines)) == (status, 1), self.err
        assert "Traceback" not in self.err
        for word in named:
            assert word in lines[0]


class SteadyRace:
    """Runs each model once, and says what it would take on a machine where nothing else runs: 20 µs a link and 40 for
    the rest. What a promise comes to must not hang on what else the machine does."""

    def __init__(self, job: Job, served: Mapping[str, Any]) -> None:
        self.served, self.rounds = served, 0
        self.real = Interleaved({name: timing.timed_work(job, one) for name, one in served.items()}, warmup=0)

    def run(self, *, rounds: int | None = None, seconds: float | None = None) -> dict[str, Timing]:
        self.real.run(rounds=1)
        self.rounds += rounds or 10
        return {name: Timing(np.full(self.rounds, 2e-5 * (2 + links(one)))) for name, one in self.served.items()}


def links(served: Any) -> int:
    """How many are left."""
    if hasattr(served, "link_names"):
        return len(served.link_names)
    return sum(operation["kind"] != "norm" for operation in served.model.program.header["operations"])


@pytest.fixture(scope="session")
def quick() -> Iterator[None]:
    """Clocks that stop soon, for tiny models need no seconds, and races that a busy machine does not decide."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stages, "LINK_SECONDS", 0.05)
        patch.setattr(timing, "race", SteadyRace)
        yield


@pytest.fixture
def chinchilla(quick: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Done]:
    """Runs one command in this process."""
    monkeypatch.delenv("CHINCHILLA_TRACEBACK", raising=False)

    def call(*words: object) -> Done:
        capsys.readouterr()
        status = cli.main([str(word) for word in words])
        return Done(status, *capsys.readouterr())

    return call


def leftovers(folder: Path) -> list[Path]:
    """Files and folders that a finished or interrupted command must not leave behind."""
    return [path for pattern in LEFTOVERS for path in folder.rglob(pattern)]


def sentence(source: random.Random) -> list[tuple[str, str]]:
    """Words and tags. A person and a place are told by the word; what `Siemens` is, by how the sentence begins."""
    asks = source.random() < 0.5
    words = [("is" if asks else "Once", "O")]
    for _ in range(source.randint(3, 7)):
        choice = source.random()
        if choice < 0.2:
            words += [("Angela", "B-PER"), ("Merkel", "I-PER")]
        elif choice < 0.3:
            words.append(("Munich", "B-LOC"))
        elif choice < 0.6:
            words.append(("Siemens", "B-LOC" if asks else "B-ORG"))
        else:
            words.append((source.choice(FILLER), "O"))
    return words


def write_conll(folder: Path, sizes: dict[str, int], seed: int = 0) -> Path:
    """train.txt, dev.txt and test.txt; every sentence is a document of its own."""
    source = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in sizes.items():
        blocks = ["\n".join(f"{word} {tag}" for word, tag in sentence(source)) for _ in range(count)]
        (folder / f"{split}.txt").write_text("\n\n".join(blocks) + "\n", encoding="utf-8")
    return folder


def write_jsonl(folder: Path, sizes: dict[str, int], row: Callable[[random.Random], dict[str, Any]]) -> Path:
    """train.jsonl, dev.jsonl and test.jsonl."""
    source = random.Random(0)
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in sizes.items():
        lines = [json.dumps(row(source)) for _ in range(count)]
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def running_text(source: random.Random) -> dict[str, Any]:
    """A document in which each word is likely to follow the one before."""
    at = source.randrange(len(TEXT_FILLER))
    text = []
    for _ in range(40):
        text.append(TEXT_FILLER[at])
        at = (at + 1) % len(TEXT_FILLER) if source.random() < 0.8 else source.randrange(len(TEXT_FILLER))
    return {"text": " ".join(text)}


def some_words(source: random.Random) -> str:
    """Words that say neither good nor bad."""
    return " ".join(source.choice(FILLER[:10]) for _ in range(source.randint(1, 5)))


@pytest.fixture(scope="session")
def tags(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of CoNLL files. Do not write into it."""
    return write_conll(tmp_path_factory.mktemp("tags"), {"train": 120, "dev": 30, "test": 40})


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of JSON lines with running text. Do not write into it."""
    return write_jsonl(tmp_path_factory.mktemp("texts"), {"train": 40, "dev": 10, "test": 16}, running_text)


@pytest.fixture(scope="session")
def tagger(model_folder: Callable[..., Path], tags: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a tiny BERT that was fine-tuned to tag. Do not write into it."""
    out = tmp_path_factory.mktemp("tagger") / "run"
    words = ["finetune", model_folder("bert"), *TAGGING, "--data", tags, *TUNING, "-o", out, "--quiet", "--json"]
    assert cli.main([str(word) for word in words]) == 0
    return out


@pytest.fixture(scope="session")
def short_run(quick: None, tagger: Path, tags: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of that tagger, compressed. Do not write into it."""
    out = tmp_path_factory.mktemp("short") / "run"
    words = ["compress", tagger, *TAGGING, "--data", tags, *SHORTENING, "-o", out, "--quiet", "--json"]
    assert cli.main([str(word) for word in words]) == 0
    return out


@pytest.fixture
def run_folder(short_run: Path, tmp_path: Path) -> Path:
    """A copy of that run folder, to change."""
    return shutil.copytree(short_run, tmp_path / "run")
