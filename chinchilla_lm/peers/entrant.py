"""One program with the model in one format: its processes, what it is asked, and what was measured of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np

from chinchilla_lm.peers.process import PeerError, Process
from chinchilla_lm.peers.table import LANGUAGE
from chinchilla_lm.peers.trials import best_threads
from chinchilla_lm.peers.work import SHORT, TRIAL_TOKENS, Ids, Work, some_of


class Prompts:
    """Random token ids that never come twice."""

    def __init__(self, vocabulary: int) -> None:
        self._drawn, self._vocabulary = np.random.default_rng(0), vocabulary

    def __call__(self, rows: int, tokens: int) -> Ids:
        found: Ids = self._drawn.integers(min(5, self._vocabulary - 1), self._vocabulary, (rows, tokens)).tolist()
        return found


@dataclass(frozen=True, slots=True)
class Answer:
    """seconds: of one token, step, pass or text; see Work. singles: of each step of `decode`, or text alone."""

    seconds: float
    singles: list[float] = field(default_factory=list)


@dataclass(eq=False)
class Entrant:
    """Its processes, by their number of threads, are stopped while nobody is asked."""

    engine: str
    form: str
    cache: str = ""  # of keys and values: what it was asked for, then what it has
    processes: dict[int, Process] = field(default_factory=dict)
    threads: dict[str, int] = field(default_factory=dict)  # by measure
    load_s: float = 0.0
    size: int = 0  # bytes of its weights, as it runs them
    read: int = 0  # of these, what a step of decoding reads: all but tables that are only looked up
    bits: float | None = None  # of a weight, all counted: scales, head, embeddings
    peak_mb: float | None = None
    note: str = ""
    error: str | None = None
    seconds: dict[str, list[float]] = field(default_factory=dict)  # by measure
    singles: list[float] = field(default_factory=list)
    quality: dict[str, float] = field(default_factory=dict)
    logits: tuple[int, bytes] | None = None  # of all texts: labels and base64

    @property
    def alive(self) -> bool:
        """Whether it can be asked."""
        return bool(self.processes)

    @contextmanager
    def awake(self, measure: str) -> Iterator[Process]:
        """The process that does a measure, off its stop."""
        process = self.processes[self.threads[measure]]
        process.go()
        yield process
        process.stop()

    def turn(self, measure: str, work: Work, prompts: Prompts, round_: int) -> None:
        """One round of a measure; a failure ends its race."""
        try:
            with self.awake(measure) as process:
                answer = ask(process, measure, work, prompts, round_)
        except PeerError as error:
            self.fail(error)
            return
        self.seconds.setdefault(measure, []).append(answer.seconds)
        self.singles += answer.singles

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
        self.close()

    def close(self) -> None:
        """End its processes."""
        for process in self.processes.values():
            process.close()
        self.processes.clear()


def ask(process: Process, measure: str, work: Work, prompts: Prompts, round_: int = 0) -> Answer:
    """Have a measure done once, after a little of the same that wakes the process and is not timed."""
    if work.task == LANGUAGE:
        rows, tokens, new = work.prompt(measure)
        process.call("write", prompts=prompts(rows, min(tokens, SHORT)), new=4)
        first, *steps = process.call("write", prompts=prompts(rows, tokens), new=new)
        if measure == "prefill":
            return Answer(first)
        return Answer(sum(steps) / len(steps), steps if measure == "decode" else [])
    some = work.alone(round_)
    process.call("single", texts=some[:5])
    if measure == "single":
        found = process.call("single", texts=some)
        return Answer(float(np.median(found)), found)
    return Answer(process.call("label", texts=work.raced)["seconds"])


def pilot(
    start: Callable[[int], tuple[Process, float]], work: Work, choices: Sequence[int]
) -> tuple[dict[int, Process], dict[str, int], float]:
    """A stopped process for each number of threads that is the best of a measure: (processes by their number, numbers
    by measure, seconds to load).

    A number that does not work is passed over. Raises PeerError where none does.
    """
    trials = _Trials(start, work)
    kept: dict[int, Process] = {}
    try:
        for threads in choices:
            trials.begin(threads)
        chosen = {measure: trials.best(measure) for measure in work.measures if measure not in work.alike}
        chosen |= {measure: chosen[other] for measure, other in work.alike.items()}
        kept = {threads: trials.processes[threads] for threads in chosen.values()}
        return kept, chosen, trials.load_s[max(kept)]
    finally:
        for threads, process in trials.processes.items():
            if threads not in kept:
                process.close()


class _Trials:
    """Processes of one program on different numbers of threads, and what is tried on them."""

    def __init__(self, start: Callable[[int], tuple[Process, float]], work: Work) -> None:
        self._start, self._work = start, replace(work, texts=some_of(work.texts, TRIAL_TOKENS))
        self._prompts = Prompts(work.vocabulary)
        self._problem = PeerError("there is no number of threads to try")
        self.processes: dict[int, Process] = {}
        self.load_s: dict[int, float] = {}

    def begin(self, threads: int) -> None:
        try:
            process, self.load_s[threads] = self._start(threads)
        except PeerError as error:
            self._problem = error
            return
        self.processes[threads] = process
        process.stop()
        for measure in self._work.measures:  # also warms up
            self._once(threads, measure)

    def best(self, measure: str) -> int:
        """Raises PeerError where no process is left."""
        if not self.processes:
            raise self._problem
        found = best_threads(list(self.processes), lambda threads: self._once(threads, measure))
        if found not in self.processes:
            return self.best(measure)
        return found

    def _once(self, threads: int, measure: str) -> float:
        """Seconds; infinite for a process that failed, which is closed."""
        process = self.processes.get(threads)
        if process is None:
            return math.inf
        try:
            process.go()
            taken = ask(process, measure, self._work, self._prompts).seconds
            process.stop()
        except PeerError as error:
            self._problem = error
            self.processes.pop(threads).close()
            return math.inf
        return taken
