"""How copies of programs are written behind the user's back, and kept within bounds; `kept` says what they are."""

from __future__ import annotations

import atexit
import os
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from chinchilla_lm.errors import InputError
from chinchilla_lm.pack.panels import Bytes
from chinchilla_lm.runtime.engine.program import Header

MOST = 4 << 30  # bytes of all copies together
PAUSE = 1.0  # seconds until writing begins, so that the first token comes first
LOOK = 0.02  # seconds between two looks at what another thread has done
ABANDONED = 3600.0  # seconds after which nobody is still writing a copy
PIECE = 1 << 24  # bytes between two looks at whether to stop
NAME = "chinchilla keeps a copy"


class Stopped(Exception):
    """The process ends and does not want to wait."""


class Writer:
    """A thread that writes in its own time.

    The process waits for it at its end; Ctrl-C then has it stop and clean up. It looks again and again instead of
    waiting for an event: Ctrl-C may strike when the lock within an event was just taken, which then nobody gives back,
    and the process hangs (Python 3.11, on a busy machine).
    """

    def __init__(self, write: Callable[[threading.Event], None]) -> None:
        """write: raises Stopped soon after the event that it is given is set, and leaves nothing half written."""
        self._hurry, self._done, self._stop = False, False, threading.Event()
        self._process = os.getpid()
        self._thread = threading.Thread(target=self._run, args=(write,), name=NAME, daemon=True)

    def start(self) -> None:
        """Begin soon; where the system has no thread left, never."""
        with suppress(RuntimeError):
            self._thread.start()
            atexit.register(self.finish)

    def finish(self) -> None:
        """Wait until it is done; a process that was forked off has no such thread."""
        if os.getpid() != self._process:
            return
        try:
            self._hurry = True
            self._await()
        except KeyboardInterrupt:
            self._stop.set()
            self._await()

    def _await(self) -> None:
        while not self._done:
            time.sleep(LOOK)

    def _run(self, write: Callable[[threading.Event], None]) -> None:
        begin = time.monotonic() + PAUSE
        while not self._hurry and time.monotonic() < begin:
            time.sleep(LOOK)
        try:
            with suppress(OSError, InputError, MemoryError, Stopped):  # there is then no copy, and nothing else is lost
                write(self._stop)
        finally:
            self._done = True
            atexit.unregister(self.finish)


@dataclass(frozen=True, slots=True)
class Pieces:
    """A program in memory that is written a piece at a time, until told to stop."""

    header: Header
    data: Bytes
    stop: threading.Event

    @property
    def size(self) -> int:
        """Bytes of data."""
        return int(self.data.size)

    def blocks(self) -> Iterator[Bytes]:
        """The data in order. Raises Stopped."""
        for start in range(0, self.size, PIECE):
            if self.stop.is_set():
                raise Stopped
            yield self.data[start : start + PIECE]


def make_room(folder: Path, wanted: int) -> None:
    """Remove the copies in a folder that were not used for the longest time, until another of so many bytes may come.

    Raises InputError, and removes nothing, where it may not even then.
    """
    now, used, old = time.time(), 0, []
    for entry in folder.iterdir():
        size, touched = _size(entry), os.lstat(entry).st_mtime
        used += size
        if not entry.name.startswith(".") or now - touched > ABANDONED:  # else it is being written, or removed
            old.append((touched, entry, size))
    most = min(MOST, (shutil.disk_usage(folder).free + used) // 2)
    if used - sum(size for _, _, size in old) + wanted > most:
        raise InputError(f"{wanted} bytes are more than the {most} that {folder} may hold; free room")
    for _, entry, size in sorted(old):
        if used + wanted <= most:
            return
        discard(entry)
        used -= size


def _size(path: Path) -> int:
    """Bytes of a file, or of all files in a folder; a link is not followed."""
    if path.is_symlink() or not path.is_dir():
        return os.lstat(path).st_size
    return sum(os.lstat(one).st_size for one in path.iterdir())


def discard(path: Path) -> None:
    """Remove a copy at once, so that nobody reads half of it, as far as the system lets us."""
    hidden = path.with_name(f".{path.name.lstrip('.').partition('.')[0]}.removed-{secrets.token_hex(4)}")
    with suppress(OSError):
        os.rename(path, hidden)
        if hidden.is_symlink() or not hidden.is_dir():
            hidden.unlink()
        else:
            shutil.rmtree(hidden)
