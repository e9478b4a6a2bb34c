"""The CPU as the system describes it, without torch: its instruction sets, and the cores that this process may use."""

from __future__ import annotations

import functools
import math
import os
from pathlib import Path

# Instruction sets that multiply bfloat16 natively; without one of them it is slower than float32.
NATIVE_BFLOAT16 = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
CPUS = Path("/sys/devices/system/cpu")


@functools.cache
def cpu_flags() -> frozenset[str]:
    """The CPU's instruction-set flags as Linux names them; empty on other systems."""
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return frozenset()
    for line in path.read_text().splitlines():
        if line.startswith(("flags", "Features")):
            return frozenset(line.split(":", 1)[1].split())
    return frozenset()


def usable_cores() -> int:
    """Physical cores that this process may use: those in its affinity mask, no more than the container's quota."""
    if not hasattr(os, "sched_getaffinity"):
        return os.cpu_count() or 1
    allowed = os.sched_getaffinity(0)
    cores = {_core_of(cpu) for cpu in allowed}
    quota = cgroup_quota()
    return max(1, min(len(cores), math.ceil(quota))) if quota is not None else len(cores)


def _core_of(cpu: int) -> tuple[str, str]:
    """(socket, core) of a logical CPU; two hyper-threads share one. Without topology each counts as a core."""
    topology = CPUS / f"cpu{cpu}" / "topology"
    try:
        return (topology / "physical_package_id").read_text().strip(), (topology / "core_id").read_text().strip()
    except OSError:
        return "", str(cpu)


def cgroup_quota() -> float | None:
    """Cores' worth of time that a container grants (cgroup v2), or None without a limit."""
    try:
        limit, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        return None
    return None if limit == "max" else int(limit) / int(period)
