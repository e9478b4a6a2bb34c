"""A program: the shortened model as a flat list of operations with packed weights, in memory or in one file.

    "chprog1\\n"   8 bytes
    length        8 bytes, little-endian: of the header
    SHA-256       32 bytes: of the header
    header        JSON: sizes, operations in order, and for every matrix, table and vector the place of its bytes
    zeros         up to a multiple of 4,096 bytes
    data          packed as native/kernels.h has it, each part on 64 bytes; its size and SHA-256 are in the header

The data is mapped, not read: pages come in as they are used, and processes that run the same file share them. Nothing
is trusted before it is checked: sizes and hashes here, shapes and places in the engine when it takes the header.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from chinchilla_lm.errors import InputError
from chinchilla_lm.files import json_text
from chinchilla_lm.pack.panels import ALIGNMENT, LANES, Bytes, Floats, round_up
from chinchilla_lm.runtime.cpu import usable_cores
from chinchilla_lm.runtime.engine.verified import Seal

MAGIC = b"chprog1\n"
VERSION = 2
PAGE = 4096
START = len(MAGIC) + 8 + 32
MOST_HEADER = 64 << 20  # bytes; a model of 200 blocks has some 200 kB

# Formats of keys and values: 2 bytes a value, or 1 with a scale a position and head.
CACHES = ("bf16", "int8")

Header = dict[str, Any]
Fill = Callable[[Bytes], None]


def cached_in(header: Header, name: str) -> Header:
    """A program's header with another format of keys and values. Raises InputError as `Program.with_cache` does."""
    if name not in CACHES:
        raise InputError(f"cache {name!r} is not one of auto, {', '.join(CACHES)}; pass --cache auto")
    if not header["causal"]:
        raise InputError(f"cache {name} is of the keys and values of a model that writes; leave --cache away")
    return header | {"cache": name}


@dataclass(frozen=True, slots=True)
class Program:
    """header: as in the file, without the data's hash; data: uint8 [bytes], beginning on 64 bytes; path: its file."""

    header: Header
    data: Bytes
    path: Path | None = None

    @property
    def size(self) -> int:
        """Bytes of data."""
        return int(self.data.size)

    def with_cache(self, name: str) -> Program:
        """The same with another format of keys and values, which no weight depends on; `auto`: as it was packed.

        Raises InputError for an unknown format, and for a model that keeps none.
        """
        return self if name == "auto" else replace(self, header=cached_in(self.header, name))

    def blocks(self) -> Iterator[Bytes]:
        """The data in order."""
        yield self.data


class Parts:
    """The data of a program that is laid out: each part has its place before its bytes are made.

    They are made straight into their place, so that a large model is never there packed twice; in memory as many at a
    time as there are cores, in a file one after another.
    """

    def __init__(self) -> None:
        self._parts: list[tuple[int, int, Fill]] = []
        self.size = 0

    def add(self, size: int, fill: Fill) -> int:
        """Where a part will be, on 64 bytes. fill: writes all of the bytes [size] that it is given."""
        offset = self.size
        self._parts.append((offset, size, fill))
        self.size = round_up(offset + size, ALIGNMENT)
        return offset

    def vector(self, values: Floats) -> int:
        """Floats, padded with zeros to whole panels."""
        padded = np.pad(np.asarray(values, np.float32), (0, -len(values) % LANES))
        return self.add(padded.nbytes, lambda room: np.copyto(room, padded.view(np.uint8)))

    def made(self) -> Bytes:
        """All of it, beginning on 64 bytes."""
        made = _zeros(self.size)
        together([partial(fill, made[offset : offset + size]) for offset, size, fill in self._parts])
        return made

    def blocks(self) -> Iterator[Bytes]:
        """The same bytes in order, a part at a time with the zeros behind it."""
        for _, size, fill in self._parts:
            block = np.zeros(round_up(size, ALIGNMENT), np.uint8)
            fill(block[:size])
            yield block


def together(calls: Sequence[Callable[[], None]]) -> None:
    """Make the calls, as many at a time as there are cores; what one of them raises is raised."""
    if len(calls) == 1:
        calls[0]()
        return
    with ThreadPoolExecutor(usable_cores()) as pool:
        waiting = [pool.submit(call) for call in calls]
        try:
            for one in waiting:
                one.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _zeros(size: int) -> Bytes:
    """Zeros that begin on a page, in large pages where the system has them: 540 MB that are touched for the first time
    take a third of the time then. Raises InputError where there is no room for so many."""
    private = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
    try:
        memory = mmap.mmap(-1, max(size, 1), **private)
    except (OSError, OverflowError) as error:
        raise InputError(
            f"a program of {size:,} bytes has no room in memory ({error}); pack it in fewer bits, or, where the model "
            "is not so large, use the config that belongs to the weights"
        ) from error
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a kernel without them
            memory.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(memory, np.uint8)[:size]


