"""A virtual environment for each peer, made once and kept: what one program needs, another cannot have.

What goes into it is a lock file's: every package with its version and the SHA-256 of its file (`locks/`, made by
`benchmarks/lock_peers.py` for one Python on one system). Elsewhere those files do not fit; there the peer's own version
is pinned, what it brings is not, and a warning says so. One process builds, under a lock; others that want the same
environment wait for it. What was not built to the end, or not in time, is removed.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from chinchilla_lm.console import Console
from chinchilla_lm.errors import InputError
from chinchilla_lm.files import cache_folder
from chinchilla_lm.peers.table import Peer

VARIABLE = "CHINCHILLA_PEERS"
LOCKS = Path(__file__).parent / "locks"
# What the lock files were made for.
LOCKED = ((3, 11), "Linux", "x86_64")
# Of making one environment, and of waiting for another process that makes it: llama.cpp compiles for ten minutes on two
# quiet cores.
BUILD_LIMIT_S = 3600.0
_LOOK_S = 0.2  # between two looks at a lock that another process holds


def home() -> Path:
    """Where environments are kept: $CHINCHILLA_PEERS, or a folder of the user's cache."""
    given = os.environ.get(VARIABLE)
    return Path(given) if given else cache_folder() / "peers"


def interpreter(name: str, peer: Peer, folder: Path, console: Console) -> str:
    """The Python that has what the peer needs. Makes its environment where it is missing or of other requirements.

    Raises InputError where that fails, with the end of what pip said, or takes longer than BUILD_LIMIT_S.
    """
    if not peer.requirements:
        return sys.executable
    steps = _steps(name, peer)
    wanted = json.dumps([steps, sorted(peer.variables.items()), peer.without, sys.version_info[:2], _contents(steps)])
    place = folder / f"{name}-{hashlib.sha256(wanted.encode()).hexdigest()[:12]}"
    python, done = place / "bin" / "python", place / "complete"
    if done.exists():
        return str(python)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder} cannot be made ({error.strerror}); pass another --peers-home") from error
    with _alone(folder / f".{place.name}.lock", name, console):
        if not done.exists():
            shutil.rmtree(place, ignore_errors=True)  # of a process that was killed
            console.say(f"{name}: making its environment in {place}: {', '.join(peer.requirements)}")
            if not any("--require-hashes" in step for step in steps):
                console.warn(
                    f"{name}: its lock file is for Python 3.11 on Linux x86-64; here its version is pinned, but not "
                    "those of what it brings, and no hash is checked"
                )
            try:
                _build(name, peer, place, steps)
                done.write_text("")
            except BaseException:
                shutil.rmtree(place, ignore_errors=True)
                raise
    return str(python)


def _steps(name: str, peer: Peer) -> list[list[str]]:
    """What pip is told, one call after the other: the tools of a build first, so that those too are the locked ones."""
    steps = []
    for what, pinned in ((f"{name}-tools", peer.tools), (name, peer.requirements)):
        lock = LOCKS / f"{what}.txt"
        if not pinned:
            continue
        step = ["install", "--no-input", "--disable-pip-version-check"]
        if peer.build:
            step += ["--no-build-isolation", *(word for package in peer.build for word in ("--no-binary", package))]
        if lock.exists() and (sys.version_info[:2], platform.system(), platform.machine()) == LOCKED:
            steps.append([*step, "--no-deps", "--require-hashes", "-r", str(lock)])
        else:
            steps.append([*step, *pinned])
    return steps


def _contents(steps: Sequence[Sequence[str]]) -> list[str]:
    """Of the lock files that are named, since another content makes another environment."""
    return [Path(step[-1]).read_text(encoding="utf-8") for step in steps if "--require-hashes" in step]


def _build(name: str, peer: Peer, place: Path, steps: Sequence[Sequence[str]]) -> None:
    """Raises InputError where a step fails or time runs out."""
    end = time.monotonic() + BUILD_LIMIT_S
    python = str(place / "bin" / "python")
    status, said = _run(name, [sys.executable, "-m", "venv", str(place)], {}, end)
    if status:
        raise InputError(
            f"{name}: no environment can be made in {place} ({said}); install Python's venv with ensurepip, "
            "or leave it out of --peers"
        )
    for step in steps:
        status, said = _run(name, [python, "-m", "pip", *step], peer.variables, end)
        if status:
            raise InputError(f"{name} cannot be installed: {said}; mend that, or leave it out of --peers")
    for package in peer.without:
        _run(name, [python, "-m", "pip", "uninstall", "-y", package], {}, end)


def _run(name: str, command: Sequence[str], variables: Mapping[str, str], end: float) -> tuple[int, str]:
    """Exit status and the last line that was said. Whatever ends this ends the command too, with all that it started:
    compilers of a build that nobody waits for would keep the cores."""
    child = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env=os.environ | dict(variables),
        start_new_session=True,
    )
    try:
        out, err = child.communicate(timeout=max(0.0, end - time.monotonic()))
    except subprocess.TimeoutExpired as error:
        raise InputError(
            f"{name}: its environment was not made within {BUILD_LIMIT_S:g} s; leave it out of --peers, or stop what "
            "else runs"
        ) from error
    finally:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
            child.communicate()
    lines = [line.strip() for line in (err or out).splitlines() if line.strip()]
    return child.returncode, lines[-1] if lines else "-"


@contextmanager
def _alone(path: Path, name: str, console: Console) -> Iterator[None]:
    """Hold a lock that the system takes back when its process ends, however it ends. Raises InputError where another
    process holds it for longer than BUILD_LIMIT_S."""
    end = time.monotonic() + BUILD_LIMIT_S
    with open(path, "w", encoding="ascii") as file:
        told = False
        while not _taken(file.fileno()):
            if not told:
                console.say(f"{name}: waiting for another process that makes its environment")
                told = True
            if time.monotonic() > end:
                raise InputError(
                    f"{name}: another process has been making its environment for {BUILD_LIMIT_S:g} s ({path}); "
                    "stop that, or leave it out of --peers"
                )
            time.sleep(_LOOK_S)
        yield


def _taken(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
