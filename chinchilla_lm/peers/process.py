"""A worker's process: calls go in, answers come out, and between its turns it is stopped.

An idle program is not a quiet one: many keep their threads spinning for the next request, on the cores that another is
being timed on. So whoever is not on turn gets SIGSTOP.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from types import TracebackType
from typing import Any

from chinchilla_lm.openmp import for_others
from chinchilla_lm.peers.table import WORKERS

LIMIT_S = 900.0  # of one call; conversion of a large model is the longest


class PeerError(RuntimeError):
    """A peer that could not do what it was asked; its row says why."""


class Process:
    """One worker. Starts running; `stop` and `go` take turns."""

    def __init__(self, python: str, worker: str) -> None:
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        paths = [path for path in sys.path if path] if python == sys.executable else []
        self._child = subprocess.Popen(
            [python, str(WORKERS / worker)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            bufsize=0,
            env=for_others(os.environ) | {"PYTHONPATH": os.pathsep.join(paths), "TOKENIZERS_PARALLELISM": "false"},
        )
        assert self._child.stdin is not None
        os.set_blocking(self._child.stdin.fileno(), False)
        self._held = b""

    def __enter__(self) -> Process:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()

    def stop(self) -> None:
        """Take it off the cores."""
        self._child.send_signal(signal.SIGSTOP)

    def go(self) -> None:
        """Let it run on."""
        self._child.send_signal(signal.SIGCONT)

    def close(self) -> None:
        """End it, whatever it is doing."""
        self._child.kill()
        self._child.wait()
        for stream in (self._child.stdin, self._child.stdout, self._errors):
            if stream is not None:
                stream.close()

    def call(self, name: str, **arguments: Any) -> Any:
        """The result of a call. Raises PeerError where the worker fails, ends or takes longer than LIMIT_S."""
        try:
            self._say(json.dumps({"call": name, **arguments}).encode() + b"\n")
        except BrokenPipeError:
            raise PeerError(self._last_words()) from None
        answer = json.loads(self._line())
        if "error" in answer:
            raise PeerError(answer["error"])
        return answer["result"]

    def _say(self, line: bytes) -> None:
        assert self._child.stdin is not None
        file, rest = self._child.stdin.fileno(), memoryview(line)
        while rest:
            if not select.select([], [file], [], LIMIT_S)[1]:
                raise PeerError(f"did not listen for {LIMIT_S:g} s")
            rest = rest[os.write(file, rest) :]

    def _line(self) -> bytes:
        assert self._child.stdout is not None
        while b"\n" not in self._held:
            ready, _, _ = select.select([self._child.stdout], [], [], LIMIT_S)
            if not ready:
                raise PeerError(f"no answer in {LIMIT_S:g} s")
            some = os.read(self._child.stdout.fileno(), 1 << 20)
            if not some:
                raise PeerError(self._last_words())
            self._held += some
        line, _, self._held = self._held.partition(b"\n")
        return line

    def _last_words(self) -> str:
        try:
            status: int | str = self._child.wait(10.0)
        except subprocess.TimeoutExpired:
            status = "unknown"
        self._errors.seek(0)
        said = [line.strip() for line in self._errors.read().splitlines() if line.strip()]
        return f"ended with status {status}" + (f": {said[-1][:200]}" if said else "")
