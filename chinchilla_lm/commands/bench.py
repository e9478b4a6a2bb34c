"""`chinchilla bench`: how fast a model is, beside another one or, with --peers, beside other programs, in one run.

Both models get the same random prompts, dtype and threads, in turn, round by round; ratios are medians within rounds.
Each is also held against this machine's measured roof: bytes it must read a token against the read bandwidth,
operations it must do against the GEMM peak. Memory and load time come from a process of its own for each.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chinchilla_lm.commands import bench_peers
from chinchilla_lm.commands.inspect import TASKS, add_device_arguments
from chinchilla_lm.console import Console
from chinchilla_lm.errors import InputError

if TYPE_CHECKING:
    import torch

    from chinchilla_lm.evaluate.speed import Entry, Roof
    from chinchilla_lm.runtime.footprint import Footprint
    from chinchilla_lm.runtime.race import Shape

# Texts a batch: one request of a language model, a batch of short texts for what only reads.
DEFAULT_BATCH = {True: 1, False: 32}
DEFAULT_TOKENS = 128
DEFAULT_NEW_TOKENS = 64


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The models, the peers, and the shape of the work."""
    parser.add_argument("model", metavar="MODEL", help="a folder, a hub id, a GGUF file, or a run's model folder")
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
        "-o", "--output", metavar="OUT", help="with --peers: folder for bench.md, bench.json, bench.svg"
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
    from chinchilla_lm.evaluate.speed import measure
    from chinchilla_lm.runtime import machine
    from chinchilla_lm.runtime.device import resolve_device
    from chinchilla_lm.runtime.torch_backend import set_threads

    for flag in ("data", "test", "output", "peers_home"):
        if getattr(args, flag) is not None:
            raise InputError(f"--{flag.replace('_', '-')} belongs to a race with peers; pass --peers too")
    if args.threads is not None:
        set_threads(args.threads)
    device = resolve_device(args.device)
    entries, ours = _entries(args, device)
    shape = _shape(args, entries, console)
    roof = _roof(device, entries[ours].spec.dtype, console)
    footprints = [None] * len(entries) if args.no_memory else _footprints(entries, shape, console)
    console.say(f"racing {len(entries)} for {args.seconds:g} s")
    result = measure(entries, ours, shape, args.seconds, roof, footprints)
    result |= {"machine": machine.describe(), "roofline": asdict(roof)}
    _show(result, shape, console)
    console.result(result)
    return 0


def _entries(args: argparse.Namespace, device: torch.device) -> tuple[list[Entry], int]:
    """The original, if there is one, and the model; and which of them is the model."""
    from chinchilla_lm.evaluate.speed import Entry
    from chinchilla_lm.runtime.engines import NATIVE, TORCH, EngineSpec, open_engine
    from chinchilla_lm.runtime.loading import engine_serves
    from chinchilla_lm.runtime.torch_backend import dtype_of

    if args.backend == "native" and device.type != "cpu":
        raise InputError(f"backend native runs on the CPU, not on {device}; pass --device cpu")
    native = args.backend == "native" or (args.backend == "auto" and engine_serves(str(device)))
    dtype = str(dtype_of(args.dtype, device)).removeprefix("torch.")
    entries = []
    for name in ([] if args.against is None else [args.against]) + [args.model]:
        spec = EngineSpec(NATIVE if native else TORCH, name, dtype, str(device), args.task)
        engine = open_engine(spec)
        entries.append(Entry(name, spec, engine, engine.model))
    if len(entries) == 2 and len({(e.model.config.causal, e.model.config.head.kind) for e in entries}) > 1:
        kinds = [f"{entry.name} is for {entry.model.config.head.kind}" for entry in entries]
        raise InputError(f"{' and '.join(kinds)}; only models for one task compare; pass --task")
    return entries, len(entries) - 1


