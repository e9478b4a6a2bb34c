"""How fast a language model runs in every format: one sequence, eight together, a prompt; beside int8 within rounds.

    python benchmarks/formats.py
    python benchmarks/formats.py --formats int8 int4-sym-g64 codebook-2x64 --seconds 60

SmolLM2-135M-Instruct, every weight rounded by itself (speed does not depend on values), keys and values in 8 bits, all
usable cores. The formats take turns, forwards and backwards: each round decodes 64 tokens behind 16 with every one of
them, then 16 steps of 8 sequences, then reads a prompt of 512 tokens. Printed are medians, the ratio to int8 within
rounds with its quartiles, and how much of the memory's bandwidth decoding takes: bytes of a step over what the machine
reads in that time.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from common import describe_machine, markdown, packaged_model, write_result

from chinchilla_lm.pack.formats import FORMATS
from chinchilla_lm.runtime.engine.demand import ProgramDemand
from chinchilla_lm.runtime.engine.native import NativeModel
from chinchilla_lm.runtime.loading import compile_file
from chinchilla_lm.runtime.measuring.roof import measure_bandwidth

BASE = "int8"
BEHIND, STEPS, TOGETHER, PROMPT = 16, 64, 8, 512


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [name for name in FORMATS if name != "f32"]
    parser.add_argument("--formats", nargs="+", choices=names, default=names)
    parser.add_argument("--seconds", type=float, default=180, help="of turns, after packing (default 180)")
    parser.add_argument("--out", type=Path, default=Path("out/bench"))
    args = parser.parse_args()
    model = packaged_model("SmolLM2-135M-Instruct")
    models, demands = {}, {}
    for name in dict.fromkeys([BASE, *args.formats]):
        program, card = compile_file(model, name)
        models[name], demands[name] = NativeModel(program.with_cache("int8"), None), ProgramDemand(program, card)
        print(f"packed {name}", flush=True)
    works = {"decode": decode, "together": together, "prefill": prefill}
    rates: dict[str, dict[str, list[float]]] = {name: {work: [] for work in works} for name in models}
    end, order = time.perf_counter() + args.seconds, list(models)
    while time.perf_counter() < end or len(rates[BASE]["decode"]) < 5:
        for work, run in works.items():
            for name in order:
                rates[name][work].append(run(models[name]))
                models[name].rest()
        order.reverse()
    rows, found = [], {}
    base = {work: np.array(values) for work, values in rates[BASE].items()}
    for name, taken in rates.items():
        demand = demands[name]
        bandwidth = measure_bandwidth(demand.bytes)
        medians = {work: float(np.median(values)) for work, values in taken.items()}
        ratios = {work: np.percentile(np.array(values) / base[work], [50, 25, 75]) for work, values in taken.items()}
        share = medians["decode"] * demand.decode_bytes(1, BEHIND + STEPS / 2) / (1e9 * bandwidth)
        bits = 8 * demand.bytes / demand.parameters
        shown = [
            f"{medians[work]:,.0f} ({ratio[0]:.2f} [{ratio[1]:.2f}, {ratio[2]:.2f}])" for work, ratio in ratios.items()
        ]
        rows.append([name, f"{bits:.2f}", f"{demand.bytes / 1e6:.0f}", *shown, f"{share:.0%}"])
        found[name] = {"bits": bits, "bytes": demand.bytes, "rates": taken, "of_bandwidth": share}
    print(describe_machine())
    print(f"tokens a second, and how many times int8's [quartiles], of {len(rates[BASE]['decode'])} rounds\n")
    columns = ["format", "bits a weight", "MB", "decode", f"{TOGETHER} together", f"prefill {PROMPT}", "of bandwidth"]
    print(markdown(columns, rows))
    write_result(args.out, "formats", found)


def decode(model: NativeModel) -> float:
    """Tokens a second of one sequence."""
    return _steps(model, 1, STEPS)


def together(model: NativeModel) -> float:
    """Tokens a second of eight sequences."""
    return _steps(model, TOGETHER, STEPS // 4)


def prefill(model: NativeModel) -> float:
    """Tokens a second of a prompt."""
    ids = np.arange(100, 100 + PROMPT, dtype=np.int32)
    return PROMPT / _seconds(lambda: model.run([ids], [model.cache(PROMPT)]))


def _steps(model: NativeModel, sequences: int, steps: int) -> float:
    caches = [model.cache(BEHIND + steps) for _ in range(sequences)]
    model.run([np.arange(100, 100 + BEHIND, dtype=np.int32)] * sequences, caches)
    one = [np.array([5], np.int32)] * sequences

    def work() -> None:
        for _ in range(steps):
            model.run(one, caches)

    return sequences * steps / _seconds(work)


def _seconds(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


if __name__ == "__main__":
    main()
