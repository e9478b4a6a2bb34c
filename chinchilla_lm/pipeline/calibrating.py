"""What packing knows of a model and its calibration text, and the folder beside OUT where unfinished work is kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from chinchilla_lm import __version__
from chinchilla_lm.console import Console
from chinchilla_lm.data.batches import EncodedBatch
from chinchilla_lm.data.encoded import Encoded, enough
from chinchilla_lm.data.records import records_sha256
from chinchilla_lm.data.splits import disjoint
from chinchilla_lm.errors import InputError
from chinchilla_lm.files import sha256_text
from chinchilla_lm.models.checkpoint import Checkpoint
from chinchilla_lm.pack.formats import CALIBRATION_TOKENS
from chinchilla_lm.pack.mixed import Mixed
from chinchilla_lm.pack.unfinished import Unfinished
from chinchilla_lm.pipeline.job import Job
from chinchilla_lm.pipeline.packing import Packing
from chinchilla_lm.recipe import make_recipe
from chinchilla_lm.runtime.packing import trained
from chinchilla_lm.score.ledger import Ledger

# Tokens that say something of the inputs of a matrix.
LEAST_TOKENS = 1024


@dataclass(frozen=True, slots=True)
class Material:
    """A model in memory, batches of calibration text where there is any, and what decides what is found of them.

    job, windows: what reads the text, and all of it, the first windows being those of the batches.
    """

    checkpoint: Checkpoint
    batches: Sequence[EncodedBatch]
    dtype: torch.dtype
    unfinished: Path
    identity: tuple[Any, ...]
    job: Job | None = None
    windows: Sequence[Encoded] = ()

    def solved(self, formats: Mixed) -> Unfinished:
        """Matrices that are rounded in these formats."""
        before, after = self.identity[:3], self.identity[3:]
        return Unfinished(self.unfinished, " ".join(map(str, (*before, formats, *after))))

    def ledger(self) -> Ledger:
        """What was measured. Raises InputError where the disk refuses."""
        self.unfinished.mkdir(parents=True, exist_ok=True)
        return Ledger(self._measurements, sha256_text(" ".join(map(str, self.identity))))

    def clear(self) -> None:
        """Remove all that is kept, now that the model is written."""
        self._measurements.unlink(missing_ok=True)
        self.training.unlink(missing_ok=True)
        Unfinished(self.unfinished, "").clear()

    @property
    def training(self) -> Path:
        """The state of a distillation."""
        return self.unfinished / "distil.state"

    @property
    def _measurements(self) -> Path:
        return self.unfinished / "measurements.jsonl"


def check_tokens(found: int, wanted: int, console: Console) -> None:
    """Hold calibration text to what a solver needs: warns where there is less than wanted; raises InputError where it
    is too short to say something of a matrix's inputs."""
    if found < LEAST_TOKENS:
        raise InputError(f"{found} tokens of calibration text are too few; pass data with {LEAST_TOKENS:,} or more")
    if found < wanted:
        console.warn(f"the calibration data have {found:,} tokens, not {wanted:,}")


def material(asked: Packing, kind: str | None, test_records: Sequence[Any], console: Console) -> Material:
    """Read the model, and its calibration data where there are any. kind: the task that its head is for; test_records:
    what the result will be judged on.

    Raises InputError for a model or data that cannot be read, and for too little text.
    """
    folder = asked.folder.resolve()
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    if asked.calibration is None:
        checkpoint = trained(asked.model, asked.task)
        return Material(checkpoint, (), torch.float32, unfinished, (__version__, checkpoint.sha256))
    tokens = CALIBRATION_TOKENS if asked.calibration_tokens is None else asked.calibration_tokens
    values = {"model": asked.model, "task": kind, "data": asked.calibration, "device": "cpu"}
    job = Job(make_recipe(values | {"calibration_tokens": tokens}), console)
    if "train" not in job.dataset.splits:
        there = ", ".join(job.dataset.splits)
        raise InputError(f"{asked.calibration} has no training split (but {there}); pass other --calibration data")
    checkpoint, records = job.checkpoint, job.calibration_records
    records, removed = disjoint(records, test_records)
    if removed:
        console.warn(f"{removed} calibration records stand in the test data of {asked.data} and were left out")
    windows = job.shuffled(records)
    batches = job.batches(enough(windows, tokens), 2048)
    found = sum(one.batch.tokens for one in batches)
    if found < LEAST_TOKENS and tokens < LEAST_TOKENS:
        raise InputError(f"--calibration-tokens {tokens} is too few; pass {LEAST_TOKENS} or more, or leave it away")
    check_tokens(found, tokens, console)
    identity = (__version__, checkpoint.sha256, records_sha256(records), tokens, job.window, job.dtype)
    return Material(checkpoint, batches, job.dtype, unfinished, identity, job, windows)
