"""Which program files were read whole and found to have their SHA-256, so that the next load need not read them whole.

One small file a program in the user's cache says: the file of this device, inode, size and times had this hash. A file
that is written to gets another time of change, which nobody can set, and is read whole again; so is one that was
written within the last two seconds, as a second change in the same tick of the clock would not show. Where the cache
cannot be read or written, programs are read whole each time.

The hash guards against damage: it stands in the very file, so it proves nothing of who wrote that. What a note in the
cache may do is therefore little: nothing is parsed, it has to be the expected bytes, and the user's own file. What
keeps the engine within its memory are the sizes and places of the header, which it checks at every load.

Files that a certificate names are noted likewise, with the hash of all that is in them.
"""

from __future__ import annotations

import hashlib
import os
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from chinchilla_lm.errors import InputError
from chinchilla_lm.files import cache_folder, json_text, sha256_of, write_atomic

SETTLED = 2_000_000_000  # nanoseconds; FAT keeps times to 2 s, others far finer
WORTH_A_NOTE = 1 << 20  # bytes; smaller files are hashed in a millisecond


@dataclass(frozen=True, slots=True)
class Seal:
    """What is known of a file, and the SHA-256 that it should have. of: what is hashed, a program's `data` or `all`."""

    path: Path
    stat: os.stat_result
    sha256: str
    of: str = "data"

    def known(self) -> bool:
        """Whether this very file was found to have that hash before."""
        wanted = self._text().encode()
        try:
            with open(self._note(), "rb") as file:
                return owned(os.fstat(file.fileno())) and file.read(len(wanted) + 1) == wanted
        except (OSError, InputError):
            return False

    def remember(self, now: os.stat_result, begun: int) -> None:
        """Note that it has, unless it changed meanwhile or just before. now: of the same file; begun: in ns."""
        if identity(now) != identity(self.stat) or not settled(now, begun):
            return
        with suppress(OSError, InputError):
            write_atomic(self._note(), self._text())

    def _note(self) -> Path:
        part = b"" if self.of == "data" else b"\0" + self.of.encode()
        name = hashlib.sha256(os.fsencode(os.path.realpath(self.path)) + part).hexdigest()
        return cache_folder() / "verified" / f"{name}.json"

    def _text(self) -> str:
        facts = {"path": os.path.realpath(self.path), "sha256": self.sha256, **identity(self.stat)}
        return json_text(facts, ascii_only=True) + "\n"


def has_sha256(path: Path, sha256: str) -> bool:
    """Whether a file has that hash; a large one is read only where it was not found to have it before.

    Raises InputError or OSError where it cannot be read.
    """
    begun, stat = time.time_ns(), os.stat(path)
    seal = Seal(path, stat, sha256, "all")
    large = stat.st_size >= WORTH_A_NOTE
    if large and seal.known():
        return True
    same = sha256_of(path) == sha256
    if large and same:
        seal.remember(os.stat(path), begun)
    return same


def owned(stat: os.stat_result) -> bool:
    """Whether a file is the user's own."""
    return not hasattr(os, "geteuid") or stat.st_uid == os.geteuid()


def settled(stat: os.stat_result, begun: int) -> bool:
    """Whether a file is older than its clock's ticks, so that a change since `begun`, in ns, shows in its times."""
    return begun - max(stat.st_mtime_ns, stat.st_ctime_ns) >= SETTLED


def identity(stat: os.stat_result) -> dict[str, int]:
    """What tells a file, and its present content, from all others on this machine."""
    return {
        "device": stat.st_dev,
        "inode": stat.st_ino,
        "bytes": stat.st_size,
        "written_ns": stat.st_mtime_ns,
        "changed_ns": stat.st_ctime_ns,
    }
