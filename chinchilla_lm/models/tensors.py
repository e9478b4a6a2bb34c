"""Named tensors in files, read one at a time: safetensors, in one file or in shards listed by an index.

Everything a file claims is checked before it is used: shards lie in the same folder, headers fit the file, tensors have
the expected shape and a float type and hold finite numbers. Pickle files are never opened.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from chinchilla_lm.errors import InputError
from chinchilla_lm.models.weight_files import weight_files

FLOATS = ("F32", "F16", "BF16", "F64")


class TensorSource(Protocol):
    """Where tensors come from, by their Hugging Face names. mapped: what is read may lie in the file, not in memory."""

    mapped: bool

    @property
    def names(self) -> set[str]:
        """All names."""

    def where(self, name: str) -> str:
        """The file that holds a tensor, for messages."""

    def shape(self, name: str) -> tuple[int, ...]:
        """Its shape, known without reading it."""

    def read(self, name: str, rows: slice | None = None) -> Tensor:
        """Its values, or those of some rows, in the file's precision."""


class SafetensorsSource:
    """The weights of a Hugging Face folder. Opened on entry, closed on exit."""

    mapped = True

    def __init__(self, files: dict[Path, Any], places: dict[str, Path]) -> None:
        self._files, self._places = files, places

    @property
    def names(self) -> set[str]:
        """All names."""
        return set(self._places)

    def where(self, name: str) -> str:
        """The file that holds a tensor."""
        return str(self._places[name])

    def shape(self, name: str) -> tuple[int, ...]:
        """Its shape; raises InputError for a type that is no float."""
        part = self._files[self._places[name]].get_slice(name)
        if part.get_dtype() not in FLOATS:
            raise InputError(
                f"tensor {name} of {self.where(name)} is {part.get_dtype()}, not one of {', '.join(FLOATS)}; "
                "use unquantised weights"
            )
        return tuple(part.get_shape())

    def read(self, name: str, rows: slice | None = None) -> Tensor:
        """Its values, or those of some rows."""
        file = self._files[self._places[name]]
        tensor: Tensor = file.get_tensor(name) if rows is None else file.get_slice(name)[rows]
        return tensor


@contextmanager
def open_safetensors(folder: Path) -> Iterator[SafetensorsSource]:
    """The tensors of a folder, lazily. Raises InputError naming a file that is truncated or damaged."""
    from safetensors import SafetensorError, safe_open

    files: dict[Path, Any] = {}
    places: dict[str, Path] = {}
    try:
        for path in weight_files(folder):
            try:
                files[path] = safe_open(path, framework="pt", device="cpu").__enter__()
            except (SafetensorError, OSError, ValueError) as error:
                raise InputError(f"{path} is not a whole safetensors file ({error}); download it again") from error
            for name in files[path].keys():  # noqa: SIM118 (not a dictionary)
                if name in places:
                    raise InputError(f"tensor {name} is in {places[name]} and in {path}; download the model again")
                places[name] = path
        yield SafetensorsSource(files, places)
    finally:
        for file in files.values():
            file.__exit__(None, None, None)


def read_checked(source: TensorSource, name: str, shape: tuple[int, ...], rows: slice | None = None) -> Tensor:
    """One tensor of the expected shape, or some of its rows, all finite. Raises InputError naming it."""
    found = source.shape(name)
    if found != shape:
        raise InputError(
            f"tensor {name} of {source.where(name)} has shape {list(found)}, config.json asks for {list(shape)}; "
            "use the config.json that belongs to the weights"
        )
    tensor = source.read(name, rows)
    # One NaN or infinity makes the sum one; a finite sum proves there is none, in a single pass.
    if not math.isfinite(tensor.sum(dtype=torch.float64 if tensor.dtype == torch.float64 else torch.float32)):
        bad = int((~torch.isfinite(tensor)).sum())
        if bad:
            raise InputError(
                f"tensor {name} of {source.where(name)} holds {bad} values that are NaN or infinite; download it again"
            )
    return tensor
