"""`chinchilla bench`: how fast a model is, beside another one or, with --peers, beside other programs, in one run.

Both models, packed or not, get the same random prompts and threads, in turn, round by round; ratios are medians within
rounds. Each is also held against this machine's measured roof: bytes it must read a token against the read bandwidth,
operations it must do against the peak of products of its numbers. Memory and load time come from a process of its own
for each.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chinchilla_lm.commands import bench_peers
from chinchilla_lm.commands.inspect import TASKS, add_device_arguments
from chinchilla_lm.console import Console
from chinchilla_lm.errors import InputError
from chinchilla_lm.files import json_text, write_atomic

if TYPE_CHECKING:
    import torch

    from chinchilla_lm.evaluate.speed import Entry
    from chinchilla_lm.runtime.measuring.footprint import Footprint
    from chinchilla_lm.runtime.measuring.roof import Roof
    from chinchilla_lm.runtime.measuring.shape import Shape

# Texts a batch: one request of a language model, a batch of short texts for what only reads.
DEFAULT_BATCH = {True: 1, False: 32}
DEFAULT_TOKENS = 128
DEFAULT_NEW_TOKENS = 64


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The models, the peers, and the shape of the work."""
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="a folder, a packed model, a hub id (NAME or NAME@REVISION), a GGUF file, or a run's folder",
    )
    parser.add_argument("--against", metavar="MODEL", help="the original, to compare with")
    parser.add_argument(
        "--peers", metavar="NAME,…", default="", help="programs to race with, such as llama.cpp,openvino"
    )
    parser.add_argument(
        "--peers-home", metavar="DIR", help="where peers' environments are kept (default: the user's cache)"
    )
    parser.add_argument(
        "--data", metavar="DATA", help="with --peers: tagged texts to race on, or text to judge a model on"
    )
    parser.add_argument("--test", metavar="FILE", help="with --data: the file of its test split")
    parser.add_argument(
        "-o", "--output", metavar="OUT", help="folder for bench.md and bench.json; with --peers also bench.svg"
    )
    parser.add_argument("--task", choices=TASKS, help="give the models this head (default: the one saved)")
    parser.add_argument("--batch", type=int, metavar="N", help="texts a batch (default 1; 32 for what only reads)")
    parser.add_argument("--tokens", type=int, metavar="N", help="tokens a text (default 128)")
    parser.add_argument("--new-tokens", type=int, metavar="N", help="tokens that a language model writes (default 64)")
    parser.add_argument("--seconds", type=float, default=20.0, metavar="S", help="time to race for (default 20)")
    parser.add_argument("--no-memory", action="store_true", help="do not measure memory and load time")
    parser.add_argument(
        "--backend", choices=("auto", "native", "torch"), default="auto", help="what runs MODEL (default auto)"
    )
    add_device_arguments(parser)


def run(args: argparse.Namespace, console: Console) -> int:
    """Race and print. Raises InputError for an unknown peer and for a shape that a model cannot take."""
    if args.peers:
        return bench_peers.run(args, console)
    import torch

    from chinchilla_lm.evaluate.speed import measure
    from chinchilla_lm.runtime.cpu import usable_cores
    from chinchilla_lm.runtime.device import resolve_device
    from chinchilla_lm.runtime.measuring import machine
    from chinchilla_lm.runtime.torch_backend import set_threads

    for flag in ("data", "test", "peers_home"):
        if getattr(args, flag) is not None:
            raise InputError(f"--{flag.replace('_', '-')} belongs to a race with peers; pass --peers too")
    folder = None if args.output is None else Path(args.output)
    if folder is not None:
        bench_peers.check_writable(folder)
    # torch knows no quota of a container: on more threads than that it would be slow, and the roof too low.
    set_threads(min(torch.get_num_threads(), usable_cores()) if args.threads is None else args.threads)
    device = resolve_device(args.device)
    entries, ours = _entries(args, device, console)
    shape = _shape(args, entries, console)
    roof = _roof(device, console)
    footprints = [None] * len(entries) if args.no_memory else _footprints(entries, shape, console)
    console.say(f"racing {len(entries)} for {args.seconds:g} s")
    result = measure(entries, ours, shape, args.seconds, roof, footprints)
    result |= {"machine": machine.describe(), "roofline": None if roof is None else roof.to_dict()}
    _show(result, shape, folder, console)
    console.result(result)
    return 0


def _entries(args: argparse.Namespace, device: torch.device, console: Console) -> tuple[list[Entry], int]:
    """The original, if there is one, and the model; and which of them is the model."""
    from chinchilla_lm.evaluate.speed import Entry
    from chinchilla_lm.runtime.engine.packed import is_packed
    from chinchilla_lm.runtime.loading import EngineWarning, engine_serves
    from chinchilla_lm.runtime.measuring.engines import NATIVE, TORCH, EngineSpec, open_engine
    from chinchilla_lm.runtime.torch_backend import dtype_of

    if args.backend == "native" and device.type != "cpu":
        raise InputError(f"backend native runs on the CPU, not on {device}; pass --device cpu")
    with console.warned(EngineWarning):
        native = args.backend == "native" or (args.backend == "auto" and engine_serves(str(device)))
    names = ([] if args.against is None else [args.against]) + [args.model]
    if native and args.dtype != "auto" and all(is_packed(name) for name in names):
        raise InputError(f"dtype {args.dtype} is not that of a packed model; leave --dtype away")
    dtype = str(dtype_of(args.dtype, device)).removeprefix("torch.")
    entries = []
    for name in names:
        spec = EngineSpec(NATIVE if native else TORCH, name, dtype, str(device), args.task, args.threads)
        entries.append(Entry(name, spec, open_engine(spec)))
    demands = [entry.engine.demand for entry in entries]
    if len({(one.causal, one.kind) for one in demands}) > 1:
        kinds = [f"{entry.name} is for {entry.engine.demand.kind}" for entry in entries]
        raise InputError(f"{' and '.join(kinds)}; only models for one task compare; pass --task")
    return entries, len(entries) - 1


