"""Engines side by side: each round gives every engine the same prompt, and no prompt comes twice.

A language model writes: `prefill` is the time to the first new token, `decode` that of the steps after it, `request`
the whole. Everything else reads: `batch` is a pass over the asked batch, `single` one over a text alone.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

import numpy as np

from chinchilla_lm.runtime.measuring.clock import Timing, interleave
from chinchilla_lm.runtime.measuring.engines import Engine
from chinchilla_lm.runtime.measuring.shape import Shape, prompt

WARMUP = 2


def race(engines: Mapping[str, Engine], shape: Shape, *, seconds: float) -> dict[str, dict[str, Timing]]:
    """Timings by engine and measure, all from one interleaved run of about `seconds`; rounds of all are paired."""
    vocabulary = min(engine.demand.vocabulary for engine in engines.values())
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
    timings: dict[str, dict[str, Timing]] = {name: {} for name in engines}
    for (name, measure), run in runs.items():
        phases = np.array(run.phases[-rounds:])  # what the engines timed: the prompt's making is not theirs
        if measure == "request":
            timings[name] |= {"prefill": Timing(phases[:, 0]), "decode": Timing(phases[:, 1])}
        timings[name][measure] = Timing(phases.sum(1))
    return {name: {measure: parts[measure] for measure in shape.measures} for name, parts in timings.items()}


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
