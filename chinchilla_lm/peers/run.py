"""Everybody to the start: environments, the model in each one's form, processes; then the race and what came of it."""

from __future__ import annotations

import base64
import json
import shlex
import statistics
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chinchilla_lm.console import Console
from chinchilla_lm.errors import InputError
from chinchilla_lm.peers.contest import Entrant, Work, as_row, pilot, race, read_memory, read_quality
from chinchilla_lm.peers.environment import interpreter
from chinchilla_lm.peers.process import PeerError, Process
from chinchilla_lm.peers.sources import Sources
from chinchilla_lm.peers.table import BUILD_OF_LLAMA, LANGUAGE, OURS, PEERS, Peer
from chinchilla_lm.runtime.cpu import usable_cores

BENCH_LIMIT_S = 600.0


@dataclass(frozen=True, slots=True)
class Field:
    """What a race needs besides its work. windows: of text to judge a language model on. sample: texts to calibrate
    on. home: where environments are. commands: builds of llama-bench. threads: None tries what is best."""

    sources: Sources
    below: Path
    home: Path
    peers: Sequence[str]
    commands: Sequence[str]
    threads: int | None
    windows: list[list[int]]
    sample: list[list[int]]


def compete(
    field: Field,
    work: Work,
    seconds: float,
    roof: dict[str, float],
    flops: float,
    judge: Callable[[list[NDArray[np.float32]]], dict[str, float]] | None,
    console: Console,
) -> dict[str, Any]:
    """Start everybody, race, and return `rows`, `ratios` and `rounds`. judge: logits of all texts → metrics."""
    entrants = [entrant for name in (OURS, *field.peers) for entrant in _started(name, field, work, console)]
    builds = [_Build(command, form, field) for command in field.commands for form in ("Q8_0", "Q4_0")]
    try:
        if not any(entrant.process for entrant in entrants):
            raise InputError(f"nobody could be started: {entrants[0].error}; mend that first")
        rounds = race(entrants, work, seconds, console)
        for build in builds:
            build.run(work, rounds, console)
        read_memory(entrants)
        read_quality(entrants, field.windows, console)
        if judge is not None:
            _judge(entrants, work, judge)
        rows = [as_row(entrant, work, roof, flops) for entrant in entrants]
        rows += [build.row(work, roof) for build in builds]
    finally:
        for entrant in entrants:
            if entrant.process is not None:
                entrant.process.close()
    return {"rounds": rounds, "rows": rows, "ratios": list(ratios(rows))}


def _started(name: str, field: Field, work: Work, console: Console) -> Iterator[Entrant]:
    """An entrant for each format of a peer, with its process on its best number of threads, stopped."""
    peer = PEERS[name]
    forms = peer.formats.get(work.task, ())
    if not forms:
        yield Entrant(name, "-", error=f"has no way to run a model for {work.task}")
        return
    try:
        python = interpreter(name, peer, field.home, console)
    except InputError as error:
        yield Entrant(name, "-", error=str(error))
        return
    for form in forms:
        entrant = Entrant(name, form)
        console.say(f"{name} {form}: getting ready")
        try:
            path = _converted(name, peer, python, form, field, work)
            entrant.size = sum(file.stat().st_size for file in path.rglob("*") if _is_weights(file))

            def start(threads: int, path: Path = path, form: str = form) -> tuple[Process, float]:
                process = Process(python, peer.worker)
                try:
                    load_s = process.call("load", path=str(path), form=form, threads=threads, task=work.task)
                except PeerError:
                    process.close()
                    raise
                return process, load_s

            choices = [field.threads] if field.threads else _choices()
            entrant.process, entrant.threads, entrant.load_s = pilot(start, work, choices)
        except (PeerError, InputError) as error:
            entrant.fail(error)
        yield entrant


