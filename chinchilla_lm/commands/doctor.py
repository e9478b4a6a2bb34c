"""`chinchilla doctor`: what this machine is, how fast it can be, and what would spoil a run on it.

Nothing here fails: each check is PASS or WARN, with the remedy beside it. Takes about `--seconds`.
"""

from __future__ import annotations

import argparse

from chinchilla_lm.console import Console
from chinchilla_lm.results import DoctorResult


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seconds", type=float, default=5.0, metavar="S", help="time to measure for (default 5)")


def run(args: argparse.Namespace, console: Console) -> int:
    """Measure and print."""
    from chinchilla_lm.pipeline.doctor import doctor

    result = doctor(args.seconds, console)
    _show(result, console)
    console.result(result)
    return 0


def _show(result: DoctorResult, console: Console) -> None:
    from chinchilla_lm.pipeline.doctor import gigabytes

    found, cpu = result["machine"], result["machine"]["cpu"]
    cores = f"{cpu['usable_cores']} usable of {cpu['logical_cores']} logical"
    rows = [
        ("CPU", cpu["model"]),
        ("cores", cores if cpu["threads"] is None else f"{cores}; torch runs {cpu['threads']} threads"),
        ("instruction sets", ", ".join(cpu["instruction_sets"]) or "not known"),
        ("memory", f"{gigabytes(found['memory_available_bytes'])} free of {gigabytes(found['memory_bytes'])}"),
        *((f"reads of {one['bytes'] / 1e6:,.0f} MB", f"{one['gb_s']:.1f} GB/s") for one in result["reads"]),
        *((f"products {kind}", f"{value:,.0f} GFLOP/s") for kind, value in result["gemm_gflops"].items()),
        *(("CUDA", f"{device['name']}, {gigabytes(device['memory_bytes'])}") for device in found["cuda"]),
        ("system", found["system"]),
        ("versions", ", ".join(f"{name} {version}" for name, version in found["versions"].items() if version)),
    ]
    width = max(len(name) for name, _ in rows)
    for name, text in rows:
        console.show(f"{name:<{width}}  {text}")
    console.show("")
    for check in result["checks"]:
        console.show(f"{check['status'].upper()}  {check['name']}: {check['text']}")
