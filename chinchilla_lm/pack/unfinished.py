"""What a solver has done so far, so that a run that was stopped goes on: a safetensors file for each matrix."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from chinchilla_lm.files import sha256_text, write_atomic
from chinchilla_lm.pack.codebook import Codebook
from chinchilla_lm.pack.formats import Rounding
from chinchilla_lm.pack.quantized import Entries, Mask, Quantized, vectors_of
from chinchilla_lm.pack.sparse import Sparse
from chinchilla_lm.pack.uniform import Uniform

Part = tuple[tuple[int, ...], np.dtype[Any]]  # shape and type


class Unfinished:
    """Rounded matrices in `folder`, by name. identity: of all that decides them; those of another one are not found."""

    def __init__(self, folder: Path, identity: str) -> None:
        self.folder, self.identity = folder, identity

    def get(self, name: str, outputs: int, inputs: int, how: Rounding) -> Quantized | None:
        """A matrix that is done; None where it is not, or what is there does not fit it."""
        try:
            found = load(self._path(name).read_bytes())
        except (KeyError, OSError, SafetensorError):
            return None
        wanted, least, most = _parts(outputs, inputs, how)
        if {key: (one.shape, one.dtype) for key, one in found.items()} != wanted:
            return None
        codes, book = found["codes"], found.get("codebook")
        if codes.size and not least <= codes.min() <= codes.max() <= most:
            return None
        if isinstance(how, Codebook | Sparse) and not _sound(book, found.get("mask"), how):
            return None
        if not all(np.isfinite(one).all() for key, one in found.items() if key in ("scales", "minima")):
            return None
        columns = 0 if book is None else inputs
        scales, minima, mask = found["scales"], found.get("minima"), found.get("mask")
        return Quantized(codes, scales, minima, how.group, how.middle, book, mask, columns)

    def put(self, name: str, rounded: Quantized) -> None:
        """Keep a matrix. Raises InputError where the disk refuses."""
        parts = {
            "codes": rounded.codes_NV,
            "scales": rounded.scales_NG,
            "minima": rounded.minima_NG,
            "codebook": rounded.codebook_ED,
            "mask": rounded.mask_NK,
        }
        there = {key: np.ascontiguousarray(one) for key, one in parts.items() if one is not None}
        write_atomic(self._path(name), save(there))

    def clear(self) -> None:
        """Remove all of them, and the folder where nothing else is in it."""
        for path in self.folder.glob("*.safetensors"):
            if re.fullmatch(r"[0-9a-f]{32}", path.stem):
                path.unlink(missing_ok=True)
        with suppress(OSError):  # what others have put there stays
            self.folder.rmdir()

    def _path(self, name: str) -> Path:
        return self.folder / f"{sha256_text(f'{self.identity} {name}')[:32]}.safetensors"


def _sound(book: Entries | None, mask: Mask | None, how: Codebook | Sparse) -> bool:
    """Whether a codebook and a mask are such as solvers make."""
    if mask is not None and isinstance(how, Sparse):
        return how.fits(mask) and (book is None or (book[0, 0] == 0 and book.min() > -128))
    return book is not None and book.min() > -128 and (not getattr(how, "even", False) or (book == how.begun()).all())


def _parts(outputs: int, inputs: int, how: Rounding) -> tuple[dict[str, Part], int, int]:
    """Shapes and types of what a matrix so rounded has, and the least and the largest code."""
    groups = -(-inputs // how.group) if how.group else 1
    scales = np.dtype(np.float16 if how.group or not isinstance(how, Uniform) else np.float32)
    wanted: dict[str, Part] = {"codes": ((outputs, inputs), np.dtype(np.uint8)), "scales": ((outputs, groups), scales)}
    if isinstance(how, Uniform):
        if how.asymmetric:
            wanted["minima"] = ((outputs, groups), scales)
        return wanted, how.least, how.most
    wanted["codes"] = ((outputs, vectors_of(inputs, how.dims)), np.dtype(np.uint8))
    if how.entries:
        wanted["codebook"] = ((how.entries, how.dims), np.dtype(np.int8))
    if isinstance(how, Sparse):
        wanted["mask"] = ((outputs, inputs), np.dtype(np.bool_))
    return wanted, 0 if how.entries else 1, (1 << how.bits) - 1
