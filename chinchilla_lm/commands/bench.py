"""`chinchilla bench`: how fast a model is, beside another one or, with --peers, beside other programs, in one run.

Both models, packed or not, get the same random prompts and threads, in turn, round by round; ratios are medians within
rounds. Each is also held against this machine's measured roof: bytes it must read a token against the read bandwidth,
operations it must do against the peak of products of its numbers. Memory and load time come from a process of its own
for each.
"""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path
from typing import Any

from chinchilla_lm.commands import bench_peers
from chinchilla_lm.commands.inspect import TASKS, add_cache_argument, add_device_arguments
from chinchilla_lm.console import Console
from chinchilla_lm.errors import InputError
from chinchilla_lm.files import json_text, write_atomic
from chinchilla_lm.results import BenchResult, BenchRow


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
    add_cache_argument(parser)
    add_device_arguments(parser)


def run(args: argparse.Namespace, console: Console) -> int:
    """Race and print. Raises InputError for an unknown peer and for a shape that a model cannot take."""
    if args.peers:
        return bench_peers.run(args, console)
    from chinchilla_lm.pipeline.bench import Asked, bench
    from chinchilla_lm.pipeline.held import lines_of

    for flag in ("data", "test", "peers_home"):
        if getattr(args, flag) is not None:
            raise InputError(f"--{flag.replace('_', '-')} belongs to a race with peers; pass --peers too")
    folder = None if args.output is None else Path(args.output)
    if folder is not None:
        bench_peers.check_writable(folder)
    same = {field.name: getattr(args, field.name) for field in fields(Asked) if field.name != "memory"}
    result = bench(Asked(**same, memory=not args.no_memory), console)
    _show(result, folder, console)
    for name, certificate in result["certificates"].items():
        for line in lines_of(certificate):
            console.show(f"{name}: {line}")
    console.result(result)
    return 0


def _show(result: BenchResult, folder: Path | None, console: Console) -> None:
    """In the terminal and, where there is one, in a folder."""
    from chinchilla_lm.peers.outcome import document, markdown_table

    short = _short_names([row["model"] for row in result["rows"]])
    rows = [_columns(row, short) for row in result["rows"]]
    row = result["rows"][-1]
    batch, tokens, new = (row["batch"], row["prompt_tokens"], row["new_tokens"])
    timed = f"whole requests of {tokens} + {new} tokens" if new else "single texts"
    title = f"{batch} x {tokens} tokens, {result['rounds']} rounds; p50 and p95 of {timed}"
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


def _columns(row: BenchRow, short: dict[str, str]) -> dict[str, Any]:
    """One row of the table, by heading; shares are those of the roof."""
    from chinchilla_lm.runtime.measuring.roof import share_text

    cells: dict[str, Any] = {"model": short[row["model"]], "engine": row["engine"], "format": row["format"]}
    if row["new_tokens"]:
        cells["cache"] = row["cache"]
    if row["new_tokens"]:
        cells["prefill tokens/s"], cells["decode tokens/s"] = row["prefill_tokens_per_s"], row["decode_tokens_per_s"]
    else:
        cells["sequences/s"] = row["sequences_per_s"]
    cells |= {f"{key} ms": value for key, value in row["latency_ms"].items()}
    cells["of products"] = share_text(row["roofline"], "gemm") or None
    if row["new_tokens"] > 1:
        cells["of bandwidth"] = share_text(row["roofline"], "bandwidth") or None
    return cells | {"peak MB": row["peak_mb"], "load s": row["load_s"]}


def _short_names(names: list[str]) -> dict[str, str]:
    """The last part of each path, but for those that it would not tell apart."""
    last = {name: Path(name).name or name for name in names}
    return {name: part if list(last.values()).count(part) == 1 else name for name, part in last.items()}


def _notes(result: BenchResult, short: dict[str, str]) -> list[str]:
    from chinchilla_lm.runtime.measuring.roof import roof_note

    notes = [] if result["roofline"] is None else [roof_note(result["roofline"])]
    for ratio in result["ratios"]:
        interval = "" if ratio["low"] is None else f" (95 % interval {ratio['low']:.2f} to {ratio['high']:.2f})"
        notes.append(f"{ratio['measure']}: {ratio['value']:.2f} times as fast as {short[ratio['over']]}{interval}")
    return notes
