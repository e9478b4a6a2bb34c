"""Engines side by side: each round gives every engine the same prompt, and no prompt comes twice.

A language model writes: `prefill` is the time to the first new token, `decode` that of the steps after it, `request`
the whole. Everything else reads: `batch` is a pass over the asked batch, `single` one over a text alone.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from chinchilla_lm.runtime.clock import Timing, interleave
from chinchilla_lm.runtime.engines import Engine

# Ids below this stand for padding and the like in most vocabularies; RoBERTa's positions depend on where padding is.
_FIRST_WORD = 5
WARMUP = 2


@dataclass(frozen=True, slots=True)
class Shape:
    """Texts a batch, tokens a text, and tokens to write: 0 for a model that only reads."""

    batch: int
    tokens: int
    new_tokens: int

    @property
    def measures(self) -> tuple[str, ...]:
        """What is timed, the names of one engine's timings."""
        if self.new_tokens == 0:
            return ("batch", "single")
        return ("prefill", "decode", "request") if self.new_tokens > 1 else ("prefill", "request")


def prompt(number: int, batch: int, tokens: int, vocabulary: int) -> Tensor:
    """Random token ids, int64 [B, T]; the same number gives the same ids."""
    generator = torch.Generator().manual_seed(number)
    return torch.randint(min(_FIRST_WORD, vocabulary - 1), vocabulary, (batch, tokens), generator=generator)


def race(engines: Mapping[str, Engine], shape: Shape, *, seconds: float) -> dict[str, dict[str, Timing]]:
    """Timings by engine and measure, all from one interleaved run of about `seconds`; rounds of all are paired."""
    vocabulary = min(engine.vocabulary for engine in engines.values())
    rows = {"request": shape.batch} if shape.new_tokens else {"batch": shape.batch, "single": 1}
    runs = {
        (name, measure): _Run(engine, shape, batch, vocabulary)
        for name, engine in engines.items()
        for measure, batch in rows.items()
    }
    timed = interleave(
        {f"{name}/{measure}": run for (name, measure), run in runs.items()}, seconds=seconds, warmup=WARMUP
    )
    rounds = len(next(iter(timed.values())).seconds)
    found: dict[str, dict[str, Timing]] = {name: {} for name in engines}
    for (name, measure), run in runs.items():
        phases = np.array(run.phases[-rounds:])  # what the engines timed: the prompt's making is not theirs
        if measure == "request":
            found[name] |= {"prefill": Timing(phases[:, 0]), "decode": Timing(phases[:, 1])}
        found[name][measure] = Timing(phases.sum(1))
    return {name: {measure: parts[measure] for measure in shape.measures} for name, parts in found.items()}


class _Run:
    """Does the work on the next prompt and keeps the seconds of each phase: [prefill, decode], or [pass]."""

    def __init__(self, engine: Engine, shape: Shape, batch: int, vocabulary: int) -> None:
        self.engine, self.shape, self.batch, self.vocabulary = engine, shape, batch, vocabulary
        self.number = 0
        self.phases: list[tuple[float, ...]] = []

    def __call__(self) -> None:
        self.number += 1
        ids = prompt(self.number, self.batch, self.shape.tokens, self.vocabulary)
        if self.shape.new_tokens:
            self.phases.append(self.engine.generate(ids, self.shape.new_tokens))
            return
        begun = time.perf_counter()
        self.engine.forward(ids)
        self.phases.append((time.perf_counter() - begun,))
