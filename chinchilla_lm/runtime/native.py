"""The C++ engine: what it runs on this machine, and a program loaded into it."""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chinchilla_lm.errors import InputError
from chinchilla_lm.runtime.program import Program

ISA_VARIABLE = "CHINCHILLA_ISA"


@cache
def engine_module() -> ModuleType | None:
    """The compiled engine, or None where the package was installed without it."""
    try:
        return importlib.import_module("chinchilla_lm.native._engine")
    except ImportError:
        return None


def instruction_set() -> str | None:
    """The set that CHINCHILLA_ISA asks for, or None for the best. Raises InputError for one that cannot run here."""
    asked = os.environ.get(ISA_VARIABLE)
    module = engine_module()
    if not asked or module is None:
        return None
    known = module.kernel_names()
    if asked not in known:
        raise InputError(f"{ISA_VARIABLE}={asked} is not one of {', '.join(known)}; set one of them, or leave it away")
    return asked


class NativeModel:
    """A program in the engine, with threads of its own.

    Calls from several threads take turns. Raises InputError for a program that the engine refuses, and where there is
    no engine.
    """

    def __init__(self, program: Program, threads: int) -> None:
        module = engine_module()
        if module is None:
            raise InputError(
                "this installation has no native engine; install a C++ compiler and chinchilla-lm again, "
                "or pass --backend torch"
            )
        self._module, self.program = module, program
        try:
            self._engine = module.Engine(program.header, program.data, threads, instruction_set())
        except ValueError as error:
            raise InputError(f"{program.path or 'program'}: {error}; run chinchilla pack again") from error

    @property
    def isa(self) -> str:
        """The instruction set of its kernels."""
        return str(self._engine.isa)

    @property
    def threads(self) -> int:
        """How many threads share a pass."""
        return int(self._engine.threads)

    @property
    def workspace_bytes(self) -> int:
        """Memory of activations so far."""
        return int(self._engine.workspace_bytes)

    def cache(self, capacity: int) -> Any:
        """Keys and values of one sequence of at most `capacity` positions; `length`, `bytes`, `rewind(length)`."""
        return self._module.Cache(self._engine, capacity)

    def run(
        self,
        sequences: Sequence[NDArray[np.int32]],
        caches: Sequence[Any] = (),
        segments: Sequence[NDArray[np.int32]] | None = None,
        everywhere: bool = False,
    ) -> NDArray[np.float32]:
        """What the head gives, float32: a row for each sequence, or with `everywhere` for each token.

        sequences: token ids, int32 [T] each, all read at once without padding. caches: one a sequence, which grow.
        everywhere is ignored by a head that pools. Raises InputError for what does not fit the model.
        """
        ids = np.ascontiguousarray(np.concatenate(sequences), np.int32)
        kinds = None if segments is None else np.ascontiguousarray(np.concatenate(segments), np.int32)
        try:
            found: NDArray[np.float32] = self._engine.run(
                ids, [len(one) for one in sequences], list(caches), kinds, everywhere
            )
        except ValueError as error:
            raise InputError(str(error)) from error
        return found