@dataclass(frozen=True, slots=True)
class Draft:
    """A program whose data is still to be made."""

    header: Header
    parts: Parts

    @property
    def size(self) -> int:
        """Bytes of data."""
        return self.parts.size

    def blocks(self) -> Iterator[Bytes]:
        """The data in order."""
        return self.parts.blocks()

    def program(self) -> Program:
        """With its data in memory."""
        return Program(self.header, self.parts.made())


class Laid(Protocol):
    """A program, wherever its data comes from."""

    @property
    def header(self) -> Header:
        """As in the file, without the data's hash."""

    @property
    def size(self) -> int:
        """Bytes of data."""

    def blocks(self) -> Iterator[Bytes]:
        """The data in order."""


def write_program(program: Laid, path: str | Path) -> None:
    """Write a program into a folder that is being built; the data of a draft is made as it is written.

    Raises InputError where the disk refuses, and what the making of the data raises.
    """
    header = _whole_header(program)
    digest = hashlib.sha256()
    # The header stands first but holds the hash of the data: its room is left, for a hash is always as long.
    room = len(_head(header, digest.hexdigest()))
    try:
        with open(path, "wb") as file:
            file.seek(room)
            for block in program.blocks():
                digest.update(block.data)
                file.write(block.data)
            file.seek(0)
            file.write(_head(header, digest.hexdigest()))
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}; free room or pass another -o") from error


def file_bytes(program: Laid) -> int:
    """How large the file of a program is."""
    return len(_head(_whole_header(program), hashlib.sha256().hexdigest())) + program.size


def _whole_header(program: Laid) -> Header:
    return program.header | {"version": VERSION, "bytes": program.size}


def _head(header: Header, sha256: str) -> bytes:
    """All that stands before the data."""
    text = json_text(header | {"sha256": sha256}).encode("utf-8")
    head = MAGIC + len(text).to_bytes(8, "little") + hashlib.sha256(text).digest() + text
    return head + bytes(-len(head) % PAGE)


def read_program(path: str | Path) -> Program:
    """Map a program. Raises InputError for a file that is missing, of another kind or version, cut short or changed.

    Its data is read whole only where that was not done before, by the file's times and the notes of `verified`.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            stat = os.fstat(file.fileno())
            mapped = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
            return _checked(mapped, path, stat, lambda: os.fstat(file.fileno()))
    except FileNotFoundError:
        raise InputError(f"program {path} does not exist; check the path") from None
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read program {path}: {error}; check the path") from error


def _checked(
    mapped: NDArray[np.uint8], path: Path, stat: os.stat_result, stat_again: Callable[[], os.stat_result]
) -> Program:
    header, start = _read_header(mapped, path)
    data = mapped[start:]
    if header.get("bytes") != data.size:
        raise _damaged(path, f"{data.size} bytes of weights where {header.get('bytes')} should be")
    begun, seal = time.time_ns(), Seal(path, stat, str(header.get("sha256")))
    if not seal.known():
        if hashlib.sha256(data.data).hexdigest() != seal.sha256:
            raise _damaged(path, "weights do not match their SHA-256")
        seal.remember(stat_again(), begun)
    return Program(header, data, path)


def _read_header(mapped: NDArray[np.uint8], path: Path) -> tuple[Header, int]:
    """The header, and where the data starts."""
    if mapped.size < START or mapped[: len(MAGIC)].tobytes() != MAGIC:
        raise _damaged(path, "no program's first bytes")
    length = int.from_bytes(mapped[len(MAGIC) : len(MAGIC) + 8].tobytes(), "little")
    start = round_up(START + length, PAGE)
    if length > MOST_HEADER or start > mapped.size:
        raise _damaged(path, f"a header of {length} bytes in a file of {mapped.size}")
    text = mapped[START : START + length].tobytes()
    if hashlib.sha256(text).digest() != mapped[START - 32 : START].tobytes():
        raise _damaged(path, "a header that does not match its SHA-256")
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _damaged(path, "a header that is no JSON") from error
    if not isinstance(header, dict) or header.get("version") != VERSION:
        found = header.get("version") if isinstance(header, dict) else None
        raise InputError(f"program {path} has version {found}, not {VERSION}; run chinchilla pack again")
    return header, start


def _damaged(path: Path, what: str) -> InputError:
    return InputError(f"program {path} is damaged ({what}); run chinchilla pack again")
