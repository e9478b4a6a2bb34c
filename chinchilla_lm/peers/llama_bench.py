"""A build of llama-bench that a person has: it loads its own model and keeps its own time."""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from chinchilla_lm.peers.process import PeerError
from chinchilla_lm.peers.table import BUILD_OF_LLAMA
from chinchilla_lm.peers.work import Work

LIMIT_S = 600.0


class LlamaBench:
    """One command with one GGUF file; runs when it is asked to, so nobody has to stop it."""

    def __init__(self, command: str, form: str, work: Work) -> None:
        self.command, self.form, self.work = shlex.split(command), form, work
        self.path: Path | None = None
        self.threads = 0
        self.seconds: dict[str, list[float]] = {"prefill": [], "decode": []}
        self.error: str | None = None

    @property
    def alive(self) -> bool:
        """Whether it has not failed."""
        return self.error is None

    def prepare(self, path: Path, choices: Sequence[int]) -> None:
        """Find the best number of threads. Raises PeerError where it cannot run."""
        self.path = path
        taken = {threads: sum(self._run(threads).values()) for threads in choices}
        self.threads = min(taken, key=lambda threads: taken[threads])

    def turn(self) -> None:
        """One round, counted."""
        for measure, seconds in self._run(self.threads).items():
            self.seconds[measure].append(seconds)

    def _run(self, threads: int) -> dict[str, float]:
        """Seconds of the prompt and of a new token."""
        options = ["-m", self.path, "-p", self.work.tokens, "-n", self.work.new_tokens, "-t", threads]
        words = [*self.command, *map(str, options), "-r", "1", "-o", "json"]
        try:
            ran = subprocess.run(words, capture_output=True, text=True, timeout=LIMIT_S)
            if ran.returncode:
                said = ran.stderr.strip().splitlines() or ["-"]
                raise PeerError(f"ended with status {ran.returncode}: {said[-1][:200]}")
            found = {
                "prefill" if one["n_prompt"] else "decode": (one["n_prompt"] or 1) / float(one["avg_ts"])
                for one in json.loads(ran.stdout)
                if bool(one["n_prompt"]) != bool(one["n_gen"])
            }
        except (OSError, subprocess.TimeoutExpired, ValueError, KeyError, TypeError, ZeroDivisionError) as error:
            raise PeerError(f"{type(error).__name__}: {error}"[:300]) from error
        if set(found) != {"prefill", "decode"}:
            raise PeerError("its JSON has no run of a prompt alone and of new tokens alone")
        return found

    def row(self, roof: dict[str, float]) -> dict[str, Any]:
        """As the others', as far as llama-bench tells."""
        row: dict[str, Any] = {
            "engine": f"{BUILD_OF_LLAMA} ({' '.join(self.command)})",
            "format": self.form,
            "batch": 1,
            "prompt_tokens": self.work.tokens,
            "new_tokens": self.work.new_tokens,
            "error": self.error,
        }
        if not self.seconds["decode"]:
            return row
        amounts = {"prefill": self.work.tokens, "decode": 1}
        rates = {f"{one}_tokens_per_s": amounts[one] / np.array(taken) for one, taken in self.seconds.items()}
        row |= {key: float(np.median(rate)) for key, rate in rates.items()}
        size = 0 if self.path is None else self.path.stat().st_size
        shares = {}
        if roof.get("bandwidth_gb_s"):
            shares["bandwidth_share"] = size * row["decode_tokens_per_s"] / 1e9 / roof["bandwidth_gb_s"]
        return row | {
            "seconds": self.seconds,
            "spread": {key: [float(one) for one in np.quantile(rate, [0.25, 0.75])] for key, rate in rates.items()},
            "threads": self.threads,
            "bytes": size,
            "roofline": shares,
        }
