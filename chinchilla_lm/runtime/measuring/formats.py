"""Which formats pay on this machine: one core's products in each format beside those in bf16 and int8. Without torch.

A format with fewer bits pays where it is faster than each one that has more: at one row a product waits for the weights
to come, and fewer bytes are fewer; at many rows the weights are read once for all of them, and what counts is how fast
codes become numbers that can be multiplied. Formats take turns, so that each finds the caches full of the others'
weights, as a link finds them full of other links'. A search measures the whole model again at the asked shape; this is
what to expect.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chinchilla_lm.native import engine_module
from chinchilla_lm.pack.formats import FORMATS, Format
from chinchilla_lm.pack.panels import LANES
from chinchilla_lm.results import FormatProduct
from chinchilla_lm.runtime.engine.native import instruction_set
from chinchilla_lm.runtime.engine.program import Parts

# A format pays where it takes less than this share of the time of each that has more bits: two timings of the same
# kernel differ by a percent or two (docs/benchmarks.md).
PAYS = 0.98
# Outputs and inputs: an MLP's matrix of SmolLM2-135M, and one of a model of some 2 billion parameters.
SIZES = ((1536, 576), (2048, 2048))
ROWS = (1, 8, 32, 512)
# Beside which each format is held.
BESIDE = ("bf16", "int8")
# Rounds of all formats, at least, up to so many times the seconds that were given: kernels without vectors take long.
LEAST_ROUNDS, LONGEST = 4, 4


def measure_formats(
    seconds: float, on_size: Callable[[str], None] = lambda words: None, formats: Sequence[str] = tuple(FORMATS)
) -> list[FormatProduct]:
    """Microseconds of a product in each format, for all sizes and rows, over about so many seconds; none where there is
    no engine. formats: BESIDE among them. on_size: is told what has been timed."""
    module = engine_module()
    if module is None:
        return []
    isa = instruction_set() or module.kernel_names()[0]
    found: list[FormatProduct] = []
    for outputs, inputs in SIZES:
        products = {name: _product(module, isa, FORMATS[name], outputs, inputs) for name in formats}
        for rows in ROWS:
            x_MK = np.random.default_rng(rows).standard_normal((rows, inputs)).astype(np.float32)
            taken = _in_turn(products, x_MK, seconds / (len(SIZES) * len(ROWS)))
            found += rows_of(taken, outputs, inputs, rows)
            on_size(f"{outputs} × {inputs}, {rows} row{'s' * (rows > 1)}")
    return found


def rows_of(taken: dict[str, float], outputs: int, inputs: int, rows: int) -> list[FormatProduct]:
    """Which formats pay, by the seconds that a product takes in each. taken: BESIDE among them."""
    sizes = {name: FORMATS[name].bytes(outputs, inputs) for name in taken}
    return [
        {
            "format": name,
            "bits": 8 * sizes[name] / (outputs * inputs),
            "outputs": outputs,
            "inputs": inputs,
            "rows": rows,
            "us": 1e6 * seconds,
            "beside": {other: seconds / taken[other] for other in BESIDE},
            "pays": all(seconds < PAYS * taken[one] for one in taken if sizes[one] > sizes[name]),
        }
        for name, seconds in taken.items()
    ]


def _product(module: Any, isa: str, form: Format, outputs: int, inputs: int) -> Callable[[NDArray[np.float32]], object]:
    """What multiplies by a matrix in a format. Of its rows a panel's are rounded, and repeated: a clock does not see
    what the codes are."""
    some_NK = np.random.default_rng(0).standard_normal((LANES, inputs)).astype(np.float32)
    again = np.arange(outputs) % LANES
    parts = Parts()
    matrix = some_NK[again] if form.rounding is None else form.rounding.round(some_NK).take(again)
    parts.add(form.bytes(outputs, inputs), lambda room: form.pack_into(matrix, room))
    packed = parts.made()
    header = {"format": form.kind, "outputs": outputs, "inputs": inputs, "offset": 0, "bias": None, **form.options}
    return lambda x_MK: module.multiply(isa, header, packed, x_MK)


def _in_turn(
    products: dict[str, Callable[[NDArray[np.float32]], object]], x_MK: NDArray[np.float32], seconds: float
) -> dict[str, float]:
    """The median seconds of each, over rounds of all."""
    taken: dict[str, list[float]] = {name: [] for name in products}
    begun, rounds, passed = time.perf_counter(), 0, 0.0
    while passed < seconds or (rounds < LEAST_ROUNDS and passed < LONGEST * seconds):
        for name, product in products.items():
            started = time.perf_counter()
            product(x_MK)
            taken[name].append(time.perf_counter() - started)
        rounds, passed = rounds + 1, time.perf_counter() - begun
    # The first round found cold caches, and counts where there is no other.
    return {name: statistics.median(values[1:] or values) for name, values in taken.items()}
