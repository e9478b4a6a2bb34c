"""The race itself: everybody who could be started, in turn, round by round, each on prompts that nobody has seen.

At least LEAST_ROUNDS. Where the quartiles of a measure are wider than WIDE of its median, there are more rounds, up to
MOST_ROUNDS, for that program and for ours, which are what its ratios are made of: a ratio compares the same round of
both, so whoever has fewer rounds has the first ones.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence, Set

import numpy as np

from chinchilla_lm.console import Console, Progress
from chinchilla_lm.peers.entrant import Entrant, Prompts
from chinchilla_lm.peers.llama_bench import LlamaBench
from chinchilla_lm.peers.process import PeerError
from chinchilla_lm.peers.table import OURS
from chinchilla_lm.peers.work import Work
from chinchilla_lm.runtime.measuring.clock import orders

LEAST_ROUNDS, MOST_ROUNDS = 10, 30
WIDE = 0.10

Competitor = Entrant | LlamaBench


def race(
    entrants: Sequence[Entrant], builds: Sequence[LlamaBench], work: Work, seconds: float, console: Console
) -> int:
    """Rounds until the time is spent and nobody's are wide, or nobody is left; fills in what was measured. Returns how
    many rounds all had, besides the first one, which warms up and does not count."""
    field = _Field(entrants, builds, work)
    with console.progress(0, "race", "turns") as progress:
        field.round(0, progress, {(id(one), measure) for one in entrants for measure in work.measures})
        for entrant in entrants:
            entrant.forget()
        begun, rounds = time.monotonic(), 0
        while any(entrant.alive for entrant in entrants) and (
            rounds < LEAST_ROUNDS or time.monotonic() - begun < seconds
        ):
            field.round(rounds, progress)
            rounds += 1
        for round_ in range(rounds, MOST_ROUNDS):
            unsettled = field.unsettled()
            if not unsettled:
                break
            field.round(round_, progress, unsettled)
    return rounds


class _Field:
    """Who races, and in which order."""

    def __init__(self, entrants: Sequence[Entrant], builds: Sequence[LlamaBench], work: Work) -> None:
        self.entrants, self.builds, self.work = entrants, builds, work
        self._prompts = Prompts(work.vocabulary)
        self._turns = orders([str(index) for index in range(len(entrants))])

    def round(self, number: int, progress: Progress, only: Set[tuple[int, str]] | None = None) -> None:
        """One turn of each, measure by measure. only: the id of those who have one, and in which measure."""
        for measure in self.work.measures:
            for entrant in (self.entrants[int(index)] for index in next(self._turns)):
                if entrant.alive and (only is None or (id(entrant), measure) in only):
                    entrant.turn(measure, self.work, self._prompts, number)
                    progress.advance(1, f"{entrant.engine} {entrant.form}: {measure}")
            for build in self.builds:
                wanted = only is None or (id(build), measure) in only
                if build.alive and measure in build.measures and wanted:
                    build.turn(measure)
                    progress.advance(1, f"llama-bench {build.form}: {measure}")

    def unsettled(self) -> set[tuple[int, str]]:
        """Whose quartiles are too wide, in which measure; and ours, in each such measure."""
        wide = {(id(one), measure) for one in self._alive() for measure in wide_measures(one.seconds)}
        measures = {measure for _, measure in wide}
        ours = (one for one in self.entrants if one.alive and one.engine == OURS)
        return wide | {(id(one), measure) for one in ours for measure in measures}

    def _alive(self) -> Iterator[Competitor]:
        everybody: list[Competitor] = [*self.entrants, *self.builds]
        yield from (one for one in everybody if one.alive)


def spread(seconds: Sequence[float]) -> float:
    """How far the quartiles of the rates lie apart, as a share of their median."""
    low, middle, high = np.quantile(1 / np.array(seconds), [0.25, 0.5, 0.75])
    return float((high - low) / middle)


def wide_measures(seconds: dict[str, list[float]]) -> list[str]:
    """Measures whose quartiles are wider than WIDE."""
    return [measure for measure, taken in seconds.items() if taken and spread(taken) > WIDE]


def read_memory(entrants: Sequence[Entrant]) -> None:
    """Highest resident memory of each, as of now: before anybody is asked for the logits of whole texts."""
    for entrant in entrants:
        try:
            found = []
            for process in entrant.processes.values():
                process.go()
                found.append(process.call("memory"))
                process.stop()
            entrant.peak_mb = max((one for one in found if one is not None), default=None)
        except PeerError as error:
            entrant.end(PeerError(f"after the race: {error}"))


def read_quality(entrants: Sequence[Entrant], work: Work, console: Console) -> None:
    """Perplexity of each entrant on the windows, or its logits of all texts."""
    with console.progress(len(entrants), "quality", "engines") as progress:
        for entrant in entrants:
            if entrant.alive:
                try:
                    _read_quality(entrant, work)
                except PeerError as error:
                    entrant.end(PeerError(f"quality: {error}"))
            progress.advance(1, f"{entrant.engine} {entrant.form}")


def _read_quality(entrant: Entrant, work: Work) -> None:
    if work.windows:
        with entrant.awake("decode") as process:
            nats = process.call("nats", windows=work.windows)
        entrant.quality["perplexity"] = float(np.exp(sum(nats) / sum(len(one) - 1 for one in work.windows)))
    if work.texts:
        with entrant.awake("texts") as process:
            answer = process.call("label", texts=work.texts)
        entrant.logits = answer["labels"], answer["logits"].encode("ascii")
