"""What can be raced in one process: a model on torch (`runtime.measuring.torch_engine`), and in the engine.

Every engine reads the same token ids. `generate` reads the prompt, then feeds greedy tokens one at a time over its
cache, and times the two phases apart, which a single call from outside could not.

A packed model needs no torch, so nothing here imports it before a model has to be packed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from chinchilla_lm.errors import InputError
from chinchilla_lm.runtime.card import Card
from chinchilla_lm.runtime.engine.demand import Demand, ProgramDemand
from chinchilla_lm.runtime.engine.native import NativeModel, native_format
from chinchilla_lm.runtime.engine.packed import is_packed, read_packed
from chinchilla_lm.runtime.engine.program import Program
from chinchilla_lm.runtime.measuring.shape import Ids

TORCH, NATIVE = "chinchilla-torch", "chinchilla-native"
Tokens = TypeVar("Tokens")


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """What to open; plain values, so that another process can open the same.

    path: a model as `checkpoint.load` takes it, or a packed one. dtype: float32, bfloat16 or auto; a packed model has
    its own. task: None for the head that was saved. threads: of the engine, None for one a core; torch has its own.
    cache: of the engine's keys and values, as `load` takes it.
    """

    engine: str
    path: str
    dtype: str
    device: str
    task: str | None = None
    threads: int | None = None
    cache: str = "auto"


class Engine(Protocol):
    """A loaded model that can be timed. Ids are int64 [B, T], below `demand.vocabulary`. form: of weights; cache: of
    keys and values."""

    form: str
    cache: str

    @property
    def demand(self) -> Demand:
        """What is run."""

    def generate(self, ids: Ids, new_tokens: int) -> tuple[float, float]:
        """Seconds until the first new token, and seconds of the `new_tokens` − 1 steps after it."""

    def forward(self, ids: Ids) -> NDArray[Any]:
        """What the head gives."""


def open_engine(spec: EngineSpec) -> Engine:
    """Load the model. Raises InputError for an unknown engine or a model that cannot be read."""
    if spec.engine == TORCH:
        from chinchilla_lm.runtime.measuring.torch_engine import TorchEngine

        return TorchEngine(spec)
    if spec.engine == NATIVE:
        return NativeEngine(spec)
    raise InputError(f"engine {spec.engine!r} is not one of {TORCH}, {NATIVE}; pass one of them")


class NativeEngine:
    """Our engine. A model that is not packed is packed here, and let go of before anything runs."""

    def __init__(self, spec: EngineSpec) -> None:
        program, card = _program(spec)
        program = program.with_cache(spec.cache)
        self.model = NativeModel(program, spec.threads)
        try:  # what the engine has no use for may be damaged still
            self.demand, self.form = ProgramDemand(program, card), str(program.header["format"])
            self.cache = str(program.header["cache"])
        except (ArithmeticError, LookupError, TypeError, ValueError) as error:
            raise InputError(
                f"the program in {spec.path} does not say how large its parts are ({error!r}); "
                "run chinchilla pack again"
            ) from error
        self.everywhere = card.kind in ("language-modeling", "token-classification")

    def generate(self, ids: Ids, new_tokens: int) -> tuple[float, float]:
        """See Engine."""
        return write_native(self.model, ids, new_tokens)

    def forward(self, ids: Ids) -> NDArray[np.float32]:
        """See Engine."""
        found = self.model.run(list(ids.astype(np.int32)), everywhere=self.everywhere)
        self.model.rest()
        return found.reshape(*ids.shape, -1) if self.everywhere else found


def write_native(model: NativeModel, ids: Ids, new_tokens: int) -> tuple[float, float]:
    """A whole request in the engine, greedy, over a cache: the seconds that `phases` gives. Its threads sleep after."""
    caches = [model.cache(ids.shape[1] + new_tokens) for _ in ids]

    def step(tokens: NDArray[np.int32]) -> NDArray[np.int32]:
        return model.best(list(tokens), caches)[0][:, None]

    taken = phases(lambda: step(ids.astype(np.int32)), step, new_tokens, time.perf_counter)
    model.rest()
    return taken


def _program(spec: EngineSpec) -> tuple[Program, Card]:
    if is_packed(spec.path):
        program, card = read_packed(spec.path)
        if spec.task not in (None, card.kind):
            raise InputError(f"{spec.path} is packed for {card.kind}, not {spec.task}; leave --task away")
        return program, card
    from chinchilla_lm.models import checkpoint as checkpoints
    from chinchilla_lm.runtime.engine.compile import compile_model

    checkpoint = checkpoints.load(spec.path, task=spec.task)
    return compile_model(checkpoint.model, native_format(spec.dtype)), Card.of(checkpoint)


def phases(
    begin: Callable[[], Tokens], step: Callable[[Tokens], Tokens], new_tokens: int, now: Callable[[], float]
) -> tuple[float, float]:
    """Seconds of begin(), which gives the first tokens, and of the `new_tokens` − 1 calls step(tokens) after it."""
    started = now()
    tokens = begin()
    first = now()
    for _ in range(new_tokens - 1):
        tokens = step(tokens)
    return first - started, now() - first
