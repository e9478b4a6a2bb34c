"""What the stages of one job share: run folder, job, original, and what measures and trains short models."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from chinchilla_lm import __version__
from chinchilla_lm.console import Console
from chinchilla_lm.errors import InputError
from chinchilla_lm.files import json_text, sha256_text, user_path
from chinchilla_lm.models.transformer import Transformer
from chinchilla_lm.pipeline.folder import RunFolder
from chinchilla_lm.pipeline.job import Job, Served
from chinchilla_lm.pipeline.recovery import Recovery
from chinchilla_lm.recipe import Recipe
from chinchilla_lm.runtime.engine.packed import is_packed
from chinchilla_lm.score.contract import Target
from chinchilla_lm.score.ledger import Ledger
from chinchilla_lm.score.measure import MAX_POSITIONS, Measure

# What decides the cost of a removal.
MEASURED_BY = ("task", "calibration_tokens", "score_loss", "seed", "context", "max_tokens")


class Workbench:
    """One job in one run folder."""

    def __init__(self, recipe: Recipe, console: Console) -> None:
        if is_packed(user_path(recipe.model)):
            raise InputError(
                f"{recipe.model} is packed, its weights rounded for the engine; pass the model that it came from"
            )
        self.recipe, self.console = recipe, console
        self.folder = RunFolder.of(recipe, console)
        self.job = Job(recipe, console)

    @property
    def target(self) -> Target:
        """The speed that is asked for, if any."""
        return Target(self.recipe.speedup, self.recipe.latency_ms)

    @cached_property
    def original(self) -> Transformer:
        """The original as torch would serve it: what quality is measured on."""
        if self.job.checkpoint.model.dropped:
            raise InputError(f"{self.recipe.model} is shortened already; start from the original")
        return self.job.ready(self.job.checkpoint.model)

    @cached_property
    def served(self) -> Served:
        """The original as it would be served."""
        return self.job.served()

    @cached_property
    def measure(self) -> Measure:
        """The quality cost of any set of dropped links, on calibration data."""
        batches, _ = self.job.calibration
        decides = {"inputs": self.inputs(*MEASURED_BY), "positions": MAX_POSITIONS, "version": __version__}
        identity = sha256_text(json_text(decides))
        ledger = Ledger(self.folder.file("measurements") / f"{identity[:16]}.jsonl", identity)
        return Measure(self.original, batches, self.recipe.score_loss, ledger=ledger)

    @cached_property
    def recovery(self) -> Recovery:
        """What trains short models on the original's outputs."""
        return Recovery(self.job, self.original)

    def inputs(self, *fields: str) -> dict[str, Any]:
        job = self.job
        given = {
            "model": job.checkpoint.sha256,
            "data": job.data_sha256,
            "dtype": str(job.dtype),
            "device": str(job.device),
        }
        return {**given, "recipe": self.recipe.model_dump(include=set(fields))}
