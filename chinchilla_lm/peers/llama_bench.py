"""A build of llama-bench that a person has: it loads its own model and keeps its own time."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from chinchilla_lm.peers.process import PeerError
from chinchilla_lm.peers.table import BUILD_OF_LLAMA
from chinchilla_lm.peers.trials import best_threads
from chinchilla_lm.peers.work import LONG, STEPS, Work

LIMIT_S = 600.0


class LlamaBench:
    """One command with one GGUF file; runs when it is asked to, so nobody has to stop it."""

    def __init__(self, command: str, form: str, work: Work) -> None:
        self.text, self.command, self.form, self.work = command, shlex.split(command), form, work
        # A path of any length says less than the options behind it.
        self.name = " ".join([BUILD_OF_LLAMA, *self.command[1:]])
        self.path: Path | None = None
        self.threads: dict[str, int] = {}
        self.calls: dict[str, list[str]] = {}
        self.seconds: dict[str, list[float]] = {}
        self.cache = ""  # of keys and values, as it says itself
        self.size = self.read = 0  # bytes of the file; of these, what a step of decoding reads
        self.bits: float | None = None
        self.error: str | None = None

    @property
    def alive(self) -> bool:
        """Whether it has not failed."""
        return self.error is None

    @property
    def measures(self) -> tuple[str, ...]:
        """What it can be asked for."""
        return tuple(self.calls)

    def prepare(self, path: Path, choices: Sequence[int]) -> None:
        """Find the best number of threads for each measure. Raises PeerError where it cannot run."""
        self.path, self.size = path, path.stat().st_size
        self.calls = self._calls()
        for measure in self.calls:
            alike = self.work.alike.get(measure)
            self.threads[measure] = (
                self.threads[alike] if alike is not None else best_threads(choices, partial(self._run, measure))
            )

    def turn(self, measure: str) -> None:
        """One round; a failure ends its race."""
        try:
            self.seconds.setdefault(measure, []).append(self._run(measure, self.threads[measure]))
        except PeerError as error:
            self.error = str(error)

    def _calls(self) -> dict[str, list[str]]:
        """What to ask it for, by measure. Decoding behind a context has another option in each of the two kinds of
        builds, and not all have one."""
        found = {
            "prefill": ["-p", str(self.work.tokens), "-n", "0"],
            "decode": ["-p", "0", "-n", str(self.work.new_tokens)],
        }
        if "long" in self.work.measures:
            options = self._said(["--help"])
            if re.search(r"^\s*-gp\b", options, re.MULTILINE):  # ik_llama.cpp's
                found["long"] = ["-p", "0", "-n", "0", "-gp", f"{LONG},{STEPS}"]
            elif re.search(r"^\s*-d,\s*--n-depth\b", options, re.MULTILINE):  # llama.cpp's
                found["long"] = ["-p", "0", "-n", str(STEPS), "-d", str(LONG)]
        return found

    def _run(self, measure: str, threads: int) -> float:
        """Seconds of the prompt, or of a new token behind nothing or behind LONG tokens."""
        words = [*self.calls[measure], "-m", str(self.path), "-t", str(threads), "-r", "1", "-o", "json"]
        try:
            for one in json.loads(self._said(words)):
                if _measure(one) == measure:
                    self.cache = str(one.get("type_k", self.cache))
                    return float((one["n_prompt"] if measure == "prefill" else 1) / float(one["avg_ts"]))
        except (ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError) as error:
            raise PeerError(f"its JSON: {type(error).__name__}: {error}"[:300]) from error
        raise PeerError(f"its JSON has no run of {measure} alone")

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


def _measure(run: dict[str, Any]) -> str | None:
    """Which of ours one of its runs is. llama.cpp names the context `n_depth`; ik_llama.cpp counts it as the prompt."""
    prompt, new, depth = run["n_prompt"], run["n_gen"], run.get("n_depth", 0)
    if new and LONG in (prompt, depth):
        return "long"
    if depth or bool(prompt) == bool(new):
        return None
    return "prefill" if prompt else "decode"
