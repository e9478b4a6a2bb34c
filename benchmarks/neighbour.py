"""Every verb alone and beside a busy program, and what sharing the cores costs alone.

    python benchmarks/neighbour.py --rounds 3
    python benchmarks/neighbour.py --rounds 1 --verbs demo

Each verb runs as its own process, four ways in turn: as we set torch's threads (chinchilla_lm/openmp.py) and as torch
sets them by itself (GOMP_SPINCOUNT=300000), alone and beside a torch process that computes with a thread for each
core. Two programs that share a machine fairly take twice as long each. The machine must be idle otherwise. Seconds are
medians, with the least and the most in brackets; ratios are medians of the rounds'. Exit status 1 where a verb takes
more than 2.5 times as long beside the neighbour, or more than 3 % longer alone than with torch's own settings.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from common import data_folder, describe_machine, markdown, packaged_model, write_result

STOCK = {"GOMP_SPINCOUNT": "300000"}
ARMS = {
    "alone": (False, {}),
    "alone, torch's own": (False, STOCK),
    "beside": (True, {}),
    "beside, torch's own": (True, STOCK),
}
# Products as small as a small model's, in the number format that this CPU multiplies fast, until it is killed.
NEIGHBOUR = """
import torch
x, w = torch.randn(32, 576).bfloat16(), torch.randn(1536, 576).bfloat16()
print("ready", flush=True)
while True:
    torch.nn.functional.gelu(torch.nn.functional.linear(x, w))
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--verbs", nargs="*", help="which of the verbs (default: all)")
    parser.add_argument("--ours", action="store_true", help="leave torch's own settings out, which take long")
    parser.add_argument("--out", type=Path, default=Path("out/bench/neighbour"))
    args = parser.parse_args()
    commands = prepare(args.out)
    arms = [arm for arm, (_, settings) in ARMS.items() if not (args.ours and settings)]
    rows, result = [], {}
    for verb in args.verbs or list(commands):
        seconds: dict[str, list[float]] = {arm: [] for arm in arms}
        for turn in range(args.rounds):
            first = turn % len(arms)
            for arm in arms[first:] + arms[:first]:
                seconds[arm].append(timed(commands[verb], args.out, *ARMS[arm]))
                print(f"{verb}, round {turn + 1}, {arm}: {seconds[arm][-1]:.1f} s", file=sys.stderr, flush=True)
        result[verb] = summary(seconds)
        ratios = (result[verb].get(name) for name in RATIOS)
        shown = ["-" if ratio is None else f"{ratio:.2f}" for ratio in ratios]
        rows.append([verb, *(spread(seconds.get(arm)) for arm in ARMS), *shown])
    print(describe_machine())
    print(markdown(["verb", *(f"{arm}, s" for arm in ARMS), *RATIOS], rows))
    write_result(args.out, "neighbour", result)
    print(json.dumps(result))
    return int(any(one.get(name, 0.0) > most for one in result.values() for name, most in LIMITS.items()))


# Ratio → the two arms.
RATIOS = {
    "beside : alone": ("beside", "alone"),
    "torch's own, beside : alone": ("beside, torch's own", "alone, torch's own"),
    "alone : torch's own": ("alone", "alone, torch's own"),
}
LIMITS = {"beside : alone": 2.5, "alone : torch's own": 1.03}


def prepare(out: Path) -> dict[str, list[str]]:
    """The verbs' inputs, made once; returns what to run for each. OUT is a fresh folder each time."""
    out.mkdir(parents=True, exist_ok=True)
    minilm, smollm2 = packaged_model("all-MiniLM-L6-v2"), packaged_model("SmolLM2-135M-Instruct")
    text = (Path(data_folder("wikitext2")) / "wiki.test.raw").read_text(encoding="utf-8")
    (out / "text.txt").write_text(text[:60_000], encoding="utf-8")
    lines = (Path(data_folder("banking77")) / "train.csv").read_text(encoding="utf-8").splitlines()
    (out / "intents.csv").write_text("\n".join([lines[0], *lines[1::12]]) + "\n", encoding="utf-8")
    packed = out / "packed"
    if not packed.exists():
        run(["pack", smollm2, "--format", "int8", "-o", str(packed)], {})
    finetune = ["finetune", minilm, "--task", "text-classification", "--data", str(out / "intents.csv")]
    score = ["score", smollm2, "--task", "language-modeling", "--data", str(out / "text.txt")]
    return {
        "inspect": ["inspect", smollm2],
        "generate": ["generate", str(packed), "--prompt", "Once upon a time", "--max-new-tokens", "1024"],
        "evaluate": ["evaluate", smollm2, "--task", "language-modeling", "--data", str(out / "text.txt")],
        "evaluate on torch": [
            *["evaluate", smollm2, "--task", "language-modeling", "--data", str(out / "text.txt"), "--backend", "torch"]
        ],
        "finetune": [*finetune, "--finetune-epochs", "2", "-o", "OUT"],
        "score": [*score, "--calibration-tokens", "512", "--max-tokens", "256", "-o", "OUT"],
        "pack": ["pack", smollm2, "--format", "int4", "-o", "OUT"],
        "export": ["export", smollm2, "--to", "hf", "-o", "OUT"],
        "demo": ["demo", "--fast", "-o", "OUT"],
    }


def timed(command: list[str], out: Path, beside: bool, variables: dict[str, str]) -> float:
    """Seconds of a whole process, alone or beside the neighbour."""
    target = out / "made"
    shutil.rmtree(target, ignore_errors=True)
    words = [str(target) if word == "OUT" else word for word in command]
    with neighbour() if beside else nobody():
        begun = time.perf_counter()
        run(words, variables)
        return time.perf_counter() - begun


def run(words: list[str], variables: dict[str, str]) -> None:
    """One verb. Exits with what it said where it fails; a failed certificate (3) is no failure here."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    done = subprocess.run(
        [sys.executable, "-m", "chinchilla_lm", *words], env=environment | variables, capture_output=True, text=True
    )
    if done.returncode not in (0, 3):
        raise SystemExit(f"chinchilla {' '.join(words)} ended with {done.returncode}: {done.stderr[-2000:]}")


@contextmanager
def neighbour() -> Iterator[None]:
    """Another program that computes, for as long as this lasts."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    child = subprocess.Popen([sys.executable, "-c", NEIGHBOUR], env=environment, stdout=subprocess.PIPE)
    try:
        assert child.stdout is not None
        child.stdout.readline()
        yield
    finally:
        child.kill()
        child.wait()


@contextmanager
def nobody() -> Iterator[None]:
    yield


def summary(seconds: dict[str, list[float]]) -> dict[str, float]:
    """Medians by arm, and the median over rounds of each ratio of arms that ran."""
    found = {arm: statistics.median(values) for arm, values in seconds.items()}
    for name, (above, below) in RATIOS.items():
        if above not in seconds or below not in seconds:
            continue
        found[name] = statistics.median(a / b for a, b in zip(seconds[above], seconds[below], strict=True))
    return found


def spread(values: list[float] | None) -> str:
    if values is None:
        return "-"
    return f"{statistics.median(values):.1f} [{min(values):.1f}, {max(values):.1f}]"


if __name__ == "__main__":
    sys.exit(main())
