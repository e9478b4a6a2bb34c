"""Everybody to the start: environments, the model in each one's form, processes; then the race and what came of it."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chinchilla_lm.console import Console
from chinchilla_lm.errors import InputError
from chinchilla_lm.peers.contest import Entrant, as_row, pilot, race, read_memory, read_quality
from chinchilla_lm.peers.environment import interpreter
from chinchilla_lm.peers.leads import leads
from chinchilla_lm.peers.llama_bench import LlamaBench
from chinchilla_lm.peers.process import PeerError, Process
from chinchilla_lm.peers.sources import Sources
from chinchilla_lm.peers.table import BUILD_OF_LLAMA, LANGUAGE, OURS, PEERS, Peer
from chinchilla_lm.peers.work import Work
from chinchilla_lm.runtime.cpu import usable_cores
from chinchilla_lm.runtime.engine.demand import looked_up_bytes
from chinchilla_lm.runtime.engine.packed import read_packed
from chinchilla_lm.runtime.measuring.roofline import looked_up_share

# Its fastest at 8 and at 4 bits: which of the two is, depends on the build.
LLAMA_BENCH_FORMS = ("Q8_0", "Q4_0", "Q4_1")


@dataclass(frozen=True, slots=True)
class Field:
    """What a race needs besides its work. ours: the model that we run; theirs: the one that all others do, which may
    be what ours was made from. sample: texts to calibrate on. home: where environments are. commands: builds of
    llama-bench. threads: None tries what is best."""

    ours: Sources
    theirs: Sources
    below: Path
    home: Path
    peers: Sequence[str]
    commands: Sequence[str]
    threads: int | None
    sample: list[list[int]]


def compete(
    field: Field,
    work: Work,
    seconds: float,
    roof: dict[str, float],
    flops: dict[str, float],
    judge: Callable[[list[NDArray[np.float32]]], dict[str, float]] | None,
    console: Console,
) -> dict[str, Any]:
    """Start everybody, race, and return `rows`, `ratios` and `rounds`. flops: of a prompt or of all texts, through
    `ours` and `theirs`. judge: logits of all texts → metrics. Raises InputError where nobody reaches the end."""
    entrants: list[Entrant] = []
    try:
        for name in (OURS, *field.peers):
            for entrant in _started(name, field, work, console):
                entrants.append(entrant)
        builds = [
            _build(command, form, field, work, console) for command in field.commands for form in LLAMA_BENCH_FORMS
        ]
        _tell_apart(builds)
        if not any(entrant.process for entrant in entrants):
            raise InputError(f"nobody could be started: {entrants[0].error}; mend that first")
        rounds = race(entrants, builds, work, seconds, console)
        read_memory(entrants)
        read_quality(entrants, work.windows, console)
        if judge is not None:
            _judge(entrants, work, judge)
        rows = [as_row(one, work, roof, flops["ours" if one.engine == OURS else "theirs"]) for one in entrants]
        rows += [_build_row(build, rows, looked_up_share(field.theirs.checkpoint.model), roof) for build in builds]
        if not any(row.get("seconds") for row in rows):
            raise InputError(f"nobody reached the end of the race: {entrants[0].error}; mend that first")
    finally:
        for entrant in entrants:
            if entrant.process is not None:
                entrant.process.close()
    found = list(ratios(rows))
    return {"rounds": rounds, "rows": rows, "ratios": found, "leads": leads(rows, found)}


def _started(name: str, field: Field, work: Work, console: Console) -> Iterator[Entrant]:
    """An entrant for each format of a peer, with its process on its best number of threads, stopped."""
    peer = PEERS[name]
    forms = peer.formats.get(work.task, ())
    if name == OURS and field.ours.form is not None:
        forms = (field.ours.form,)
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

            def start(threads: int, path: Path = path, form: str = form) -> tuple[Process, float]:
                process = Process(python, peer.worker)
                try:
                    load_s = process.call(
                        "load", path=str(path), form=form, threads=threads, task=work.task, room=work.room
                    )
                except BaseException:
                    process.close()
                    raise
                return process, load_s

            choices = [field.threads] if field.threads else _choices()
            entrant.process, entrant.threads, entrant.load_s = pilot(start, work, choices)
            entrant.size = _size(path, peer, entrant.process)
            entrant.read = entrant.size - _looked_up(name, path, field, entrant.size)
        except (PeerError, InputError) as error:
            entrant.fail(error)
        yield entrant


def _choices() -> list[int]:
    """Every core, or half of them: two that share one are often no faster than one."""
    cores = usable_cores()
    return sorted({cores, max(1, cores // 2)}, reverse=True)


def _is_weights(file: Path) -> bool:
    return file.suffix in (".bin", ".safetensors", ".gguf", ".onnx") and "tokenizer" not in file.name


def _size(path: Path, peer: Peer, process: Process) -> int:
    """Bytes of the weights as they are run: of the file, except where that is read in another dtype than it has."""
    if peer.source != "ready":
        return sum(file.stat().st_size for file in path.rglob("*") if _is_weights(file))
    process.go()
    size: int = process.call("weights")
    process.stop()
    return size


def _tell_apart(builds: Sequence[LlamaBench]) -> None:
    """Two builds with the same options are named by their whole commands."""
    names = [{other.name for other in builds if other.text != build.text} for build in builds]
    for build, others in zip(builds, names, strict=True):
        if build.name in others:
            build.name = f"{BUILD_OF_LLAMA} ({build.text})"


def _looked_up(name: str, path: Path, field: Field, size: int) -> int:
    """Bytes of tables that decoding only looks up: ours by its header, others' as if all weights had one format."""
    if name == OURS:
        return looked_up_bytes(read_packed(path)[0].header)
    return round(size * looked_up_share(field.theirs.checkpoint.model))


