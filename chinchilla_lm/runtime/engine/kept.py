"""Packed copies of GGUF files in the user's cache: a file is dequantised and packed once, and mapped from then on.

A copy is a packed folder as `chinchilla pack` writes it, read by the same reader with the same checks, and nothing in
it is trusted further. Beside the program it holds the tokenizer as it was built from the file, the config as it was
read from it, and a note that says what it was made of and what hashes its small files have. The folder's name is the
hash of what it was made of:

    the files   path, device, inode, size and times, as in `verified`
    the format  of the packed weights
    the code    that made it, since a version's number stays the same while the code changes; two libraries' versions

So a file that changes has another copy, and the old one is removed when its room is needed: the copies take 4 GiB or
half of the disk that is free without them, and the one that was not used for the longest time goes first.

A thread writes the copy from the program in memory while the first text is being written; the process
waits for it at its end. Whatever goes wrong with the cache costs time and nothing else: a copy that is damaged, not the
user's own, or half removed is made anew, and where none can be written there is none. CHINCHILLA_KEEP=0 turns it off.
"""

from __future__ import annotations

import hashlib
import os
import stat
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from threading import Event
from typing import Any

import chinchilla_lm
from chinchilla_lm.errors import InputError
from chinchilla_lm.files import building, cache_folder, json_text, read_text, sha256_of, sha256_text, user_path
from chinchilla_lm.models.gguf_names import shards_of
from chinchilla_lm.models.plain_tokenizer import PlainTokenizer
from chinchilla_lm.models.source import locate
from chinchilla_lm.models.tokenizer import read_ends, write_ends
from chinchilla_lm.runtime.card import Card
from chinchilla_lm.runtime.engine.keeping import Pieces, Writer, discard, make_room
from chinchilla_lm.runtime.engine.packed import PROGRAM, read_packed
from chinchilla_lm.runtime.engine.program import VERSION, Program, write_program
from chinchilla_lm.runtime.engine.verified import identity, owned, settled

VARIABLE = "CHINCHILLA_KEEP"
NOTE = "kept.json"
TASK = "language-modeling"  # that of every GGUF file by itself
WORTH = 1.0  # seconds that it took to make, import of torch included; what is made faster is not worth its room
ROOMS = ("models", "native", "pack", "runtime")  # whose code makes a program and a tokenizer
LIBRARIES = ("gguf", "tokenizers")


