"""Speed as a table: what each engine does a second, how far that is from the roof, and how many times as fast one is.

The roof is this machine's, measured (`runtime.measuring.roof`): a step of decoding must read its weights and its cache,
a pass must do its multiplications (`runtime.measuring.roofline` says which). A share of 1 would be a program that
wastes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from chinchilla_lm.results import BenchRatio, BenchRow, BenchShares, Race
from chinchilla_lm.runtime.engine.demand import Demand
from chinchilla_lm.runtime.measuring.clock import Timing, speedup
from chinchilla_lm.runtime.measuring.engines import Engine, EngineSpec
from chinchilla_lm.runtime.measuring.footprint import Footprint
from chinchilla_lm.runtime.measuring.race import race
from chinchilla_lm.runtime.measuring.roof import Roof, kind_of
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
    roof: Roof | None,
    footprints: Sequence[Footprint | None],
) -> Race:
    """Race the entries: `rows` in their order, `ratios` of entry `ours` to each other one, and the number of `rounds`.

    Rows have the keys of `chinchilla bench --json`. The roof, if any, is measured before and after the race.
    """
    if roof is not None:
        for entry in entries:
            _ask(entry.engine, shape, roof)
    timings = list(race({str(i): entry.engine for i, entry in enumerate(entries)}, shape, seconds=seconds).values())
    if roof is not None:
        roof.look_again()
    rows = [
        _row(entry, shape, timing, footprint, _shares(entry.engine, shape, timing, roof))
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
        "cache": entry.engine.cache,
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


def _read_bytes(demand: Demand, shape: Shape) -> float:
    """Of a step of decoding, in the middle of what is written."""
    return demand.decode_bytes(shape.batch, shape.tokens + shape.new_tokens / 2)


def _ask(engine: Engine, shape: Shape, roof: Roof) -> None:
    """Have measured what the entry will be held against."""
    roof.products(kind_of(engine.form))
    if "decode" in shape.measures:
        roof.bandwidth(_read_bytes(engine.demand, shape))


def _shares(engine: Engine, shape: Shape, timing: Timings, roof: Roof | None) -> BenchShares:
    """What must be read and computed, and the shares of the roof that this speed is; see Roof."""
    flops = engine.demand.pass_flops(shape.batch, shape.tokens)
    found: dict[str, Any] = {"pass_gflop": flops / 1e9}
    if roof is not None:
        found |= roof.of_products(flops, _seconds(timing["prefill" if shape.new_tokens else "batch"]), engine.form)
    if "decode" in timing:
        read = _read_bytes(engine.demand, shape)
        found["decode_mb_per_step"] = read / 1e6
        if roof is not None:
            found |= roof.of_reading(read, _seconds(timing["decode"]) / (shape.new_tokens - 1))
    return cast(BenchShares, found)


def _seconds(timing: Timing) -> float:
    return timing.p50 / 1e3
