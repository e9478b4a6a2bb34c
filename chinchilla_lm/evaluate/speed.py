"""Speed as a table: what each engine does a second, how far that is from the roof, and how many times as fast one is.

The roof is this machine's, measured: a step of decoding must read its weights and its cache, a pass must do its
multiplications (`runtime.measuring.roofline` says which). A share of 1 would be a program that wastes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from chinchilla_lm.results import BenchRatio, BenchRow, BenchShares, Race
from chinchilla_lm.runtime.engine.demand import Demand
from chinchilla_lm.runtime.measuring.clock import Timing, speedup
from chinchilla_lm.runtime.measuring.engines import Engine, EngineSpec
from chinchilla_lm.runtime.measuring.footprint import Footprint
from chinchilla_lm.runtime.measuring.race import race
from chinchilla_lm.runtime.measuring.shape import Shape

# What was timed → what its ratio is called.
RATIO_NAMES = {
    "prefill": "prefill",
    "decode": "decode",
    "request": "request",
    "batch": "sequences",
    "single": "latency",
}

Timings = dict[str, Timing]


@dataclass(frozen=True, slots=True)
class Roof:
    """What the machine can do at most: read bandwidth in GB/s, products in GFLOP/s; None where it was not measured."""

    bandwidth_gb_s: float | None
    gemm_gflops: float | None


@dataclass(frozen=True, slots=True)
class Entry:
    """One row."""

    name: str
    spec: EngineSpec
    engine: Engine


def measure(
    entries: Sequence[Entry],
    ours: int,
    shape: Shape,
    seconds: float,
    roof: Roof,
    footprints: Sequence[Footprint | None],
) -> Race:
    """Race the entries: `rows` in their order, `ratios` of entry `ours` to each other one, and the number of `rounds`.

    Rows have the keys of `chinchilla bench --json`.
    """
    timings = list(race({str(i): entry.engine for i, entry in enumerate(entries)}, shape, seconds=seconds).values())
    rows = [
        _row(entry, shape, timing, footprint, _shares(entry.engine.demand, shape, timing, roof))
        for entry, timing, footprint in zip(entries, timings, footprints, strict=True)
    ]
    ratios = [
        BenchRatio(
            model=entries[ours].name,
            engine=entries[ours].spec.engine,
            over=entry.name,
            over_engine=entry.spec.engine,
            measure=RATIO_NAMES[part],
            **speedup(timings[index][part], timings[ours][part]).to_dict(),
        )
        for index, entry in enumerate(entries)
        if index != ours
        for part in shape.measures
    ]
    return {"rounds": len(timings[0][shape.measures[0]].seconds), "rows": rows, "ratios": ratios}


def _row(entry: Entry, shape: Shape, timing: Timings, footprint: Footprint | None, shares: BenchShares) -> BenchRow:
    demand = entry.engine.demand
    whole = timing["request" if shape.new_tokens else "batch"]
    prefill = decode = None
    if shape.new_tokens:
        prefill = shape.batch * shape.tokens / _seconds(timing["prefill"])
    if "decode" in timing:
        decode = shape.batch * (shape.new_tokens - 1) / _seconds(timing["decode"])
    return {
        "model": entry.name,
        "engine": entry.spec.engine,
        "format": entry.engine.form,
        "batch": shape.batch,
        "prompt_tokens": shape.tokens,
        "new_tokens": shape.new_tokens,
        "prefill_tokens_per_s": prefill,
        "decode_tokens_per_s": decode,
        "sequences_per_s": shape.batch / _seconds(whole),
        "latency_ms": timing["request" if shape.new_tokens else "single"].to_dict(),
        "peak_mb": None if footprint is None else footprint.peak_mb,
        "load_s": None if footprint is None else footprint.load_s,
        "metrics": {},
        "parameters": demand.parameters,
        "bytes": demand.bytes,
        "roofline": shares,
    }


def _shares(demand: Demand, shape: Shape, timing: Timings, roof: Roof) -> BenchShares:
    """What must be read and computed, and the shares of the roof that this speed is."""
    flops = demand.pass_flops(shape.batch, shape.tokens)
    passed = _seconds(timing["prefill" if shape.new_tokens else "batch"])
    found: BenchShares = {
        "pass_gflop": flops / 1e9,
        "gemm_share": None if roof.gemm_gflops is None else flops / 1e9 / passed / roof.gemm_gflops,
    }
    if "decode" in timing:
        steps = shape.new_tokens - 1
        read = demand.decode_bytes(shape.batch, shape.tokens + (steps + 1) / 2)
        speed = read * steps / _seconds(timing["decode"]) / 1e9
        found["decode_mb_per_step"] = read / 1e6
        found["bandwidth_share"] = None if roof.bandwidth_gb_s is None else speed / roof.bandwidth_gb_s
    return found


def _seconds(timing: Timing) -> float:
    return timing.p50 / 1e3