@dataclass(frozen=True, slots=True)
class Place:
    """Where the copy of a GGUF file in a format is, or would be.

    gguf: the first of its files. files: what they were before they are read. steady: a change since would show.
    """

    gguf: Path
    form: str
    files: tuple[dict[str, Any], ...]
    steady: bool
    folder: Path
    made_of: str

    @classmethod
    def of(cls, path: str | Path, form: str, task: str | None) -> Place | None:
        """None for what has no copy: what is no GGUF file, another task, no cache, or keeping that is turned off.

        Raises InputError for a model that is not there, and for a value of CHINCHILLA_KEEP that means nothing.
        """
        if not turned_on() or task not in (None, TASK) or not user_path(path).exists():
            return None
        gguf = locate(path).gguf
        if gguf is None:
            return None
        with suppress(OSError, InputError):
            begun = time.time_ns()
            stats = [(os.path.realpath(one), os.stat(one)) for one in shards_of(gguf)]
            files = tuple({"path": path, **identity(one)} for path, one in stats)
            made_of = json_text(
                {
                    "files": files,
                    "format": form,
                    "version": VERSION,
                    "code": _code(),
                    "libraries": {name: version(name) for name in LIBRARIES},
                },
                ascii_only=True,
            )
            steady = all(settled(one, begun) for _, one in stats)
            return cls(gguf, form, files, steady, copies_folder() / sha256_text(made_of), made_of)
        return None

    def read(self) -> tuple[Program, Card] | None:
        """The copy, as if it had just been made; None where there is none. One that cannot be used is removed."""
        if not os.path.lexists(self.folder):
            return None
        with suppress(OSError, InputError):
            found = self._read()
            with suppress(OSError):
                os.utime(self.folder)  # used just now
            return found
        discard(self.folder)
        return None

    def _read(self) -> tuple[Program, Card]:
        """Raises InputError for a copy that is not as it was written."""
        if not _own(self.folder):
            raise InputError(f"{self.folder} is not the user's own; remove it")
        if read_text(self.folder / NOTE, "note of a kept copy") != self._note(self.folder):
            raise InputError(f"{self.folder} is not as it was written; remove it")
        with ThreadPoolExecutor(1) as meanwhile:  # weights that were not hashed before take as long as the tokenizer
            packed = meanwhile.submit(read_packed, self.folder)
            tokenizer = PlainTokenizer.load(self.folder)
            program, card = packed.result()
        # The copy may be removed at any time, so nothing is left to be read later.
        tokenizer = replace(tokenizer, ends=read_ends(self.folder))
        return program, replace(card, source=self.gguf, given=tokenizer)

    def keep(self, program: Program, card: Card) -> None:
        """Write the copy soon, unless the file changed while it was read, or just before."""
        with suppress(OSError):
            now = tuple({"path": one["path"], **identity(os.stat(one["path"]))} for one in self.files)
            if self.steady and now == self.files:
                Writer(lambda stop: self.write(program, card, stop)).start()

    def write(self, program: Program, card: Card, stop: Event) -> None:
        """Write the copy, wholly or not at all. Raises InputError and OSError where that cannot be done."""
        if os.path.lexists(self.folder):  # by another process
            return
        tokenizer = card.tokenizer
        if _has_gaps(tokenizer):  # the library would print a warning as it writes
            return
        self.folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)  # the file may be for the user alone
        with building(self.folder) as temporary:
            config = json_text(card.hf_config, indent=2) + "\n"
            (temporary / "config.json").write_text(config, encoding="utf-8")
            tokenizer.save(temporary)
            write_ends(sorted(tokenizer.ends or ()), temporary, tokenizer)
            make_room(self.folder.parent, program.size)
            header = program.header | {"card": card.to_dict()}
            write_program(Pieces(header, program.data, stop), temporary / PROGRAM)
            (temporary / NOTE).write_text(self._note(temporary), encoding="utf-8", newline="")

    def _note(self, folder: Path) -> str:
        """What the note of a folder says. The program has a hash of its own."""
        names = sorted(one.name for one in folder.iterdir() if one.name not in (NOTE, PROGRAM))
        hashes = {name: sha256_of(folder / name) for name in names}
        return json_text({"made_of": self.made_of, "sha256": hashes}, indent=2, ascii_only=True) + "\n"


def turned_on() -> bool:
    """Whether copies are kept. Raises InputError for a value of CHINCHILLA_KEEP that means nothing."""
    asked = os.environ.get(VARIABLE, "")
    if asked not in ("", "0", "1"):
        raise InputError(f"{VARIABLE}={asked:.60} is not 0 or 1; set one of them, or leave it away")
    return asked != "0"


def copies_folder() -> Path:
    """Where all copies are. Raises InputError where the user has no home."""
    return cache_folder() / "programs"


def _code() -> str:
    """Hash of the code that makes a copy, some 5 ms."""
    root, digest = Path(chinchilla_lm.__file__).parent, hashlib.sha256()
    for room in ROOMS:
        for path in sorted((root / room).rglob("*")):
            if path.suffix in (".py", ".so", ".pyd"):
                digest.update(f"{path.relative_to(root).as_posix()} {sha256_of(path)}\n".encode())
    return digest.hexdigest()


def _own(folder: Path) -> bool:
    """Whether a folder is one, and it and the files in it are the user's own; no links."""
    if not stat.S_ISDIR(os.lstat(folder).st_mode):
        return False
    files = [os.lstat(one) for one in folder.iterdir()]
    return all(stat.S_ISREG(one.st_mode) for one in files) and all(map(owned, [os.lstat(folder), *files]))


def _has_gaps(tokenizer: PlainTokenizer) -> bool:
    """Whether an id below the highest has no token, as where a file lists one token twice."""
    backend = tokenizer.backend_tokenizer
    return any(backend.id_to_token(index) is None for index in range(backend.get_vocab_size(with_added_tokens=False)))
