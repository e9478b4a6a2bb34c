"""The container of GGUF files: header, metadata, tensor table. Layout: ggml/docs/gguf.md, versions 2 and 3.

The reader of the `gguf` package trusts the counts in the header, so a damaged file can have it loop for hours. Here
every count and offset is checked against the file's size before anything is read; `gguf.quants` decodes the values.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from chinchilla_lm.errors import InputError
from chinchilla_lm.models.gguf_metadata import check_metadata
from chinchilla_lm.native import engine_module

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
# Type code → numpy type, little-endian. 8 is a string, 9 an array.
SCALARS = dict(enumerate(["<u1", "<i1", "<u2", "<i2", "<u4", "<i4", "<f4", "?", "s", "a", "<u8", "<i8", "<f8"]))
STRING, ARRAY = 8, 9
MAX_DIMENSIONS = 4
# Weights that are dequantised at a time, so that what lies between stays in the cache; measured on SmolLM2-135M: 2^16
# and 2^17 take the same time, 2^15 and 2^18 about a fifth more.
PIECE = 1 << 16


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where a tensor lies: shape in torch's order, ggml type code, start and size in bytes."""

    shape: tuple[int, ...]
    code: int
    start: int
    size: int


class Cursor:
    """Reads the header front to back; whatever would lie behind the end of the file raises InputError."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path, self.data, self.at = path, data, 0

    def take(self, count: int) -> bytes:
        """The next bytes."""
        if count > len(self.data) - self.at:
            raise self.error(f"{count} bytes at offset {self.at} are behind its end")
        self.at += count
        return self.data[self.at - count : self.at]

    def unpack(self, form: str) -> int:
        """One little-endian number of a `struct` form."""
        return int(struct.unpack("<" + form, self.take(struct.calcsize("<" + form)))[0])

    def text(self) -> str:
        """A string with its length in front."""
        raw = self.take(self.unpack("Q"))
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.error(f"a string at offset {self.at} is not UTF-8") from error

    def texts(self, count: int) -> list[str]:
        """Strings in a row; a vocabulary and its merges are a hundred thousand, hence a loop without calls of ours."""
        length, end, at, found = struct.Struct("<Q"), len(self.data), self.at, []
        for _ in range(count):
            size = length.unpack_from(self.data, at)[0] if at + 8 <= end else end
            start, at = at + 8, at + 8 + size
            if at > end:
                raise self.error(f"a string at offset {start} ends behind its end")
            found.append(self.data[start:at])
        self.at = at
        try:
            return [raw.decode("utf-8") for raw in found]
        except UnicodeDecodeError as error:
            raise self.error(f"a string in the list before offset {at} is not UTF-8") from error

    def value(self, code: int) -> Any:
        """One metadata value: a number, a string, a list of strings or a list of numbers."""
        if code == STRING:
            return self.text()
        if code == ARRAY:
            inner, count = self.unpack("I"), self.unpack("Q")
            if inner == STRING:
                return self.texts(self.count(count, 8))
            return self.numbers(inner, count).tolist()
        return self.numbers(code, 1)[0].item()

    def numbers(self, code: int, count: int) -> np.ndarray[Any, Any]:
        """`count` numbers of one type."""
        if code not in SCALARS or code in (STRING, ARRAY):
            raise self.error(f"metadata type {code} is unknown")
        kind = np.dtype(SCALARS[code])
        self.count(count, kind.itemsize)
        return np.frombuffer(self.take(count * kind.itemsize), kind)

    def count(self, count: int, size: int) -> int:
        """A number of items of at least `size` bytes, checked against what is left of the file."""
        if count * size > len(self.data) - self.at:
            raise self.error(f"{count} items at offset {self.at} are more than it can hold")
        return count

    def error(self, reason: str) -> InputError:
        """One line naming the file."""
        return InputError(f"{self.path} is not a whole GGUF file ({reason}); download it again")


class GgufFile:
    """Metadata and tensors of one file, mapped, not read."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path, self._data = path, data
        cursor = Cursor(path, data)
        if cursor.take(len(MAGIC)) != MAGIC:
            raise cursor.error("it does not begin with GGUF")
        version = cursor.unpack("I")
        if version not in VERSIONS:
            swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
            known = " or ".join(map(str, VERSIONS))
            what = "is big-endian" if swapped in VERSIONS else f"has version {version}, not {known}"
            raise InputError(f"{path} {what}; convert the model to GGUF anew, little-endian")
        # A tensor's entry takes at least 32 bytes, a metadata entry at least 13.
        tensors, pairs = cursor.unpack("Q"), cursor.unpack("Q")
        cursor.count(tensors, 32)
        cursor.count(pairs, 13)
        self.metadata: dict[str, Any] = {}
        for _ in range(pairs):
            key = cursor.text()
            if key in self.metadata:
                raise cursor.error(f"key {key!r:.60} stands twice in its metadata")
            self.metadata[key] = cursor.value(cursor.unpack("I"))
        check_metadata(path, self.metadata)
        self.tensors = self._table(cursor, tensors)

    def _table(self, cursor: Cursor, count: int) -> dict[str, TensorInfo]:
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

        entries = []
        for _ in range(count):
            name, dimensions = cursor.text(), cursor.unpack("I")
            if not 1 <= dimensions <= MAX_DIMENSIONS:
                raise cursor.error(f"tensor {name} has {dimensions} dimensions")
            shape = tuple(cursor.unpack("Q") for _ in range(dimensions))[::-1]
            entries.append((name, shape, cursor.unpack("I"), cursor.unpack("Q")))
        alignment = self.metadata.get("general.alignment", DEFAULT_ALIGNMENT)
        if type(alignment) is not int or alignment <= 0:
            raise cursor.error(f"general.alignment {alignment!r:.60} is not a whole number above 0")
        base = -(-cursor.at // alignment) * alignment
        known = {int(kind): GGML_QUANT_SIZES[kind] for kind in GGMLQuantizationType if kind in GGML_QUANT_SIZES}
        table: dict[str, TensorInfo] = {}
        for name, shape, code, offset in entries:
            if code not in known:
                raise InputError(f"tensor {name!r:.60} of {self.path} has type {code}, which is not known; use Q8_0")
            block, size = known[code]
            if shape[-1] % block or name in table:
                raise cursor.error(f"tensor {name} is doubled, or its rows are no whole blocks of {block}")
            total = prod(shape) // block * size
            if base + offset + total > len(self._data):
                raise cursor.error(f"tensor {name} ends at byte {base + offset + total} of {len(self._data)}")
            table[name] = TensorInfo(shape, code, base + offset, total)
        return table

    def read(self, name: str, rows: slice | None = None) -> Tensor:
        """A tensor's values, or those of some rows, in float32."""
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
        from gguf.quants import dequantize

        info = self.tensors[name]
        kind = GGMLQuantizationType(info.code)
        block, size = GGML_QUANT_SIZES[kind]
        shape, begin, end = info.shape, info.start, info.start + info.size
        if rows is not None:
            first, last, _ = rows.indices(shape[0])
            begin, end = (info.start + row * (info.size // shape[0]) for row in (first, last))
            shape = (last - first, *shape[1:])
        step = PIECE // block * size
        values, done = np.empty(prod(shape), np.float32), 0
        engine = engine_module()
        if kind is GGMLQuantizationType.Q8_0 and engine is not None:  # NumPy takes ten times as long
            engine.decode_q8_0(np.frombuffer(self._data, np.uint8, end - begin, begin), values)
            return torch.from_numpy(values).reshape(shape)
        try:
            for start in range(begin, end, step):
                raw = np.frombuffer(self._data[start : min(start + step, end)], np.uint8)
                # As one row: of many rows, gguf takes 16 at a time, with a dozen calls into numpy for every 16.
                piece = dequantize(raw[None], kind)[0]
                values[done : done + piece.size] = piece
                done += piece.size
        except NotImplementedError as error:
            raise InputError(f"tensor {name} of {self.path} is {kind.name}, which cannot be read; use Q8_0") from error
        return torch.from_numpy(values).reshape(shape)


@contextmanager
def open_file(path: Path) -> Iterator[GgufFile]:
    """A GGUF file. Raises InputError naming it where it is missing, truncated or damaged."""
    try:
        with open(path, "rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:  # ValueError: an empty file cannot be mapped
        raise InputError(f"cannot read {path} ({error}); download it again") from error
    with data:
        yield GgufFile(path, data)
