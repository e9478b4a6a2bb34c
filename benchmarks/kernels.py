"""How fast one core multiplies: every kernel set that runs here, every format, by rows of inputs.

    python benchmarks/kernels.py
    python benchmarks/kernels.py --sets avx2 portable --formats int4 --rows 1 8

Billions of operations a second (a product and its sum are two), the median of several calls and the best. A call rounds
its inputs too, and comes from Python: a single row's product is faster in the engine. Matrices stay in the caches;
torch's float32 product of the same shape, on one thread, is the last line.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from common import describe_machine, markdown
from numpy.typing import NDArray

from chinchilla_lm.native import _engine
from chinchilla_lm.pack.formats import FORMATS
from chinchilla_lm.runtime.engine.program import Parts

OUTPUTS, INPUTS = 960, 576  # queries, keys and values of SmolLM2-135M


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", choices=_engine.kernel_names(), default=_engine.kernel_names())
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=list(FORMATS))
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 8, 128])
    parser.add_argument("--seconds", type=float, default=0.3, help="for each figure (default 0.3)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    random = np.random.default_rng(0)
    weights = random.standard_normal((OUTPUTS, INPUTS)).astype(np.float32)
    inputs = {rows: random.standard_normal((rows, INPUTS)).astype(np.float32) for rows in args.rows}
    table = []
    for name in args.formats:
        form = FORMATS[name]
        packed = _aligned(form.pack(weights))
        shape = {"outputs": OUTPUTS, "inputs": INPUTS, "offset": 0, "bias": None}
        header = {"format": form.kind, **shape, **form.options}
        for isa in args.sets:
            product = partial(_engine.multiply, isa, header, packed)
            line = [_rate(product, inputs[n], args.seconds) for n in inputs]
            table.append([name, isa, *line])
    ours = torch.from_numpy(weights).T
    line = [_rate(lambda x: torch.from_numpy(x) @ ours, inputs[n], args.seconds) for n in inputs]
    table.append(["f32", f"torch {torch.__version__}", *line])
    print(describe_machine())
    print(f"{OUTPUTS} x {INPUTS}, one core, GOP/s: median (best)\n")
    print(markdown(["format", "kernels", *(f"{rows} row{'s' * (rows > 1)}" for rows in inputs)], table))


def _aligned(data: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The same bytes where a program has them: beginning on 64."""
    parts, flat = Parts(), data.reshape(-1).view(np.uint8)
    parts.add(flat.size, lambda room: np.copyto(room, flat))
    return parts.made()


def _rate(product: Callable[[NDArray[np.float32]], object], x: NDArray[np.float32], seconds: float) -> str:
    taken = []
    product(x)
    end = time.perf_counter() + seconds
    while not taken or time.perf_counter() < end:
        begun = time.perf_counter()
        product(x)
        taken.append(time.perf_counter() - begun)
    work = 2e-9 * len(x) * OUTPUTS * INPUTS
    return f"{work / float(np.median(taken)):.0f} ({work / min(taken):.0f})"


if __name__ == "__main__":
    main()
