"""What is timed, and what is promised of it.

A model that reads is timed in passes over one batch; a language model in whole requests, a prompt to read and tokens to
write over a cache, which is what its user waits for. Everything that decides, the cost table, the contract and the last
timing, has the same shape (`Job.shape`) and the same backend.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch

from chinchilla_lm.console import Console
from chinchilla_lm.models.batch import Batch
from chinchilla_lm.models.transformer import Transformer
from chinchilla_lm.pipeline.job import Job, Served
from chinchilla_lm.pipeline.judgement import CONTROL, ORIGINAL
from chinchilla_lm.runtime.engine.compile import draft
from chinchilla_lm.runtime.engine.native import native_format
from chinchilla_lm.runtime.engine.served import NativeForward
from chinchilla_lm.runtime.measuring.clock import DECIDING_ROUNDS, Interleaved, Ratio, Timing, speedup
from chinchilla_lm.runtime.measuring.engines import write_native
from chinchilla_lm.runtime.measuring.shape import Ids, prompt
from chinchilla_lm.runtime.measuring.torch_engine import write_torch
from chinchilla_lm.runtime.packing import packed_bytes
from chinchilla_lm.score.contract import Target, Timed
from chinchilla_lm.score.formats import FormatTimes
from chinchilla_lm.score.rounded import stand_ins
from chinchilla_lm.score.timing import LinkTimes, time_links, time_native_links

# Rounds that are not counted. A request is many passes, so one is enough.
WARM_UP, WARM_UP_REQUESTS = 3, 1
# The name of the original's second turn in a race, and up to how many bytes it is a copy of its own: a copy also shows
# what the place of weights in memory does, but a second one of a large model may not fit (assumption).
AGAIN, COPY_BYTES = "original again", 2e9
# An A/A ratio is told apart where its interval excludes 1 or is wider than this.
AA_WIDTH = 0.10


def timed_ids(job: Job) -> Ids:
    """Random token ids of the asked shape, int64 [B, T]; the time does not depend on which."""
    return prompt(job.recipe.seed, job.shape.batch, job.shape.tokens, job.card.vocabulary)


def link_times(job: Job, served: Served, seconds: float) -> LinkTimes:
    """What each link of the job's model takes of the timed work, as it is served."""
    batch, new_tokens = Batch(torch.from_numpy(timed_ids(job)).to(job.device)), job.shape.new_tokens
    if isinstance(served, NativeForward):
        return time_native_links(job.checkpoint.model, served, batch, new_tokens=new_tokens, seconds=seconds)
    return time_links(served, batch, new_tokens=new_tokens, seconds=seconds)


def format_times(
    job: Job, formats: Sequence[str], seconds: float, console: Console
) -> tuple[dict[str, FormatTimes], float]:
    """What each link of the job's model takes in each format, and what the whole takes as it is served without packing;
    both in the engine.

    One program at a time is in memory. Each format has two turns, the second in the opposite order: a machine that
    grows slower as it warms up favours none. seconds: of a turn.
    """
    plain = native_format(str(job.dtype).removeprefix("torch."))
    names = list(dict.fromkeys([plain, *formats]))
    model, turns = job.checkpoint.model, dict[str, list[LinkTimes]]()
    kind = model.config.head.kind
    with console.progress(2 * len(names), "timing", "formats") as progress:
        for name in [*names, *reversed(names)]:
            program = draft(model, name, rounded=stand_ins(model, name)).program()
            served = NativeForward(program, kind, job.threads)
            turns.setdefault(name, []).append(link_times(job, served, seconds))
            progress.advance(1, name)
    found: dict[str, FormatTimes] = {}
    for name in names:
        size, parts = packed_bytes(job.checkpoint, name)
        links = {link: _mean(turn.link_us[link] for turn in turns[name]) for link in turns[name][0].link_us}
        fixed_us = _mean(turn.fixed_us for turn in turns[name])
        found[name] = FormatTimes(links, fixed_us, parts, size - sum(parts.values()))
    total_us = found[plain].total_us
    return {name: found[name] for name in formats}, total_us


def _mean(values: Iterable[float]) -> float:
    return statistics.fmean(values)


def race(job: Job, served: Mapping[str, Served]) -> Interleaved:
    """The timed work by each model, in turn; rounds enough to decide a promise."""
    calls = {name: timed_work(job, model) for name, model in served.items()}
    warmup = WARM_UP_REQUESTS if job.shape.new_tokens else WARM_UP
    return Interleaved(calls, warmup=warmup, device=job.device, least_rounds=DECIDING_ROUNDS)


