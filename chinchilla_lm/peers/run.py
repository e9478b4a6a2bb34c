"""Everybody to the start: environments, the model in each one's form, processes; then the race and what came of it."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chinchilla_lm.console import Console
from chinchilla_lm.errors import InputError
from chinchilla_lm.peers.contest import race, read_memory, read_quality
from chinchilla_lm.peers.entrant import Entrant, pilot
from chinchilla_lm.peers.environment import interpreter
from chinchilla_lm.peers.leads import form_text, leads
from chinchilla_lm.peers.llama_bench import LlamaBench
from chinchilla_lm.peers.process import PeerError, Process
from chinchilla_lm.peers.rows import as_row, ask_roof, build_row, ratios
from chinchilla_lm.peers.sources import Sources
from chinchilla_lm.peers.table import BUILD_OF_LLAMA, LANGUAGE, LLAMA_FORMS, OURS, PEERS, Peer
from chinchilla_lm.peers.work import Work
from chinchilla_lm.runtime.cpu import usable_cores
from chinchilla_lm.runtime.engine.demand import looked_up_bytes
from chinchilla_lm.runtime.engine.packed import read_packed
from chinchilla_lm.runtime.measuring.roof import Roof
from chinchilla_lm.runtime.measuring.roofline import looked_up_share, size_of


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
    roof: Roof,
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
        builds = [_build(command, form, field, work, console) for command in field.commands for form in LLAMA_FORMS]
        _tell_apart(builds)
        if not any(entrant.alive for entrant in entrants):
            raise InputError(f"nobody could be started: {entrants[0].error}; mend that first")
        console.say("measuring the machine")
        ask_roof(entrants, builds, work, roof)
        rounds = race(entrants, builds, work, seconds, console)
        roof.look_again()
        read_memory(entrants)
        read_quality(entrants, work, console)
        if judge is not None:
            _judge(entrants, work, judge)
        rows = [as_row(one, work, roof, flops["ours" if one.engine == OURS else "theirs"]) for one in entrants]
        rows += [build_row(build, rows, work, roof) for build in builds]
        if not any(row.get("seconds") for row in rows):
            raise InputError(f"nobody reached the end of the race: {entrants[0].error}; mend that first")
    finally:
        for entrant in entrants:
            entrant.close()
    found = list(ratios(rows))
    return {"rounds": rounds, "rows": rows, "ratios": found, "leads": leads(rows, found)}


def _started(name: str, field: Field, work: Work, console: Console) -> Iterator[Entrant]:
    """An entrant for each format of a peer, and of its keys and values, with its processes stopped."""
    peer = PEERS[name]
    forms, caches = peer.formats.get(work.task, ()), peer.caches
    if name == OURS and field.ours.form is not None:
        forms, caches = (field.ours.form,), {}
    if not forms:
        yield Entrant(name, "-", error=f"has no way to run a model for {work.task}")
        return
    try:
        python = interpreter(name, peer, field.home, console)
    except InputError as error:
        yield Entrant(name, "-", error=str(error))
        return
    for form in forms:
        entrants = [Entrant(name, form, cache) for cache in _caches(form, caches, work)]
        try:
            path, note = _converted(name, peer, python, form, field, work)
        except (PeerError, InputError) as error:
            entrants[0].fail(error)
            yield entrants[0]
            continue
        for entrant in entrants:
            console.say(f"{name} {form_text(form, entrant.cache)}: getting ready")
            entrant.note = note
            try:
                _start(entrant, peer, python, path, field, work)
            except (PeerError, InputError) as error:
                entrant.fail(error)
            yield entrant


def _caches(form: str, caches: Mapping[str, tuple[str, ...]], work: Work) -> tuple[str, ...]:
    return caches.get(form, ("",)) if work.task == LANGUAGE else ("",)


def _start(entrant: Entrant, peer: Peer, python: str, path: Path, field: Field, work: Work) -> None:
    """Give it its processes, and what its row says of its weights. Raises PeerError where it cannot be started."""
    words = {"path": str(path), "form": entrant.form, "task": work.task, "room": work.room, "cache": entrant.cache}

    def start(threads: int) -> tuple[Process, float]:
        process = Process(python, peer.worker)
        try:
            load_s = process.call("load", threads=threads, **words)
        except BaseException:
            process.close()
            raise
        return process, load_s

    choices = [field.threads] if field.threads else _choices()
    entrant.processes, entrant.threads, entrant.load_s = pilot(start, work, choices)
    model = (field.ours if entrant.engine == OURS else field.theirs).checkpoint.model
    with entrant.awake(work.measures[0]) as process:
        if work.task == LANGUAGE:
            entrant.cache = process.call("cache")
        # Of the file, except where that is read in another dtype than it has.
        entrant.size = process.call("weights") if peer.source == "ready" else _size(path)
    entrant.bits = 8 * entrant.size / size_of(model).parameters
    entrant.read = entrant.size - _looked_up(entrant.engine, path, field, entrant.size)


def _choices() -> list[int]:
    """Every core, or half of them: two that share one are often no faster than one."""
    cores = usable_cores()
    return sorted({cores, max(1, cores // 2)}, reverse=True)


def _is_weights(file: Path) -> bool:
    return file.suffix in (".bin", ".safetensors", ".gguf", ".onnx") and "tokenizer" not in file.name


def _size(path: Path) -> int:
    """Bytes of the files of weights."""
    return sum(file.stat().st_size for file in path.rglob("*") if _is_weights(file))


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


def _build(command: str, form: str, field: Field, work: Work, console: Console) -> LlamaBench:
    """A llama-bench with the file that llama.cpp races with, made where it does not."""
    build, name = LlamaBench(command, form, work), "llama.cpp"
    console.say(f"{command} {form}: getting ready")
    try:
        if work.task != LANGUAGE:
            raise InputError("llama-bench times language models only")
        path = _folder(field, name, form) / "model.gguf"
        if not path.exists():
            python = interpreter(name, PEERS[name], field.home, console)
            _converted(name, PEERS[name], python, form, field, work)
        build.prepare(path, [field.threads] if field.threads else _choices())
        model = field.theirs.checkpoint.model
        build.bits = 8 * build.size / size_of(model).parameters
        build.read = build.size - round(build.size * looked_up_share(model))
    except (PeerError, InputError) as error:
        build.error = str(error)
    return build


def _folder(field: Field, name: str, form: str) -> Path:
    return field.below / f"{name}-{form}".replace(" ", "-")


def _converted(name: str, peer: Peer, python: str, form: str, field: Field, work: Work) -> tuple[Path, str]:
    """The model as the peer reads it, in one format, and what is to be said of it; made in a process of its own, whose
    memory is not the peer's."""
    source = (field.ours if name == OURS else field.theirs).of(peer.source)
    if peer.source == "ready" or (name == OURS and field.ours.form is not None):
        return Path(source), ""
    target = _folder(field, name, form)
    with Process(python, peer.worker) as process:
        words = {"source": source, "target": str(target), "sample": field.sample}
        said: str | None = process.call("convert", form=form, task=work.task, **words)
    return target, said or ""


def _judge(
    entrants: Sequence[Entrant], work: Work, judge: Callable[[list[NDArray[np.float32]]], dict[str, float]]
) -> None:
    ends = np.cumsum([len(text) for text in work.texts])[:-1]
    for entrant in entrants:
        if entrant.error is None and entrant.logits is not None:
            labels, raw = entrant.logits
            all_of_them = np.frombuffer(base64.b64decode(raw), np.float32).reshape(-1, labels)
            entrant.quality |= judge(np.split(all_of_them, ends))