def _build_row(
    build: LlamaBench, rows: Sequence[dict[str, Any]], looked_up: float, roof: dict[str, float]
) -> dict[str, Any]:
    """With the perplexity of llama.cpp on the same file, where that was in the race: a build of llama-bench tells
    none."""
    row = build.row(roof, looked_up)
    same = [one for one in rows if (one["engine"], one["format"]) == ("llama.cpp", build.form) and one.get("metrics")]
    return row | ({"metrics": same[0]["metrics"], "metrics_of": "llama.cpp"} if same and "seconds" in row else {})


def _build(command: str, form: str, field: Field, work: Work, console: Console) -> LlamaBench:
    """A llama-bench with the file that llama.cpp races with, made where it does not."""
    build, name = LlamaBench(command, form, work), "llama.cpp"
    console.say(f"{command} {form}: getting ready")
    try:
        if work.task != LANGUAGE:
            raise InputError("llama-bench times language models only")
        path = field.below / f"{name}-{form}" / "model.gguf"
        if not path.exists():
            python = interpreter(name, PEERS[name], field.home, console)
            _converted(name, PEERS[name], python, form, field, work)
        build.prepare(path, [field.threads] if field.threads else _choices())
    except (PeerError, InputError) as error:
        build.error = str(error)
    return build


def _converted(name: str, peer: Peer, python: str, form: str, field: Field, work: Work) -> Path:
    """The model as the peer reads it, in one format; made in a process of its own, whose memory is not the peer's."""
    source = (field.ours if name == OURS else field.theirs).of(peer.source)
    if peer.source == "ready" or (name == OURS and field.ours.form is not None):
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


def ratios(rows: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """How many times as fast each of our rows is as each of the others, by measure: the median within rounds, and the
    quartiles."""
    for ours in rows:
        for other in rows:
            if ours["engine"] != OURS or other["engine"] == OURS:
                continue
            for measure, mine in ours.get("seconds", {}).items():
                theirs = other.get("seconds", {}).get(measure)
                if not theirs:
                    continue
                together = min(len(mine), len(theirs))
                found = np.array(theirs[:together]) / np.array(mine[:together])
                yield {
                    "format": ours["format"],
                    "over_engine": other["engine"],
                    "over_format": other["format"],
                    "measure": measure,
                    "value": float(np.median(found)),
                    "spread": [float(one) for one in np.quantile(found, [0.25, 0.75])],
                }
