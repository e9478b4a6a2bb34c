"""Processes and threads: what a step of training costs as one process of two threads and as two of one each.

    python benchmarks/distributed.py
    python benchmarks/distributed.py --model lm --rounds 3

MiniLM's shape as a tagger, or SmolLM2's as a language model, random weights and random text, float32; the same batches.
Each way is started anew in every round, in turn, so that what else the machine does falls on all of them. Tokens a
second are those between the third step and the last; the peak of memory is what a process had resident at most, less
what it had before training, so without Python and torch.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import socket
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from statistics import median
from typing import Any

import torch
from common import describe_machine, markdown, write_result
from recovery_speed import SMOLLM2

from chinchilla_lm.console import Console
from chinchilla_lm.data.batches import batches
from chinchilla_lm.data.encoded import IGNORED, Encoded
from chinchilla_lm.models.config import HeadConfig, ModelConfig
from chinchilla_lm.models.transformer import Transformer
from chinchilla_lm.runtime.processes import joined, processes
from chinchilla_lm.train.loop import FitSettings, fit
from chinchilla_lm.train.parallel import Layout
from chinchilla_lm.train.recover import fine_tuning_loss

LABELS = tuple("OABCDEFGH")
MINILM = ModelConfig(
    family="bert", vocab_size=30_522, hidden_size=384, num_blocks=6, num_heads=12, num_kv_heads=12, head_dim=32,
    intermediate_size=1536, max_positions=512, causal=False, norm="layernorm", norm_eps=1e-12, placement="post",
    activation="gelu", gated=False, head=HeadConfig("token-classification", labels=LABELS), positions="learned",
    embedding_norm=True, segment_types=2,
)  # fmt: skip
# Name → processes, threads of each, and whether weights are parted.
WAYS = {"1 × 2 threads": (1, 2, False), "2 × 1 thread": (2, 1, False), "2 × 1 thread, shard": (2, 1, True)}
# Model, positions a row, tokens a step.
CASES = {"ner": (MINILM, 32, 2048), "lm": (SMOLLM2, 256, 2048)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=tuple(CASES), default="ner")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=Path("out/bench"))
    args = parser.parse_args()
    if args.worker is not None:
        work(args)
        return
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in WAYS}
    for _ in range(args.rounds):
        for name, way in WAYS.items():
            found[name].append(run(args, *way))
            print(f"{name}: {found[name][-1]}", flush=True)
    base = [one["rate"] for one in found["1 × 2 threads"]]
    memory = median(one["peak"] for one in found["1 × 2 threads"])
    rows = []
    for name, each in found.items():
        ratios = sorted(one["rate"] / before for one, before in zip(each, base, strict=True))
        peak = median(one["peak"] for one in each)
        rows.append([name, f"{median(one['rate'] for one in each):,.0f}",
                     f"{median(ratios):.2f} [{ratios[0]:.2f}, {ratios[-1]:.2f}]",
                     f"{peak / 1e6:.0f} MB", f"{peak / memory:.2f}"])  # fmt: skip
    print(describe_machine())
    columns = ["processes", "tokens/s", "over one process", "peak of each", "over one process"]
    print(markdown(columns, rows))
    write_result(args.out, f"distributed-{args.model}", {"rows": rows, "found": found})


def run(args: argparse.Namespace, count: int, threads: int, shard: bool) -> dict[str, Any]:
    """Tokens a second and the largest peak of memory in bytes."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count)}
    words = [sys.executable, __file__, "--model", args.model, "--steps", str(args.steps)]
    running = [
        subprocess.Popen(
            [*words, "--worker", str(threads), str(int(shard))],
            env=os.environ | common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]
    said = [json.loads(one.communicate()[0].splitlines()[-1]) for one in running]
    return {"rate": said[0]["rate"], "peak": max(one["peak"] for one in said)}


def work(args: argparse.Namespace) -> None:
    """One process's part; prints what it measured."""
    threads, shard = map(int, args.worker)
    torch.set_num_threads(threads)
    config, width, tokens = CASES[args.model]
    random = torch.Generator().manual_seed(0)
    rows = tokens // width * args.steps
    ids = torch.randint(config.vocab_size, (rows, width), generator=random).tolist()
    tags = torch.randint(len(LABELS), (rows, width), generator=random).tolist()
    given = [
        Encoded(one, None, tag if args.model == "ner" else [*one[1:], IGNORED], [])
        for one, tag in zip(ids, tags, strict=True)
    ]
    todo = batches(given, max_tokens=tokens, shuffle_seed=0)
    times: list[float] = []

    class Watching(Console):
        def progress(self, *how: Any) -> Any:
            bar = super().progress(*how)
            bar.advance = lambda *_: times.append(time.perf_counter())  # type: ignore[method-assign]
            return bar

    several = int(os.environ["WORLD_SIZE"]) > 1
    with joined() if several else nullcontext():
        before = resident()
        torch.manual_seed(0)
        model = Transformer(config)
        fit(model, lambda _: todo, fine_tuning_loss(0.0), FitSettings(1.0, 1e-4, 1e-4), Watching(quiet=True),
            label="bench", layout=Layout(processes().count, bool(shard)))  # fmt: skip
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    print(json.dumps({"rate": (len(times) - 3) * tokens / (times[-1] - times[2]), "peak": peak}))


def resident() -> int:
    """Bytes of memory that this process has now."""
    fields = Path("/proc/self/statm").read_text().split()
    return int(fields[1]) * resource.getpagesize()


if __name__ == "__main__":
    main()