def _shape(args: argparse.Namespace, entries: list[Entry], console: Console) -> Shape:
    from chinchilla_lm.runtime.race import Shape

    config = entries[-1].model.config
    writes = config.head.kind == "language-modeling" and config.causal
    if not writes and args.new_tokens is not None:
        console.warn(f"--new-tokens {args.new_tokens} is ignored: this model, for {config.head.kind}, writes none")
    new = (DEFAULT_NEW_TOKENS if args.new_tokens is None else args.new_tokens) if writes else 0
    batch = DEFAULT_BATCH[writes] if args.batch is None else args.batch
    positions = min(entry.model.config.max_positions for entry in entries)
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


def _roof(device: torch.device, dtype: str, console: Console) -> Roof:
    """The CPU's roof; a GPU's is not measured here."""
    from chinchilla_lm.evaluate.speed import Roof
    from chinchilla_lm.runtime.machine import measure_bandwidth, measure_gemm

    if device.type != "cpu":
        console.warn(f"bandwidth and GEMM peak are measured on the CPU only; no shares of them on {device}")
        return Roof(None, None)
    console.say("measuring the machine")
    return Roof(measure_bandwidth(), measure_gemm(dtype))


def _footprints(entries: list[Entry], shape: Shape, console: Console) -> list[Footprint | None]:
    from chinchilla_lm.runtime.footprint import measure_footprint

    found: list[Footprint | None] = []
    with console.progress(len(entries), "memory and load time", "processes") as progress:
        for entry in entries:
            found.append(measure_footprint(entry.spec, shape))
            progress.advance(note=entry.spec.engine)
    return found


def _show(result: dict[str, Any], shape: Shape, console: Console) -> None:
    short = _short_names([row["model"] for row in result["rows"]])
    rows = [_columns(row, short, shape) for row in result["rows"]]
    timed = f"whole requests of {shape.tokens} + {shape.new_tokens} tokens" if shape.new_tokens else "single texts"
    title = f"{shape.batch} x {shape.tokens} tokens, {result['rounds']} rounds; p50 and p95 of {timed}"
    console.table(list(rows[0]), [list(row.values()) for row in rows], title)
    _show_notes(result, short, console)


def _columns(row: dict[str, Any], short: dict[str, str], shape: Shape) -> dict[str, Any]:
    """One row of the table, by heading; shares are those of the roof."""
    cells = {"model": short[row["model"]], "engine": row["engine"], "format": row["format"]}
    if shape.new_tokens:
        cells["prefill tokens/s"], cells["decode tokens/s"] = row["prefill_tokens_per_s"], row["decode_tokens_per_s"]
    else:
        cells["sequences/s"] = row["sequences_per_s"]
    cells |= {f"{key} ms": value for key, value in row["latency_ms"].items()}
    cells["of GEMM"] = _percent(row["roofline"]["gemm_share"])
    if "bandwidth_share" in row["roofline"]:
        cells["of bandwidth"] = _percent(row["roofline"]["bandwidth_share"])
    return cells | {"peak MB": row["peak_mb"], "load s": row["load_s"]}


def _percent(share: float | None) -> str | None:
    return None if share is None else f"{share:.0%}"


def _short_names(names: list[str]) -> dict[str, str]:
    """The last part of each path, but for those that it would not tell apart."""
    last = {name: Path(name).name or name for name in names}
    return {name: part if list(last.values()).count(part) == 1 else name for name, part in last.items()}


def _show_notes(result: dict[str, Any], short: dict[str, str], console: Console) -> None:
    roof = result["roofline"]
    if roof["bandwidth_gb_s"] is not None:
        console.show(f"roof: {roof['bandwidth_gb_s']:.1f} GB/s read, {roof['gemm_gflops']:,.0f} GFLOP/s in products")
    for ratio in result["ratios"]:
        interval = "" if ratio["low"] is None else f" (95 % interval {ratio['low']:.2f} to {ratio['high']:.2f})"
        console.show(f"{ratio['measure']}: {ratio['value']:.2f} times as fast as {short[ratio['over']]}{interval}")