def timed_work(job: Job, served: Served) -> Callable[[], object]:
    """What is timed of one model."""
    ids, new_tokens = timed_ids(job), job.shape.new_tokens
    if isinstance(served, NativeForward):
        engine, batch = served, Batch(torch.from_numpy(ids))
        return lambda: write_native(engine.model, ids, new_tokens) if new_tokens else engine.read(batch)
    model, placed = served, Batch(torch.from_numpy(ids).to(job.device))
    return lambda: write_torch(model, ids, new_tokens) if new_tokens else _pass(model, placed)


@torch.inference_mode()
def _pass(model: Transformer, batch: Batch) -> None:
    model(batch)


class AgainstOriginal:
    """A model in a race with the original: what the contract decides on."""

    def __init__(self, job: Job, served: Mapping[str, Served], changed: str, seconds: float) -> None:
        """served: with ORIGINAL and `changed` among them. seconds: of the first stretch."""
        self._race, self._changed, self._seconds = race(job, served), changed, seconds
        self._rounds: int | None = None  # of the first stretch
        self.timings: dict[str, Timing] = {}

    def run(self, stretches: int) -> Timed:
        """See score.contract.Race."""
        if self._rounds is None:
            self.timings = self._race.run(seconds=self._seconds)
            self._rounds = len(self.timings[ORIGINAL].seconds)
            stretches -= 1
        if stretches:
            self.timings = self._race.run(rounds=self._rounds * stretches)
        return self.timed

    @property
    def timed(self) -> Timed:
        """What all rounds so far say."""
        return Timed(self.ratio(self._changed), self.timings[self._changed].latency_ms)

    def ratio(self, changed: str) -> Ratio:
        """How many times as fast one of the race is as the original."""
        return speedup(self.timings[ORIGINAL], self.timings[changed])


def _served_again(job: Job, original: Served) -> Served:
    model = job.checkpoint.model
    small = sum(parameter.numel() for parameter in model.parameters()) * job.dtype.itemsize <= COPY_BYTES
    return job.serve(model) if small else original


class LastTiming:
    """All models of a finished job in one race, timed until the target is decided. The original is in it twice; where
    there is a control, the original trained further, that is the second: other weights in as many and as large matrices
    take as long, and a race of fewer models has more rounds."""

    def __init__(self, job: Job, served: Mapping[str, Served], target: Target, changed: str, seconds: float) -> None:
        self.target, self._changed = target, changed
        self._copy = CONTROL if CONTROL in served else AGAIN
        copied = {} if self._copy in served else {AGAIN: _served_again(job, served[ORIGINAL])}
        self._race = AgainstOriginal(job, {**served, **copied}, changed, seconds)
        self.timed = target.settle(self._race)
        self.timings = self._race.timings

    @cached_property
    def aa(self) -> Ratio:
        """The original against itself, or against the control, which is built alike: 1, but for what this machine does
        to a timing."""
        return self._race.ratio(self._copy)

    def against(self, other: str) -> Ratio:
        """How many times as fast the result is as another model of the race."""
        return speedup(self.timings[other], self.timings[self._changed])

    def note(self, report: dict[str, Any]) -> list[str]:
        """Put the A/A ratio and the latency into the report, and hold it to the promise: a speed that the interval does
        not reach at its bad end fails the verdict. Returns what was added to its notes, to be said."""
        ratio, latency = self.timed.speedup, self.timed.latency_ms
        report["speedup"]["aa"] = {**self.aa.to_dict(), **({"against": CONTROL} if self._copy == CONTROL else {})}
        report["speedup"]["latency"] = {**latency.to_dict(), "target": self.target.latency_ms}
        notes: list[str] = []
        if not self.target.holds(self.timed):
            line = (
                f"{self.target.words()} was asked for, which the bad end of the last timing misses: {ratio.value:.2f}× "
                f"[{ratio.low:.2f}, {ratio.high:.2f}], {latency.value:.2f} ms [{latency.low:.2f}, {latency.high:.2f}]"
            )
            report["verdict"], report["headline"] = "failed", f"{line}. {report['headline']}"
            notes.append(line)
        if not self.aa.low <= 1 <= self.aa.high or self.aa.high - self.aa.low > AA_WIDTH:
            itself = "the control, which is built alike," if self._copy == CONTROL else "itself"
            notes.append(
                f"against {itself} the original was timed as {self.aa.value:.2f}× [{self.aa.low:.2f}, "
                f"{self.aa.high:.2f}] as fast (A/A): other ratios here are no surer; time again on a quieter machine"
            )
        report["notes"] += notes
        return notes
