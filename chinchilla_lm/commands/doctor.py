"""`chinchilla doctor`: what this machine is, how fast it can be, and what would spoil a run on it.

Nothing here fails: each check is PASS or WARN, with the remedy beside it. Takes about `--seconds`.
"""

from __future__ import annotations

import argparse

from chinchilla_lm.console import Console
from chinchilla_lm.results import DoctorResult, FormatProduct


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seconds", type=float, default=10.0, metavar="S", help="time to measure for (default 10)")


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
    for outputs, inputs in dict.fromkeys((one["outputs"], one["inputs"]) for one in result["formats"]):
        _show_formats(
            [one for one in result["formats"] if (one["outputs"], one["inputs"]) == (outputs, inputs)], console
        )
    console.show("")
    for check in result["checks"]:
        console.show(f"{check['status'].upper()}  {check['name']}: {check['text']}")


def _show_formats(products: list[FormatProduct], console: Console) -> None:
    """The formats' times at one size, beside bf16's and int8's; a star where a format pays."""
    rows = list(dict.fromkeys(one["rows"] for one in products))
    found = {(one["format"], one["rows"]): one for one in products}
    lines = []
    for name in dict.fromkeys(one["format"] for one in products):
        some = [found[name, row] for row in rows]
        cells = [
            f"{one['beside']['bf16']:.2f}, {one['beside']['int8']:.2f}{' *' if one['pays'] else '  '}" for one in some
        ]
        pays = [str(one["rows"]) for one in some if one["pays"]]
        lines.append([name, f"{some[0]['bits']:.2f}", *cells, ", ".join(pays) or "nowhere"])
    heads = [f"{row} row{'s' * (row > 1)}" for row in rows]
    size = f"{products[0]['outputs']} × {products[0]['inputs']}"
    console.show("")
    console.table(
        ["format", "bits", *heads, "pays at rows"],
        lines,
        f"products with {size} weights on one core: time over that in bf16, in int8; * faster than all of more bits",
    )
