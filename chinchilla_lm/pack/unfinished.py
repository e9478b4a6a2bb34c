"""What a solver has done so far, so that a run that was stopped goes on: a safetensors file for each matrix."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from chinchilla_lm.files import sha256_text, write_atomic
from chinchilla_lm.pack.quantized import Quantized
from chinchilla_lm.pack.uniform import Uniform


class Unfinished:
    """Rounded matrices in `folder`, by name. identity: of all that decides them; those of another one are not found."""

    def __init__(self, folder: Path, identity: str) -> None:
        self.folder, self.identity = folder, identity

    def get(self, name: str, outputs: int, inputs: int, how: Uniform) -> Quantized | None:
        """A matrix that is done; None where it is not, or what is there does not fit it."""
        try:
            found = load(self._path(name).read_bytes())
        except (OSError, SafetensorError):
            return None
        groups = -(-inputs // how.group) if how.group else 1
        kind = np.float16 if how.group else np.float32
        wanted = {"codes": ((outputs, inputs), np.uint8), "scales": ((outputs, groups), kind)}
        if how.asymmetric:
            wanted["minima"] = ((outputs, groups), kind)
        if {key: (one.shape, one.dtype) for key, one in found.items()} != {
            key: (shape, np.dtype(dtype)) for key, (shape, dtype) in wanted.items()
        }:
            return None
        if found["codes"].size and not how.least <= found["codes"].min() <= found["codes"].max() <= how.most:
            return None
        if not all(np.isfinite(one).all() for key, one in found.items() if key != "codes"):
            return None
        return Quantized(found["codes"], found["scales"], found.get("minima"), how.group, how.middle)

    def put(self, name: str, rounded: Quantized) -> None:
        """Keep a matrix. Raises InputError where the disk refuses."""
        parts = {"codes": rounded.codes_NV, "scales": rounded.scales_NG}
        if rounded.minima_NG is not None:
            parts["minima"] = rounded.minima_NG
        write_atomic(self._path(name), save({key: np.ascontiguousarray(one) for key, one in parts.items()}))

    def clear(self) -> None:
        """Remove all of them, and the folder where nothing else is in it."""
        for path in self.folder.glob("*.safetensors"):
            if re.fullmatch(r"[0-9a-f]{32}", path.stem):
                path.unlink(missing_ok=True)
        with suppress(OSError):  # what others have put there stays
            self.folder.rmdir()

    def _path(self, name: str) -> Path:
        return self.folder / f"{sha256_text(f'{self.identity} {name}')[:32]}.safetensors"
