"""The C++ engine: what it runs on this machine, and a program loaded into it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chinchilla_lm.data.encoded import Encoded
from chinchilla_lm.errors import InputError
from chinchilla_lm.native import engine_module as engine_module
from chinchilla_lm.runtime.card import Card
from chinchilla_lm.runtime.cpu import NATIVE_BFLOAT16, cpu_flags, usable_cores
from chinchilla_lm.runtime.engine.program import Program
from chinchilla_lm.runtime.memory import keep_freed_memory
from chinchilla_lm.runtime.sampling import check_whole

ISA_VARIABLE = "CHINCHILLA_ISA"
# Windows a call: enough that threads rarely wait for the last one, little enough that results do not pile up.
CALL_WINDOWS = 512
MOST_THREADS = 1024

Floats = NDArray[np.float32]


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

    def __init__(self, program: Program, threads: int | None = None) -> None:
        """threads: None for one a core."""
        if threads is not None:
            check_whole("threads", threads, 1, "leave --threads away to use every core")
            if threads > MOST_THREADS:
                raise InputError(f"threads {threads} is not in 1 … {MOST_THREADS}; leave it away for one a core")
        module = engine_module()
        if module is None:
            raise InputError(
                "this installation has no native engine; install a C++ compiler and chinchilla-lm anew, "
                "without CHINCHILLA_NO_ENGINE, or pass --backend torch"
            )
        keep_freed_memory()  # every pass gives new logits: 200 KB of a vocabulary of 49,152
        self._module, self.program = module, program
        isa = instruction_set()  # an error of its own, which is not the program's
        try:
            self._engine = module.Engine(program.header, program.data, threads or usable_cores(), isa)
        except ValueError as error:
            raise InputError(f"{program.path or 'program'}: {error}; run chinchilla pack again") from error
        except RuntimeError as error:
            raise InputError(f"threads {threads or usable_cores()}: {error}; ask for fewer") from error

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

    def take_seconds(self) -> tuple[dict[str, float], float]:
        """Seconds of each operation by its name, and of all else, since they were last asked for."""
        *operations, rest = self._engine.take_seconds()
        names = [operation["name"] for operation in self.program.header["operations"]]
        return dict(zip(names, operations, strict=True)), rest

    def rest(self) -> None:
        """Let the threads sleep until the next call; else they wait awake for it for some milliseconds."""
        self._engine.rest()

    def cache(self, capacity: int) -> Any:
        """Keys and values of one sequence of at most `capacity` positions; `length`, `bytes`, `rewind(length)`."""
        return self._module.Cache(self._engine, capacity)

    def run(
        self,
        sequences: Sequence[NDArray[np.int32]],
        caches: Sequence[Any] = (),
        segments: Sequence[NDArray[np.int32]] | None = None,
        everywhere: bool = False,
    ) -> Floats:
        """What the head gives, float32: a row for each sequence, or with `everywhere` for each token.

        sequences: token ids, int32 [T] each, all read at once without padding. caches: one a sequence, which grow.
        everywhere is ignored by a head that pools. Raises InputError for what does not fit the model.
        """
        ids = np.ascontiguousarray(np.concatenate(sequences), np.int32)
        kinds = None if segments is None else np.ascontiguousarray(np.concatenate(segments), np.int32)
        try:
            found: Floats = self._engine.run(ids, [len(one) for one in sequences], list(caches), kinds, everywhere)
        except ValueError as error:
            raise InputError(str(error)) from error
        return found

    def best(
        self, sequences: Sequence[NDArray[np.int32]], caches: Sequence[Any] = ()
    ) -> tuple[NDArray[np.int32], Floats]:
        """Of each sequence the index of the last position's largest logit, as NumPy's argmax has it, and that logit.

        The same as of what `run` gives, to the bit; a program with a screen reads little of its head for it. Raises
        InputError for what does not fit the model, and for one whose outputs are not one for each token of a text.
        """
        ids = np.ascontiguousarray(np.concatenate(sequences), np.int32)
        try:
            indices, logits = self._engine.best(ids, [len(one) for one in sequences], list(caches))
        except ValueError as error:
            raise InputError(str(error)) from error
        return indices, logits[0]

    def states(self, sequences: Sequence[NDArray[np.int32]]) -> Floats:
        """What the decoder's matrix is multiplied with, float32 [T, K], for all tokens of sequences read at once.

        Raises InputError as `best` does.
        """
        ids = np.ascontiguousarray(np.concatenate(sequences), np.int32)
        try:
            found: Floats = self._engine.states(ids, [len(one) for one in sequences])
        except ValueError as error:
            raise InputError(str(error)) from error
        return found

    def take_screened(self) -> tuple[int, int, int, int]:
        """Since it was last asked for: positions whose best word was looked for with a screen; words, and panels of 16,
        that were left of all; and how many of the positions had no bound, so that all were left."""
        rows, words, panels, whole = self._engine.take_screened()
        return rows, words, panels, whole

    def nats(self, sequences: Sequence[NDArray[np.int32]], targets: Sequence[NDArray[np.int32]]) -> Floats:
        """How unexpected each target is to a language model, −log softmax(logits)[target], float32 [targets from 0].

        sequences: token ids, int32 [T] each; targets: a token id behind each of them, or less than 0 for none. The
        logits are made in pieces and forgotten; of what is not a finite number among them the answer is NaN. Raises
        InputError for what does not fit the model.
        """
        ids = np.ascontiguousarray(np.concatenate(sequences), np.int32)
        wanted = np.ascontiguousarray(np.concatenate(targets), np.int32)
        try:
            found: Floats = self._engine.nats(ids, [len(one) for one in sequences], wanted)
        except ValueError as error:
            raise InputError(str(error)) from error
        return found[:, 0]


class NativeBackend:
    """A session's model in the engine."""

    name = "native"

    def __init__(self, model: NativeModel, card: Card) -> None:
        self.model, self.card = model, card
        self.switches = tuple(sorted({rope["switch"] for rope in model.program.header["ropes"]} - {0}))

    def outputs(self, windows: Sequence[Encoded]) -> list[Floats]:
        """See session.Backend. Like lengths go together, so that threads finish at about the same time."""
        found: list[Floats] = [np.empty(0, np.float32)] * len(windows)
        order = sorted(range(len(windows)), key=lambda row: -len(windows[row].ids))
        everywhere = self.card.kind in ("language-modeling", "token-classification")
        for start in range(0, len(order), CALL_WINDOWS):
            rows = order[start : start + CALL_WINDOWS]
            ids = [np.array(windows[row].ids, np.int32) for row in rows]
            some = any(windows[row].segments for row in rows)
            segments = [_segments(windows[row]) for row in rows] if some else None
            outputs = self.model.run(ids, segments=segments, everywhere=everywhere)
            if not everywhere:
                for row, output in zip(rows, outputs, strict=True):
                    found[row] = output
                continue
            ends = np.cumsum([len(one) for one in ids])
            for row, one in zip(rows, np.split(outputs, ends[:-1]), strict=True):
                found[row] = one
        return found

    def logits(self, ids: Sequence[int]) -> Floats:
        """See session.Backend."""
        return self.model.run([np.array(ids, np.int32)], everywhere=True)

    def cache(self, capacity: int) -> Any:
        """See generate.Model."""
        return self.model.cache(capacity)

    def read(self, ids: Sequence[Sequence[int]], caches: Sequence[Any]) -> Floats:
        """See generate.Model. All texts in one pass, without padding."""
        return self.model.run([np.array(new, np.int32) for new in ids], caches)

    def best(self, ids: Sequence[Sequence[int]], caches: Sequence[Any]) -> tuple[NDArray[np.int32], Floats]:
        """See generate.Model. The same pass, of whose logits only the largest are asked for."""
        return self.model.best([np.array(new, np.int32) for new in ids], caches)


def _segments(window: Encoded) -> NDArray[np.int32]:
    return np.array(window.segments or [0] * len(window.ids), np.int32)


def native_format(dtype: str) -> str:
    """The format of a model that was not packed: `f32` or `bf16`. Raises InputError for another dtype."""
    names = {"float32": "f32", "bfloat16": "bf16"}
    if dtype == "auto":
        return "bf16" if cpu_flags() & NATIVE_BFLOAT16 else "f32"
    if dtype not in names:
        raise InputError(f"dtype {dtype!r} is not one of auto, float32, bfloat16; pass one of them, or --backend torch")
    return names[dtype]
