"""What was measured as rows of `chinchilla bench --json`, and our rows' ratios to the others'."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from chinchilla_lm.peers.contest import spread, wide_measures
from chinchilla_lm.peers.entrant import Entrant
from chinchilla_lm.peers.llama_bench import LlamaBench
from chinchilla_lm.peers.table import LANGUAGE, OURS
from chinchilla_lm.peers.work import SEQUENCES, Work
from chinchilla_lm.runtime.measuring.roof import Roof, kind_of

Row = dict[str, Any]
# Measure → the key of its rate.
RATES = {
    "prefill": "prefill_tokens_per_s",
    "decode": "decode_tokens_per_s",
    "long": "decode_long_tokens_per_s",
    "batch": "decode_batch_tokens_per_s",
    "texts": "sequences_per_s",
}


def ask_roof(entrants: Sequence[Entrant], builds: Sequence[LlamaBench], work: Work, roof: Roof) -> None:
    """Have measured what rows will be held against, while nobody runs."""
    everybody: list[Entrant | LlamaBench] = [*entrants, *builds]
    for one in everybody:
        if not one.alive:
            continue
        if isinstance(one, Entrant):
            roof.products(kind_of(one.form))
        if work.task == LANGUAGE:
            roof.bandwidth(one.read)


def as_row(entrant: Entrant, work: Work, roof: Roof, flops: float) -> Row:
    """One row. flops: of a prompt, or of all texts."""
    row: Row = {"engine": entrant.engine, "format": entrant.form, "cache": entrant.cache}
    row |= {"bits_per_weight": entrant.bits}
    row |= _asked(work) | {"error": entrant.error, "note": entrant.note}
    if not all(entrant.seconds.get(measure) for measure in work.measures):
        return row
    row |= _rates(entrant.seconds, work) | {"latency_ms": _percentiles(entrant.singles)}
    passed = float(np.median(entrant.seconds["prefill" if work.task == LANGUAGE else "texts"]))
    shares = roof.of_products(flops, passed, entrant.form)
    if work.task == LANGUAGE:
        row["first_token_ms"] = _percentiles(entrant.seconds["prefill"])
        shares |= roof.of_reading(entrant.read, 1 / row["decode_tokens_per_s"])
    return row | {
        "threads": entrant.threads,
        "peak_mb": entrant.peak_mb,
        "load_s": entrant.load_s,
        "bytes": entrant.size,
        "decode_bytes": entrant.read if work.task == LANGUAGE else None,
        "metrics": entrant.quality,
        "roofline": shares,
    }


def build_row(build: LlamaBench, rows: Sequence[Row], work: Work, roof: Roof) -> Row:
    """As the others', as far as llama-bench tells; with the perplexity of llama.cpp on the same file, where that was in
    the race."""
    row: Row = {"engine": build.name, "command": build.text, "format": build.form, "cache": build.cache}
    row |= {"bits_per_weight": build.bits, "error": build.error, "note": ""} | _asked(work)
    if not build.seconds.get("decode"):
        return row
    row |= _rates(build.seconds, work)
    row |= {"threads": build.threads, "bytes": build.size, "decode_bytes": build.read}
    row["roofline"] = roof.of_reading(build.read, 1 / row["decode_tokens_per_s"])
    for one in rows:
        alike = ("llama.cpp", build.form, build.cache) == (one["engine"], one["format"], one["cache"])
        if alike and one.get("metrics"):
            return row | {"metrics": one["metrics"], "metrics_of": "llama.cpp"}
    return row


def _asked(work: Work) -> Row:
    writes = work.task == LANGUAGE
    return {
        "batch": 1,
        "prompt_tokens": work.tokens if writes else None,
        "new_tokens": work.new_tokens if writes else 0,
    }


def _rates(seconds: Mapping[str, list[float]], work: Work) -> Row:
    """Medians by their keys, the quartiles as `spread`, and of which rounds: `rounds` by measure, and `wide`, measures
    whose quartiles are still too far apart, and how far."""
    amounts = {"prefill": work.tokens, "batch": SEQUENCES, "texts": len(work.raced)}
    rates = {key: amounts.get(one, 1) / np.array(seconds[one]) for one, key in RATES.items() if one in seconds}
    return {key: float(np.median(rate)) for key, rate in rates.items()} | {
        "seconds": dict(seconds),
        "spread": {key: [float(one) for one in np.quantile(rate, [0.25, 0.75])] for key, rate in rates.items()},
        "rounds": {measure: len(taken) for measure, taken in seconds.items()},
        "wide": {measure: spread(seconds[measure]) for measure in wide_measures(dict(seconds))},
    }


def _percentiles(seconds: list[float]) -> dict[str, float]:
    """`{"p50", "p95"}` in milliseconds."""
    return {f"p{p}": 1e3 * float(np.percentile(seconds, p)) for p in (50, 95)}


def ratios(rows: Sequence[Row]) -> Iterator[Row]:
    """How many times as fast each of our rows is as each of the others, by measure: the median within rounds, and the
    quartiles."""
    for ours in rows:
        for other in rows:
            if ours["engine"] != OURS or other["engine"] == OURS:
                continue
            for measure, mine in ours.get("seconds", {}).items():
                theirs = other.get("seconds", {}).get(measure)
                if not theirs:
                    continue
                together = min(len(mine), len(theirs))
                found = np.array(theirs[:together]) / np.array(mine[:together])
                yield {
                    "format": ours["format"],
                    "cache": ours["cache"],
                    "over_engine": other["engine"],
                    "over_format": other["format"],
                    "over_cache": other["cache"],
                    "measure": measure,
                    "value": float(np.median(found)),
                    "spread": [float(one) for one in np.quantile(found, [0.25, 0.75])],
                }
