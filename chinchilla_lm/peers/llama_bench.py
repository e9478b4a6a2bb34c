"""A build of llama-bench that a person has: it loads its own model and keeps its own time."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from chinchilla_lm.peers.process import PeerError
from chinchilla_lm.peers.table import BUILD_OF_LLAMA
from chinchilla_lm.peers.work import LONG, STEPS, Work

LIMIT_S = 600.0
RATES = {
    "prefill": "prefill_tokens_per_s",
    "decode": "decode_tokens_per_s",
    "long": "decode_long_tokens_per_s",
}


class LlamaBench:
    """One command with one GGUF file; runs when it is asked to, so nobody has to stop it."""

    def __init__(self, command: str, form: str, work: Work) -> None:
        self.text, self.command, self.form, self.work = command, shlex.split(command), form, work
        # A path of any length says less than the options behind it.
        self.name = " ".join([BUILD_OF_LLAMA, *self.command[1:]])
        self.path: Path | None = None
        self.threads = 0
        self.calls: list[list[str]] = []
        self.seconds: dict[str, list[float]] = {}
        self.error: str | None = None

    @property
    def alive(self) -> bool:
        """Whether it has not failed."""
        return self.error is None

    def prepare(self, path: Path, choices: Sequence[int]) -> None:
        """Find the best number of threads. Raises PeerError where it cannot run."""
        self.path = path
        self.calls = self._calls()
        taken = {threads: sum(self._run(threads).values()) for threads in choices}
        self.threads = min(taken, key=lambda threads: taken[threads])

    def turn(self) -> None:
        """One round, counted."""
        for measure, seconds in self._run(self.threads).items():
            self.seconds.setdefault(measure, []).append(seconds)

    def _calls(self) -> list[list[str]]:
        """What to ask it for. Decoding behind a context has another option in each of the two kinds of builds, and not
        all have one."""
        short = ["-p", str(self.work.tokens), "-n", str(self.work.new_tokens)]
        if "long" not in self.work.measures:
            return [short]
        options = self._said(["--help"])
        if re.search(r"^\s*-gp\b", options, re.MULTILINE):  # ik_llama.cpp's
            return [[*short, "-gp", f"{LONG},{STEPS}"]]
        if re.search(r"^\s*-d,\s*--n-depth\b", options, re.MULTILINE):  # llama.cpp's
            return [short, ["-p", "0", "-n", str(STEPS), "-d", str(LONG)]]
        return [short]

    def _run(self, threads: int) -> dict[str, float]:
        """Seconds of the prompt, and of a new token behind nothing and behind LONG tokens."""
        found: dict[str, float] = {}
        for call in self.calls:
            said = self._said([*call, "-m", str(self.path), "-t", str(threads), "-r", "1", "-o", "json"])
            try:
                for one in json.loads(said):
                    measure = _measure(one)
                    if measure is not None:
                        amount = one["n_prompt"] if measure == "prefill" else 1
                        found[measure] = amount / float(one["avg_ts"])
            except (ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError) as error:
                raise PeerError(f"its JSON: {type(error).__name__}: {error}"[:300]) from error
        if not {"prefill", "decode"} <= set(found):
            raise PeerError("its JSON has no run of a prompt alone and of new tokens alone")
        return found

    def _said(self, words: list[str]) -> str:
        """Its standard output. Raises PeerError where it fails."""
        try:
            ran = subprocess.run([*self.command, *words], capture_output=True, text=True, timeout=LIMIT_S)
        except (OSError, subprocess.TimeoutExpired, ValueError) as error:
            raise PeerError(f"{type(error).__name__}: {error}"[:300]) from error
        if ran.returncode:
            said = ran.stderr.strip().splitlines() or ["-"]
            raise PeerError(f"ended with status {ran.returncode}: {said[-1][:200]}")
        return ran.stdout

    def row(self, roof: dict[str, float], looked_up: float = 0.0) -> dict[str, Any]:
        """As the others', as far as llama-bench tells. looked_up: share of the file that decoding only looks up."""
        row: dict[str, Any] = {
            "engine": self.name,
            "command": self.text,
            "format": self.form,
            "batch": 1,
            "prompt_tokens": self.work.tokens,
            "new_tokens": self.work.new_tokens,
            "error": self.error,
        }
        if not self.seconds.get("decode"):
            return row
        amounts = {"prefill": self.work.tokens}
        rates = {RATES[one]: amounts.get(one, 1) / np.array(taken) for one, taken in self.seconds.items()}
        row |= {key: float(np.median(rate)) for key, rate in rates.items()}
        size = 0 if self.path is None else self.path.stat().st_size
        read = round(size * (1 - looked_up))
        shares = {}
        if roof.get("bandwidth_gb_s"):
            shares["bandwidth_share"] = read * row["decode_tokens_per_s"] / 1e9 / roof["bandwidth_gb_s"]
        return row | {
            "seconds": self.seconds,
            "spread": {key: [float(one) for one in np.quantile(rate, [0.25, 0.75])] for key, rate in rates.items()},
            "threads": self.threads,
            "bytes": size,
            "decode_bytes": read,
            "roofline": shares,
        }


def _measure(run: dict[str, Any]) -> str | None:
    """Which of ours one of its runs is. llama.cpp names the context `n_depth`; ik_llama.cpp counts it as the prompt."""
    prompt, new, depth = run["n_prompt"], run["n_gen"], run.get("n_depth", 0)
    if new and LONG in (prompt, depth):
        return "long"
    if depth or bool(prompt) == bool(new):
        return None
    return "prefill" if prompt else "decode"