def _choices() -> list[int]:
    """Every core, or half of them: two that share one are often no faster than one."""
    cores = usable_cores()
    return sorted({cores, max(1, cores // 2)}, reverse=True)


def _is_weights(file: Path) -> bool:
    return file.suffix in (".bin", ".safetensors", ".gguf", ".onnx") and "tokenizer" not in file.name


def _converted(name: str, peer: Peer, python: str, form: str, field: Field, work: Work) -> Path:
    """The model as the peer reads it, in one format; made in a process of its own, whose memory is not the peer's."""
    source = field.sources.of(peer.source)
    if peer.source == "ready":
        return Path(source)
    target = field.below / f"{name}-{form}"
    with Process(python, peer.worker) as process:
        process.call("convert", source=source, target=str(target), form=form, sample=field.sample, task=work.task)
    return target


def _judge(
    entrants: Sequence[Entrant], work: Work, judge: Callable[[list[NDArray[np.float32]]], dict[str, float]]
) -> None:
    ends = np.cumsum([len(text) for text in work.texts])[:-1]
    for entrant in entrants:
        if entrant.error is None and entrant.logits is not None:
            labels, raw = entrant.logits
            all_of_them = np.frombuffer(base64.b64decode(raw), np.float32).reshape(-1, labels)
            entrant.quality |= judge(np.split(all_of_them, ends))


# Speeds that are compared, and whether of them more is better.
COMPARED = {
    "prefill_tokens_per_s": True,
    "decode_tokens_per_s": True,
    "decode_long_tokens_per_s": True,
    "decode_batch_tokens_per_s": True,
    "sequences_per_s": True,
    "latency_ms": False,
}


def ratios(rows: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """How many times as fast each of our rows is as each of the others, by measure."""
    for ours in rows:
        for other in rows:
            if ours["engine"] != OURS or other["engine"] == OURS:
                continue
            for key, more in COMPARED.items():
                one, two = (_value(row.get(key)) for row in (ours, other))
                if one and two:
                    yield {
                        "format": ours["format"],
                        "over_engine": other["engine"],
                        "over_format": other["format"],
                        "measure": key,
                        "value": one / two if more else two / one,
                    }


def _value(cell: Any) -> float | None:
    return cell["p50"] if isinstance(cell, dict) else cell


class _Build:
    """A llama-bench that a person has, run once for each round: it loads its own model and keeps its own time."""

    def __init__(self, command: str, form: str, field: Field) -> None:
        self.command, self.form, self.field = shlex.split(command), form, field
        self.speeds: dict[str, list[float]] = {"prefill": [], "decode": []}
        self.error: str | None = None

    def run(self, work: Work, rounds: int, console: Console) -> None:
        """Fill in the speeds, or the error."""
        try:
            if work.task != LANGUAGE:
                raise InputError("llama-bench times language models only")
            path = self._file(console, work)
            for _ in range(rounds):
                self._once(path, work)
        except (InputError, PeerError, OSError, ValueError, KeyError, subprocess.TimeoutExpired) as error:
            self.error = str(error)

    def _file(self, console: Console, work: Work) -> Path:
        name = "llama.cpp"
        target = self.field.below / f"{name}-{self.form}"
        if not target.exists():
            python = interpreter(name, PEERS[name], self.field.home, console)
            _converted(name, PEERS[name], python, self.form, self.field, work)
        return target / "model.gguf"

    def _once(self, path: Path, work: Work) -> None:
        threads = self.field.threads or usable_cores()
        options = ["-m", path, "-p", work.tokens, "-n", work.new_tokens, "-t", threads, "-r", 1, "-o", "json"]
        ran = subprocess.run([*self.command, *map(str, options)], capture_output=True, text=True, timeout=BENCH_LIMIT_S)
        if ran.returncode:
            raise PeerError(
                f"ended with status {ran.returncode}: {(ran.stderr.strip().splitlines() or ['-'])[-1][:200]}"
            )
        for one in json.loads(ran.stdout):
            if one["n_prompt"] and not one["n_gen"]:
                self.speeds["prefill"].append(float(one["avg_ts"]))
            elif one["n_gen"] and not one["n_prompt"]:
                self.speeds["decode"].append(float(one["avg_ts"]))

    def row(self, work: Work, roof: dict[str, float]) -> dict[str, Any]:
        """As the others', as far as llama-bench tells."""
        row: dict[str, Any] = {
            "engine": f"{BUILD_OF_LLAMA} ({' '.join(self.command)})",
            "format": self.form,
            "batch": 1,
            "prompt_tokens": work.tokens,
            "new_tokens": work.new_tokens,
            "error": self.error,
        }
        if self.error is None:
            row |= {f"{key}_tokens_per_s": statistics.median(found) for key, found in self.speeds.items() if found}
        return row
