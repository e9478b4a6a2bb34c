"""Packed matrices on a GPU: each format's product and the time that it takes beside bfloat16's.

    python benchmarks/gpu_formats.py
    python benchmarks/gpu_formats.py --formats int4-sym-g64 --tune

Each product is checked against float64 first. Times are those of CUDA graphs that walk through copies of the matrix
that together are larger than the L2 cache, so that every byte comes from memory; medians of repeated replays. The share
of bandwidth counts the bytes of codes, scales, minima, masks and codebooks once, over what a large copy reaches in the
same run. Rows are the tokens or texts at once. The weights are random; what runs does not depend on their values.
"""

from __future__ import annotations

import argparse
import copy
import itertools
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import torch
import torch.nn.functional as F
from common import markdown, write_result
from torch import Tensor

from chinchilla_lm.pack.formats import FORMATS
from chinchilla_lm.pack.quantized import Quantized
from chinchilla_lm.runtime.cuda import linear
from chinchilla_lm.runtime.cuda.linear import PackedMatrix

ROUNDED = [name for name, form in FORMATS.items() if form.rounding is not None]
# Outputs × inputs: of a model of 8 B parameters, and of SmolLM2-135M.
SHAPES = ((4096, 4096), (4096, 14336), (1536, 576))
ROWS = (1, 8, 64, 1024)
# Bytes that the copies of a matrix have together, above any L2 cache of today.
COLD = 256 << 20
CALLS, REPLAYS = 50, 30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--formats", nargs="+", choices=ROUNDED, default=ROUNDED)
    parser.add_argument("--tune", action="store_true", help="try other tiles, at one row of 4096 × 4096")
    parser.add_argument("--out", type=Path, default=Path("out/bench"))
    args = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("there is no GPU here; run it on a machine that has one")
    bandwidth = copied()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}: a copy moves {bandwidth / 1e9:.0f} GB/s")
    if args.tune:
        tune(args.formats)
        return
    rows = []
    for outputs, inputs in SHAPES:
        plain = {count: time_of(plain_product(outputs, inputs), inputs, count) for count in ROWS}
        bytes_of = 2 * outputs * inputs
        shares = [f"{1e6 * plain[c]:.1f} ({bytes_of / plain[c] / bandwidth:.0%})" for c in ROWS]
        rows.append([f"{outputs} × {inputs}", "bf16", "16.00", "–", *shares])
        for name in args.formats:
            rows.append([f"{outputs} × {inputs}", name, *measured(name, outputs, inputs, plain, bandwidth)])
            print(" | ".join(rows[-1]), flush=True)
    columns = ["outputs × inputs", "format", "bits", "error", *(f"{count} rows, µs" for count in ROWS)]
    print(markdown(columns, rows))
    write_result(args.out, "gpu-formats", {"gpu": torch.cuda.get_device_name(), "bandwidth": bandwidth, "rows": rows})


def measured(name: str, outputs: int, inputs: int, plain: dict[int, float], bandwidth: float) -> list[str]:
    """Bits a weight, relative error of a product, and for each count of rows its time, share of bandwidth and speed."""
    rounded = random_codes(name, outputs, inputs)
    matrix = PackedMatrix(rounded, torch.bfloat16).cuda()
    size = bytes_of(matrix)
    wanted = torch.from_numpy(rounded.values()).cuda().double()
    x = torch.randn(8, inputs, device="cuda", dtype=torch.bfloat16)
    exact = x.double() @ wanted.T
    error = float((matrix.product(x).double() - exact).norm() / exact.norm())
    cells = []
    for count in ROWS:
        seconds = time_of(copies_of(rounded, size), inputs, count)
        cells.append(f"{1e6 * seconds:.1f} ({size / seconds / bandwidth:.0%}, {plain[count] / seconds:.2f}×)")
    return [f"{8 * size / (outputs * inputs):.2f}", f"{error:.1e}", *cells]


def random_codes(name: str, outputs: int, inputs: int) -> Quantized:
    """A rounded matrix: 64 outputs of random weights, over and over."""
    rounding = FORMATS[name].rounding
    assert rounding is not None
    few = rounding.round(np.random.default_rng(0).standard_normal((64, inputs)).astype(np.float32))
    return few.take(np.arange(outputs) % 64)


def bytes_of(matrix: PackedMatrix) -> int:
    """Of codes and all that belongs to them."""
    return sum(one.numel() * one.element_size() for one in matrix.buffers())


def copies_of(rounded: Quantized, size: int) -> list[Callable[[Tensor], Tensor]]:
    """The products of as many copies as are larger than the cache."""
    matrix = PackedMatrix(rounded, torch.bfloat16).cuda()
    matrices = [matrix, *(copy.deepcopy(matrix) for _ in range(COLD // size))]
    return [matrix.product for matrix in matrices]


def plain_product(outputs: int, inputs: int) -> list[Callable[[Tensor], Tensor]]:
    """The same of bfloat16."""
    count = 1 + COLD // (2 * outputs * inputs)
    weights = [torch.randn(outputs, inputs, device="cuda", dtype=torch.bfloat16) for _ in range(count)]
    return [lambda x, weight=weight: F.linear(x, weight) for weight in weights]  # type: ignore[misc]


def time_of(products: list[Callable[[Tensor], Tensor]], inputs: int, rows: int) -> float:
    """Seconds of one product, the median over replays of a graph of many."""
    x = torch.randn(rows, inputs, device="cuda", dtype=torch.bfloat16)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):  # kernels are compiled before a graph is recorded
        for product in products[:2]:
            product(x)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    calls = max(CALLS, len(products))
    with torch.cuda.graph(graph):
        for product in itertools.islice(itertools.cycle(products), calls):
            product(x)
    graph.replay()
    found = []
    for _ in range(REPLAYS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        found.append(begin.elapsed_time(end) / 1e3 / calls)
    return median(found)


def copied() -> float:
    """Bytes a second of a large copy, read and written both counted."""
    source = torch.randint(0, 255, (1 << 30,), dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    seconds = []
    for _ in range(10):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        target.copy_(source)
        end.record()
        end.synchronize()
        seconds.append(begin.elapsed_time(end) / 1e3)
    return 2 * source.numel() / median(seconds)


def tune(formats: list[str]) -> None:
    """Times of one row with other tiles."""
    for name in formats:
        rounded = random_codes(name, 4096, 4096)
        products = copies_of(rounded, bytes_of(PackedMatrix(rounded, torch.bfloat16)))
        for linear.OUTPUTS, linear.PROGRAMS in itertools.product((32, 64, 128), (256, 512, 1024)):
            seconds = time_of(products, 4096, 1)
            print(f"{1e6 * seconds:.1f} µs: {name}, {linear.OUTPUTS} outputs, {linear.PROGRAMS} programs", flush=True)


if __name__ == "__main__":
    main()
