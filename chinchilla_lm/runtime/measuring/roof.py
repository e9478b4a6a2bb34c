"""The roof over every speed: how fast this machine reads a program of this size, and multiplies numbers of this kind.

Decoding at batch 1 reads every weight once a token, so *read bandwidth* bounds it. Prefill, encoders and training
multiply large matrices, so the *peak of products* bounds them. A roof must be above what stands under it:

- Reads are measured over as many bytes as a step reads. A program of 100 MB stays in a third-level cache of 300 MB;
  held against the memory behind that, it once ran at "329 % of bandwidth".
- Products of bytes are held against products of bytes. torch has none that it documents, so our own kernel is asked
  too, and the faster of the two counts; so it is for floats.
- All cores work, whatever is asked of the programs; the fastest way and its fastest repeat count. A neighbour makes a
  figure too low, and nothing makes it too high.

A share above MOST_SHARE is therefore a fault of the measurement, and is told as one, never as a share.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from chinchilla_lm.errors import InputError
from chinchilla_lm.pack.formats import FORMATS
from chinchilla_lm.results import BenchRoof
from chinchilla_lm.runtime.cpu import usable_cores
from chinchilla_lm.runtime.engine.native import engine_module, instruction_set
from chinchilla_lm.runtime.engine.program import Parts
from chinchilla_lm.runtime.measuring.machine import available_memory, last_level_cache

MOST_SHARE = 1.05  # what timing errs by; more is no share
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# Kind of number → our format whose products are the fastest.
OURS = {"float32": "f32", "bfloat16": "bf16", "int8": "int8-row"}
KINDS = tuple(OURS)
_MIB = 1 << 20
# Below this a read takes as long as waking the threads for it.
_LEAST_READ_BYTES = _MIB
# What does not fit in any cache: four last-level caches, and no less than 256 MiB where none is known.
_LEAST_UNCACHED_BYTES = 256 * _MIB
# Sizes of products to try, smallest first: from 2048 on, the edges of oneDNN's and MKL's tiles no longer show. The
# smallest is for CPUs without bfloat16, where its emulation does 1 GFLOP/s: four products of 512 would take most of a
# second before any is timed.
_SIZES = (256, 512, 1024, 2048)
_LEAST_REPEATS = 3

Work = Callable[[], object]


class Roof:
    """What the machine can do at most; each figure is measured when it is first asked for."""

    def __init__(self) -> None:
        self._reads: dict[int, float] = {}
        self._products: dict[str, float] = {}

    def bandwidth(self, size: float) -> float:
        """GB/s of reading `size` bytes again and again."""
        size = round(size)
        if size not in self._reads:
            self._reads[size] = measure_bandwidth(size)
        return self._reads[size]

    def products(self, kind: str) -> float:
        """GFLOP/s of products of a kind, see KINDS."""
        if kind not in self._products:
            self._products[kind] = measure_products(kind)
        return self._products[kind]

    def look_again(self) -> None:
        """Measure all that was asked for once more, at another moment; the higher figure counts."""
        for size, known in self._reads.items():
            self._reads[size] = max(known, measure_bandwidth(size))
        for kind, known in self._products.items():
            self._products[kind] = max(known, measure_products(kind))

    def to_dict(self) -> BenchRoof:
        """What was measured: `reads`, bytes and GB/s of each, and `products`, GFLOP/s by kind."""
        return {
            "reads": [{"bytes": size, "gb_s": rate} for size, rate in sorted(self._reads.items())],
            "products": dict(self._products),
        }

    def of_reading(self, size: float, seconds: float) -> dict[str, Any]:
        """The share of bandwidth of a step that reads `size` bytes in `seconds`, as `held` has it."""
        roof = self.bandwidth(size)
        return {"read_bytes": round(size), "bandwidth_gb_s": roof} | held("bandwidth", size / seconds / 1e9, roof)

    def of_products(self, flops: float, seconds: float, form: str) -> dict[str, Any]:
        """The share of the peak of a pass of `flops` in `seconds` on weights of a format, as `held` has it."""
        kind = kind_of(form)
        roof = self.products(kind)
        return {"gemm_dtype": kind, "gemm_gflops": roof} | held("gemm", flops / seconds / 1e9, roof)


def held(name: str, rate: float, roof: float) -> dict[str, Any]:
    """`NAME_share`: of the roof; None, with the reason as `NAME_fault`, where it is more than a roof allows."""
    share = rate / roof
    if share > MOST_SHARE:
        return {f"{name}_share": None, f"{name}_fault": f"the roof was measured too low: {100 * share:.0f} %"}
    return {f"{name}_share": share}


def share_text(shares: Mapping[str, object], name: str) -> str:
    """The share for people, or what is wrong with it; empty where nothing was held against a roof."""
    share = shares.get(f"{name}_share")
    return f"{share:.0%}" if isinstance(share, float) else str(shares.get(f"{name}_fault", ""))


def roof_note(measured: BenchRoof) -> str:
    """What `Roof.to_dict` gives, for people."""
    reads = ", ".join(f"{read['gb_s']:.1f} GB/s of {read['bytes'] / 1e6:,.0f} MB" for read in measured["reads"])
    products = ", ".join(f"{rate:,.0f} GFLOP/s in {kind}" for kind, rate in measured["products"].items())
    return "roof, measured on all cores: " + "; ".join(
        [*([f"reads {reads}"] if reads else []), *([f"products {products}"] if products else [])]
    )


def kind_of(form: str) -> str:
    """The kind of numbers that a format's products are made of: weights of 8 bits and fewer are multiplied as bytes."""
    if re.match(r"(?:int|i?q)\d|codebook|sparse", form, re.IGNORECASE):
        return "int8"
    return "bfloat16" if re.match(r"bf|f(?:loat)?16", form) else "float32"


