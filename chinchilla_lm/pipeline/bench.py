"""How fast a model is, alone or beside another one, in one interleaved run."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from chinchilla_lm.console import Console
from chinchilla_lm.errors import InputError
from chinchilla_lm.evaluate.speed import Entry, measure
from chinchilla_lm.pipeline.held import certificate_of
from chinchilla_lm.results import BenchResult
from chinchilla_lm.runtime.cpu import usable_cores
from chinchilla_lm.runtime.device import resolve_device
from chinchilla_lm.runtime.engine.packed import is_packed
from chinchilla_lm.runtime.loading import EngineWarning, engine_serves
from chinchilla_lm.runtime.measuring import machine
from chinchilla_lm.runtime.measuring.engines import NATIVE, TORCH, EngineSpec, open_engine
from chinchilla_lm.runtime.measuring.footprint import Footprint, measure_footprint
from chinchilla_lm.runtime.measuring.roof import Roof
from chinchilla_lm.runtime.measuring.shape import Shape
from chinchilla_lm.runtime.torch_backend import dtype_of, set_threads

# Texts a batch: one request of a language model, a batch of short texts for what only reads.
DEFAULT_BATCH = {True: 1, False: 32}
DEFAULT_TOKENS = 128
DEFAULT_NEW_TOKENS = 64


@dataclass(frozen=True, slots=True)
class Asked:
    """What to race: the flags of `chinchilla bench` without peers."""

    model: str
    against: str | None = None
    task: str | None = None
    batch: int | None = None
    tokens: int | None = None
    new_tokens: int | None = None
    seconds: float = 20.0
    memory: bool = True
    backend: str = "auto"
    device: str = "auto"
    dtype: str = "auto"
    threads: int | None = None
    cache: str = "auto"


def bench(asked: Asked, console: Console) -> BenchResult:
    """Race, and return rows, ratios and the roof. Raises InputError for a shape that a model cannot take."""
    # torch knows no quota of a container: on more threads than that it would be slow, and the roof too low.
    set_threads(min(torch.get_num_threads(), usable_cores()) if asked.threads is None else asked.threads)
    device = resolve_device(asked.device)
    entries, ours = _entries(asked, device, console)
    held = {entry.name: certificate_of(entry.name, console) for entry in entries}
    shape = _shape(asked, entries, console)
    roof = _roof(device, console)
    footprints = _footprints(entries, shape, console) if asked.memory else [None] * len(entries)
    console.say(f"racing {len(entries)} for {asked.seconds:g} s")
    result = measure(entries, ours, shape, asked.seconds, roof, footprints)
    return {
        **result,
        "machine": machine.describe(),
        "roofline": None if roof is None else roof.to_dict(),
        "certificates": {name: None if one is None else one.model_dump() for name, one in held.items()},
    }


def _entries(asked: Asked, device: torch.device, console: Console) -> tuple[list[Entry], int]:
    """The original, if there is one, and the model; and which of them is the model."""
    if asked.backend == "native" and device.type != "cpu":
        raise InputError(f"backend native runs on the CPU, not on {device}; pass --device cpu")
    with console.warned(EngineWarning):
        native = asked.backend == "native" or (asked.backend == "auto" and engine_serves(str(device)))
    names = ([] if asked.against is None else [asked.against]) + [asked.model]
    if native and asked.dtype != "auto" and all(is_packed(name) for name in names):
        raise InputError(f"dtype {asked.dtype} is not that of a packed model; leave --dtype away")
    dtype = str(dtype_of(asked.dtype, device)).removeprefix("torch.")
    entries = []
    for name in names:
        spec = EngineSpec(NATIVE if native else TORCH, name, dtype, str(device), asked.task, asked.threads, asked.cache)
        entries.append(Entry(name, spec, open_engine(spec)))
    demands = [entry.engine.demand for entry in entries]
    if len({(one.causal, one.kind) for one in demands}) > 1:
        kinds = [f"{entry.name} is for {entry.engine.demand.kind}" for entry in entries]
        raise InputError(f"{' and '.join(kinds)}; only models for one task compare; pass --task")
    return entries, len(entries) - 1


def _shape(asked: Asked, entries: list[Entry], console: Console) -> Shape:
    demand = entries[-1].engine.demand
    writes = demand.kind == "language-modeling" and demand.causal
    if not writes and asked.new_tokens is not None:
        console.warn(f"--new-tokens {asked.new_tokens} is ignored: this model, for {demand.kind}, writes none")
    new = (DEFAULT_NEW_TOKENS if asked.new_tokens is None else asked.new_tokens) if writes else 0
    batch = DEFAULT_BATCH[writes] if asked.batch is None else asked.batch
    positions = min(entry.engine.demand.positions for entry in entries)
    tokens = min(DEFAULT_TOKENS, max(1, positions - new)) if asked.tokens is None else asked.tokens
    for flag, value in (("batch", batch), ("tokens", tokens), ("new-tokens", new if writes else 1)):
        if value < 1:
            raise InputError(f"{flag} {value} is not 1 or more; pass --{flag} 1")
    if not 0 < asked.seconds < math.inf:
        raise InputError(f"seconds {asked.seconds} is not a number above 0; pass --seconds 20")
    if tokens + new > positions:
        wanted = f"{tokens} + {new} tokens" if new else f"{tokens} tokens"
        raise InputError(f"{wanted} are more than the model's {positions} positions; pass fewer with --tokens")
    return Shape(batch, tokens, new)


def _roof(device: torch.device, console: Console) -> Roof | None:
    """The CPU's roof; a GPU's is not measured here."""
    if device.type != "cpu":
        console.warn(f"bandwidth and peak of products are measured on the CPU only; no shares of them on {device}")
        return None
    return Roof()


def _footprints(entries: list[Entry], shape: Shape, console: Console) -> list[Footprint | None]:
    found: list[Footprint | None] = []
    with console.progress(len(entries), "memory and load time", "processes") as progress:
        for entry in entries:
            found.append(measure_footprint(entry.spec, shape, torch.get_num_threads()))
            progress.advance(note=entry.spec.engine)
    return found