def _shape(args: argparse.Namespace, entries: list[Entry], console: Console) -> Shape:
    from chinchilla_lm.runtime.measuring.shape import Shape

    demand = entries[-1].engine.demand
    writes = demand.kind == "language-modeling" and demand.causal
    if not writes and args.new_tokens is not None:
        console.warn(f"--new-tokens {args.new_tokens} is ignored: this model, for {demand.kind}, writes none")
    new = (DEFAULT_NEW_TOKENS if args.new_tokens is None else args.new_tokens) if writes else 0
    batch = DEFAULT_BATCH[writes] if args.batch is None else args.batch
    positions = min(entry.engine.demand.positions for entry in entries)
    tokens = min(DEFAULT_TOKENS, max(1, positions - new)) if args.tokens is None else args.tokens
    for flag, value in (("batch", batch), ("tokens", tokens), ("new-tokens", new if writes else 1)):
        if value < 1:
            raise InputError(f"{flag} {value} is not 1 or more; pass --{flag} 1")
    if not 0 < args.seconds < math.inf:
        raise InputError(f"seconds {args.seconds} is not a number above 0; pass --seconds 20")
    if tokens + new > positions:
        asked = f"{tokens} + {new} tokens" if new else f"{tokens} tokens"
        raise InputError(f"{asked} are more than the model's {positions} positions; pass fewer with --tokens")
    return Shape(batch, tokens, new)


def _roof(device: torch.device, console: Console) -> Roof | None:
    """The CPU's roof; a GPU's is not measured here."""
    from chinchilla_lm.runtime.measuring.roof import Roof

    if device.type != "cpu":
        console.warn(f"bandwidth and peak of products are measured on the CPU only; no shares of them on {device}")
        return None
    return Roof()


def _footprints(entries: list[Entry], shape: Shape, console: Console) -> list[Footprint | None]:
    import torch

    from chinchilla_lm.runtime.measuring.footprint import measure_footprint

    found: list[Footprint | None] = []
    with console.progress(len(entries), "memory and load time", "processes") as progress:
        for entry in entries:
            found.append(measure_footprint(entry.spec, shape, torch.get_num_threads()))
            progress.advance(note=entry.spec.engine)
    return found


def _show(result: dict[str, Any], shape: Shape, folder: Path | None, console: Console) -> None:
    """In the terminal and, where there is one, in a folder."""
    from chinchilla_lm.peers.outcome import document, markdown_table

    short = _short_names([row["model"] for row in result["rows"]])
    rows = [_columns(row, short, shape) for row in result["rows"]]
    timed = f"whole requests of {shape.tokens} + {shape.new_tokens} tokens" if shape.new_tokens else "single texts"
    title = f"{shape.batch} x {shape.tokens} tokens, {result['rounds']} rounds; p50 and p95 of {timed}"
    names, cells = list(rows[0]), [list(row.values()) for row in rows]
    notes = _notes(result, short)
    console.table(names, cells, title)
    for note in notes:
        console.show(note)
    if folder is not None:
        written = [
            ["-" if one is None else f"{one:,.4g}" if isinstance(one, float) else str(one) for one in row]
            for row in cells
        ]
        write_atomic(folder / "bench.json", json_text(result, indent=1) + "\n")
        write_atomic(folder / "bench.md", document(title, [markdown_table(names, written)], notes))
        console.show(f"written: {folder / 'bench.md'} and bench.json")


def _columns(row: dict[str, Any], short: dict[str, str], shape: Shape) -> dict[str, Any]:
    """One row of the table, by heading; shares are those of the roof."""
    from chinchilla_lm.runtime.measuring.roof import share_text

    cells = {"model": short[row["model"]], "engine": row["engine"], "format": row["format"]}
    if shape.new_tokens:
        cells["prefill tokens/s"], cells["decode tokens/s"] = row["prefill_tokens_per_s"], row["decode_tokens_per_s"]
    else:
        cells["sequences/s"] = row["sequences_per_s"]
    cells |= {f"{key} ms": value for key, value in row["latency_ms"].items()}
    cells["of products"] = share_text(row["roofline"], "gemm") or None
    if shape.new_tokens > 1:
        cells["of bandwidth"] = share_text(row["roofline"], "bandwidth") or None
    return cells | {"peak MB": row["peak_mb"], "load s": row["load_s"]}


def _short_names(names: list[str]) -> dict[str, str]:
    """The last part of each path, but for those that it would not tell apart."""
    last = {name: Path(name).name or name for name in names}
    return {name: part if list(last.values()).count(part) == 1 else name for name, part in last.items()}


def _notes(result: dict[str, Any], short: dict[str, str]) -> list[str]:
    from chinchilla_lm.runtime.measuring.roof import roof_note

    notes = [] if result["roofline"] is None else [roof_note(result["roofline"])]
    for ratio in result["ratios"]:
        interval = "" if ratio["low"] is None else f" (95 % interval {ratio['low']:.2f} to {ratio['high']:.2f})"
        notes.append(f"{ratio['measure']}: {ratio['value']:.2f} times as fast as {short[ratio['over']]}{interval}")
    return notes