def uncached_size() -> int:
    """Bytes that no cache holds, as far as memory allows."""
    return max(_LEAST_UNCACHED_BYTES, 4 * (last_level_cache() or 0))


def measure_bandwidth(size: int, seconds: float = 0.6) -> float:
    """GB/s (1e9 bytes) at which all cores read a buffer of `size` bytes, the same again and again.

    Three float32 reductions that read each byte once; the fastest repeat of the fastest counts. Raises InputError for
    a time that is not positive.
    """
    _check_time(seconds)
    available = available_memory()
    size = max(_LEAST_READ_BYTES, size if available is None else min(size, available // 4))
    buffer = torch.ones(size // 4)
    reads: tuple[Work, ...] = (buffer.sum, buffer.amax, lambda: torch.dot(buffer, buffer))
    with _all_cores():
        fastest = min(min(_times(read, seconds / len(reads))) for read in reads)
    return buffer.numel() * 4 / fastest / 1e9


def measure_products(kind: str, seconds: float = 1.5) -> float:
    """GFLOP/s (1e9 operations, 2 n³ a product) of square products on all cores, the fastest repeat of the fastest way.

    kind: "float32", "bfloat16" or "int8", whose operations are as many. n is 2048, or less on a machine too slow for
    three of those in the time. Raises InputError for another kind or a time that is not positive.
    """
    _check_time(seconds)
    if kind not in KINDS:
        raise InputError(f"dtype {kind} is not one of {', '.join(KINDS)}; pass float32")
    with _all_cores():
        ways = _ways(kind)
        return max(_rate(way, seconds / len(ways)) for way in ways)


def _ways(kind: str) -> list[Callable[[int], Work]]:
    """What multiplies two squares of n here: torch, our kernels. Bytes that nobody multiplies count as floats."""
    ways: list[Callable[[int], Work]] = []
    if kind in DTYPES:
        ways.append(lambda n: _floats(n, DTYPES[kind]))
    elif _works(_bytes):
        ways.append(_bytes)
    if engine_module() is not None:
        ways.append(lambda n: _our_product(n, OURS[kind]))
    return ways or _ways("float32")


def _works(way: Callable[[int], Work]) -> bool:
    try:
        way(_SIZES[0])()
    except (AttributeError, RuntimeError):  # a torch without it, or not for this CPU
        return False
    return True


def _floats(n: int, dtype: torch.dtype) -> Work:
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(n, n, generator=generator).to(dtype) for _ in range(2))
    out = torch.empty(n, n, dtype=dtype)
    return lambda: torch.mm(left, right, out=out)


def _bytes(n: int) -> Work:
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randint(-127, 128, (n, n), generator=generator).to(torch.int8) for _ in range(2))
    return lambda: torch._int_mm(left, right)


def _our_product(n: int, name: str) -> Work:
    """Rows of inputs shared among the cores, as in the engine."""
    module, form, cores = engine_module(), FORMATS[name], usable_cores()
    assert module is not None, "asked for where there is an engine"
    random = np.random.default_rng(0)
    packed = form.pack(random.standard_normal((n, n), np.float32)).reshape(-1).view(np.uint8)
    parts = Parts()
    parts.add(packed.size, lambda room: np.copyto(room, packed))
    data = parts.made()
    header = {"format": form.kind, "outputs": n, "inputs": n, "offset": 0, "bias": None, **form.options}
    isa = instruction_set() or module.kernel_names()[0]
    shares = np.array_split(random.standard_normal((n, n), np.float32), cores)
    pool = ThreadPoolExecutor(cores)
    return lambda: list(pool.map(lambda rows: module.multiply(isa, header, data, rows), shares))


def _rate(way: Callable[[int], Work], seconds: float) -> float:
    n = _largest(way, seconds)
    return 2 * n**3 / min(_times(way(n), seconds)) / 1e9


def _largest(way: Callable[[int], Work], seconds: float) -> int:
    """The largest size of which three products fit in the time.

    Each is judged from the size before it, not from the smallest, most of whose time is not the product's; and from the
    fastest, not the median: the first calls also start torch's threads, which can take a hundred times as long.
    """
    n, *larger = _SIZES
    for next_n in larger:
        fastest = min(_times(way(n), seconds / 20))
        if _LEAST_REPEATS * fastest * (next_n / n) ** 3 > seconds:
            break
        n = next_n
    return n


def _times(work: Work, seconds: float) -> list[float]:
    """Seconds of each call: one call to warm up, then repeats until the time is spent, three at the least."""
    work()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < _LEAST_REPEATS or time.perf_counter() < end:
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return times


@contextmanager
def _all_cores() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(usable_cores())
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _check_time(seconds: float) -> None:
    if not (math.isfinite(seconds) and seconds > 0):
        raise InputError(f"seconds {seconds} is not greater than 0; pass 1.5")
