"""The race itself: everybody who could be started, in turn, round by round, each on prompts that nobody has seen."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from chinchilla_lm.console import Console
from chinchilla_lm.peers.llama_bench import LlamaBench
from chinchilla_lm.peers.process import PeerError, Process
from chinchilla_lm.peers.table import LANGUAGE
from chinchilla_lm.peers.work import SEQUENCES, SHORT, SINGLES, STEPS, Ids, Work
from chinchilla_lm.runtime.measuring.clock import orders

MIN_ROUNDS = 3


@dataclass(eq=False)
class Entrant:
    """One program with the model in one format."""

    engine: str
    form: str
    process: Process | None = None
    threads: int = 0
    load_s: float = 0.0
    size: int = 0  # bytes of its weights, as it runs them
    read: int = 0  # of these, what a step of decoding reads: all but tables that are only looked up
    peak_mb: float | None = None
    error: str | None = None
    seconds: dict[str, list[float]] = field(default_factory=dict)  # of one token, step, pass or text; see Work
    singles: list[float] = field(default_factory=list)  # of one text alone, or of one step of `decode`
    quality: dict[str, float] = field(default_factory=dict)
    logits: tuple[int, bytes] | None = None

    def forget(self) -> None:
        """Nothing has been measured."""
        self.seconds.clear()
        self.singles.clear()

    def fail(self, error: Exception) -> None:
        """Out of the race, with what it said."""
        self.end(error)
        self.forget()

    def end(self, error: Exception) -> None:
        """No longer asked; what was measured stays."""
        self.error = str(error)
        if self.process is not None:
            self.process.close()
            self.process = None


class Prompts:
    """Random token ids that never come twice."""

    def __init__(self, vocabulary: int) -> None:
        self._drawn, self._vocabulary = np.random.default_rng(0), vocabulary

    def __call__(self, rows: int, tokens: int) -> Ids:
        found: Ids = self._drawn.integers(min(5, self._vocabulary - 1), self._vocabulary, (rows, tokens)).tolist()
        return found


def pilot(
    start: Callable[[int], tuple[Process, float]], work: Work, choices: Sequence[int]
) -> tuple[Process, int, float]:
    """The number of threads that is fastest, with a stopped process on it: (process, threads, seconds to load).

    A number that does not work is passed over. Raises PeerError where none does.
    """
    prompts = Prompts(work.vocabulary)
    best: tuple[float, Process, int, float] | None = None
    said = PeerError("there is no number of threads to try")
    started: list[Process] = []
    try:
        for threads in choices:
            try:
                process, load_s = start(threads)
                started.append(process)
                taken = min(_trial(process, work, prompts) for _ in range(2))
                process.stop()
            except PeerError as error:
                said = error
                continue
            if best is None or taken < best[0]:
                best = (taken, process, threads, load_s)
    except BaseException:
        best = None
        raise
    finally:
        for process in started:
            if best is None or process is not best[1]:
                process.close()
    if best is None:
        raise said
    return best[1:]


def _trial(process: Process, work: Work, prompts: Prompts) -> float:
    if work.task == LANGUAGE:
        return sum(process.call("write", prompts=prompts(1, work.tokens), new=STEPS))
    return float(process.call("label", texts=work.texts[:256])["seconds"])


def race(
    entrants: Sequence[Entrant], builds: Sequence[LlamaBench], work: Work, seconds: float, console: Console
) -> int:
    """Rounds until the time is spent, or nobody is left; fills in what was measured. Returns how many rounds there
    were, besides the first one, which warms up and does not count."""
    prompts = Prompts(work.vocabulary)
    turns = orders([str(index) for index in range(len(entrants))])
    begun, rounds = time.monotonic(), -1
    with console.progress(0, "race", "turns") as progress:
        while rounds < MIN_ROUNDS or time.monotonic() - begun < seconds:
            for measure in work.measures:
                for entrant in (entrants[int(index)] for index in next(turns)):
                    if entrant.process is None:
                        continue
                    try:
                        entrant.process.go()
                        _measure(entrant, measure, work, prompts, max(rounds, 0))
                        entrant.process.stop()
                    except PeerError as error:
                        entrant.fail(error)
                    progress.advance(1, f"{entrant.engine} {entrant.form}: {measure}")
            for build in builds:
                if build.alive and rounds >= 0:
                    try:
                        build.turn()
                    except PeerError as error:
                        build.error = str(error)
                    progress.advance(1, f"llama-bench {build.form}")
            if rounds < 0:
                begun = time.monotonic()
                for entrant in entrants:
                    entrant.forget()
            rounds += 1
            if not any(entrant.process for entrant in entrants):
                break
    return rounds


def _measure(entrant: Entrant, measure: str, work: Work, prompts: Prompts, round_: int) -> None:
    process = entrant.process
    assert process is not None
    if work.task == LANGUAGE:
        process.call("write", prompts=prompts(1, SHORT), new=4)  # awake again, not timed
        rows, tokens, new = work.prompt(measure)
        first, *steps = process.call("write", prompts=prompts(rows, tokens), new=new)
        if measure == "decode":
            entrant.singles += steps
        entrant.seconds.setdefault(measure, []).append(first if measure == "prefill" else sum(steps) / len(steps))
        return
    some = [work.texts[(round_ * SINGLES + i) % len(work.texts)] for i in range(SINGLES)]
    process.call("single", texts=some[:5])
    if measure == "single":
        found = process.call("single", texts=some)
        entrant.singles += found
        entrant.seconds.setdefault(measure, []).append(float(np.median(found)))
        return
    answer = process.call("label", texts=work.texts)
    entrant.logits = (answer["labels"], answer["logits"].encode("ascii"))
    entrant.seconds.setdefault(measure, []).append(answer["seconds"])


def read_memory(entrants: Sequence[Entrant]) -> None:
    """Highest resident memory of each, as of now: before anybody is asked for the logits of whole texts."""
    for entrant in entrants:
        if entrant.process is None:
            continue
        try:
            entrant.process.go()
            entrant.peak_mb = entrant.process.call("memory")
            entrant.process.stop()
        except PeerError as error:
            entrant.end(PeerError(f"after the race: {error}"))


def read_quality(entrants: Sequence[Entrant], windows: Ids, console: Console) -> None:
    """Perplexity of each entrant on windows of token ids."""
    with console.progress(len(entrants), "quality", "engines") as progress:
        for entrant in entrants:
            if entrant.process is not None and windows:
                try:
                    entrant.process.go()
                    nats = entrant.process.call("nats", windows=windows)
                    entrant.quality["perplexity"] = float(np.exp(sum(nats) / sum(len(one) - 1 for one in windows)))
                    entrant.process.stop()
                except PeerError as error:
                    entrant.end(PeerError(f"quality: {error}"))
            progress.advance(1, f"{entrant.engine} {entrant.form}")


def as_row(entrant: Entrant, work: Work, roof: dict[str, float], flops: float) -> dict[str, Any]:
    """One row of `chinchilla bench --json`. roof: `bandwidth_gb_s` and `gemm_gflops`. flops: of a prompt, or of all
    texts."""
    row: dict[str, Any] = {
        "engine": entrant.engine,
        "format": entrant.form,
        "batch": 1,
        "prompt_tokens": work.tokens if work.task == LANGUAGE else None,
        "new_tokens": work.new_tokens if work.task == LANGUAGE else 0,
        "error": entrant.error,
    }
    if not all(entrant.seconds.get(measure) for measure in work.measures):
        return row
    per = {
        "prefill": ("prefill_tokens_per_s", work.tokens),
        "decode": ("decode_tokens_per_s", 1),
        "long": ("decode_long_tokens_per_s", 1),
        "batch": ("decode_batch_tokens_per_s", SEQUENCES),
        "texts": ("sequences_per_s", len(work.texts)),
    }
    spread = {}
    for measure, (key, amount) in per.items():
        if measure in entrant.seconds:
            rates = amount / np.array(entrant.seconds[measure])
            row[key] = float(np.median(rates))
            spread[key] = [float(value) for value in np.quantile(rates, [0.25, 0.75])]
    row["latency_ms"] = _percentiles(entrant.singles)
    if work.task == LANGUAGE:
        row["first_token_ms"] = _percentiles(entrant.seconds["prefill"])
    shares = {}
    if "decode_tokens_per_s" in row and roof.get("bandwidth_gb_s"):
        shares["bandwidth_share"] = entrant.read * row["decode_tokens_per_s"] / 1e9 / roof["bandwidth_gb_s"]
    if roof.get("gemm_gflops"):
        passed = float(np.median(entrant.seconds["prefill" if work.task == LANGUAGE else "texts"]))
        shares["gemm_share"] = flops / 1e9 / passed / roof["gemm_gflops"]
    return row | {
        "seconds": entrant.seconds,
        "spread": spread,
        "threads": entrant.threads,
        "peak_mb": entrant.peak_mb,
        "load_s": entrant.load_s,
        "bytes": entrant.size,
        "decode_bytes": entrant.read if work.task == LANGUAGE else None,
        "metrics": entrant.quality,
        "roofline": shares,
    }


def _percentiles(seconds: list[float]) -> dict[str, float]:
    """`{"p50", "p95"}` in milliseconds."""
    return {f"p{p}": 1e3 * float(np.percentile(seconds, p)) for p in (50, 95)}
