"""The CPU as the system describes it, without torch: its instruction sets, and the cores that this process may use."""

from __future__ import annotations

import functools
import math
import os
from pathlib import Path

# Instruction sets that multiply bfloat16 natively; without one of them it is slower than float32.
NATIVE_BFLOAT16 = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
CPUS = Path("/sys/devices/system/cpu")
CGROUPS, PROCESS = "/sys/fs/cgroup", "/proc/self"
V1_FOLDERS = ("cpu", "cpu,cpuacct", "cpuacct,cpu")
DEFAULT_PERIOD = "100000"  # microseconds; the kernel's


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
    """Cores' worth of time that this process's control groups grant it, or None without a limit.

    A group's limit holds for all below it, so the smallest one counts among the process's own group and those above,
    in version 2 of the interface and in version 1. What cannot be read limits nothing.
    """
    quotas = (_quota_of(folder) for folder in _groups())
    return min((quota for quota in quotas if quota is not None), default=None)


def _quota_of(folder: Path) -> float | None:
    """What one group's files say: `cpu.max` (version 2), or quota and period (version 1)."""
    words = _words(folder / "cpu.max")
    if not words:
        words = [*_words(folder / "cpu.cfs_quota_us"), *_words(folder / "cpu.cfs_period_us")]
    try:
        limit, period = (int(word) for word in (*words, DEFAULT_PERIOD)[:2])
    except ValueError:  # `max`, or a file of something else
        return None
    return limit / period if limit > 0 and period > 0 else None


def _groups() -> set[Path]:
    """The folders of the process's groups and of those above, wherever they are mounted."""
    found = set()
    for controllers, group in _memberships():
        names = ("", "unified") if not controllers else (controllers, *V1_FOLDERS)
        mounts = {(f"{CGROUPS}/{name}".rstrip("/"), "/") for name in names} | _mounts(not controllers)
        for mount, root in mounts:
            # A mount may show the groups below `root` alone, as a container's does.
            inside = group.removeprefix(root) if f"{group}/".startswith(f"{root.rstrip('/')}/") else group
            parts = [part for part in inside.split("/") if part not in ("", ".", "..")]
            found |= {Path("/".join([mount, *parts[:depth]])) for depth in range(len(parts) + 1)}
    return found


def _memberships() -> list[tuple[str, str]]:
    """(controllers, group) of this process: no controllers are version 2's one tree. The roots where nothing says."""
    found = []
    for line in _lines(f"{PROCESS}/cgroup"):
        _, controllers, group = [*line.split(":", 2), "", ""][:3]
        if not controllers or "cpu" in controllers.split(","):
            found.append((controllers, group))
    return found or [("", "/"), ("cpu", "/")]


def _mounts(second: bool) -> set[tuple[str, str]]:
    """(place, root) of each mount of the groups of a version that limit time."""
    found = set()
    for line in _lines(f"{PROCESS}/mountinfo"):
        words, _, rest = line.partition(" - ")  # … root place … - type source options
        fields, kind, options = words.split(), rest.partition(" ")[0], rest.rpartition(" ")[2].split(",")
        if len(fields) > 4 and (kind == "cgroup2" if second else kind == "cgroup" and "cpu" in options):
            found.add((fields[4], fields[3]))
    return found


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def _words(path: Path) -> list[str]:
    return [word for line in _lines(str(path))[:1] for word in line.split()]
