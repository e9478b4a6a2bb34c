"""CPU limits of containers and services, in trees of files as the kernel shows them."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from chinchilla_lm.runtime import cpu

Quota = Callable[[Mapping[str, str]], float | None]
V2, V1 = "sys/fs/cgroup/", "sys/fs/cgroup/cpu,cpuacct/"


@pytest.fixture
def quota(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Quota:
    """The quota that a tree of files amounts to."""

    def find(files: Mapping[str, str]) -> float | None:
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
        for name in ("CGROUPS", "PROCESS"):
            monkeypatch.setattr(cpu, name, f"{tmp_path}{getattr(cpu, name)}")
        return cpu.cgroup_quota()

    return find


def v1(folder: str, limit: int, period: int = 100_000) -> dict[str, str]:
    return {f"{folder}cpu.cfs_quota_us": f"{limit}\n", f"{folder}cpu.cfs_period_us": f"{period}\n"}


SELF = "proc/self/cgroup"
HYBRID = "1:name=systemd:/a\n4:cpu,cpuacct:/a/b\n0::/a\n"
CASES: dict[str, tuple[dict[str, str], float | None]] = {
    "nothing": ({}, None),
    "own namespace": ({V2 + "cpu.max": "200000 100000\n", SELF: "0::/\n"}, 2.0),
    "no word of the group": ({V2 + "cpu.max": "50000 100000\n"}, 0.5),
    "a service": (
        {V2 + "system.slice/t.service/cpu.max": "200000 100000\n", SELF: "0::/system.slice/t.service\n"},
        2.0,
    ),
    "a slice above": (
        {V2 + "a.slice/cpu.max": "100000 100000", V2 + "a.slice/t/cpu.max": "max 100000", SELF: "0::/a.slice/t\n"},
        1.0,
    ),
    "the smallest of three": (
        {
            V2 + "a/cpu.max": "300000 100000",
            V2 + "a/b/cpu.max": "125000 50000",
            V2 + "a/b/c/cpu.max": "400000 100000",
            SELF: "0::/a/b/c\n",
        },
        2.5,
    ),
    "none of them": ({V2 + "a/cpu.max": "max 100000\n", SELF: "0::/a\n"}, None),
    "a neighbour's": ({V2 + "b/cpu.max": "100000 100000\n", SELF: "0::/a\n"}, None),
    "a fraction": ({V2 + "cpu.max": "150000 100000\n", SELF: "0::/\n"}, 1.5),
    "another period": ({V2 + "cpu.max": "30000 20000\n", SELF: "0::/\n"}, 1.5),
    "a limit alone": ({V2 + "cpu.max": "200000\n", SELF: "0::/\n"}, 2.0),
    "a process outside its namespace": ({V2 + "cpu.max": "100000 100000\n", SELF: "0::/../../x\n"}, 1.0),
    "version 1": (v1("sys/fs/cgroup/cpu/", 200_000) | {SELF: "4:cpu,cpuacct:/\n"}, 2.0),
    "version 1, both names": (v1(V1, 250_000) | {SELF: "4:cpu,cpuacct:/\n"}, 2.5),
    "version 1, the other order": (v1("sys/fs/cgroup/cpuacct,cpu/", 100_000) | {SELF: "4:cpuacct,cpu:/\n"}, 1.0),
    "version 1, the host's names": (v1(V1, 300_000) | {SELF: "4:cpu,cpuacct:/docker/f00\n"}, 3.0),
    "version 1, a group above": (v1(V1 + "a/", 100_000) | v1(V1 + "a/b/", -1) | {SELF: "4:cpu,cpuacct:/a/b\n"}, 1.0),
    "version 1, no limit": (v1(V1, -1) | {SELF: "4:cpu,cpuacct:/\n"}, None),
    "version 1, time alone is counted": (v1("sys/fs/cgroup/cpu/", 100_000) | {SELF: "4:cpuacct:/\n0::/\n"}, None),
    "both versions": (v1(V1 + "a/b/", 100_000) | {V2 + "unified/a/cpu.max": "max", SELF: HYBRID}, 1.0),
    "both versions, the other's": (v1(V1, -1) | {V2 + "unified/a/cpu.max": "200000 100000", SELF: HYBRID}, 2.0),
    "letters": ({V2 + "cpu.max": "many 100000\n", SELF: "0::/\n"}, None),
    "an empty file": ({V2 + "cpu.max": "", SELF: "0::/\n"}, None),
    "a period of none": ({V2 + "cpu.max": "100000 0\n", SELF: "0::/\n"}, None),
    "a limit below none": ({V2 + "cpu.max": "-5 100000\n", SELF: "0::/\n"}, None),
    "a broken list": ({V2 + "cpu.max": "100000 100000\n", SELF: "nonsense\n\n0::/\n"}, 1.0),
}


@pytest.mark.parametrize("name", CASES)
def test_the_smallest_limit_above_a_process_counts(name: str, quota: Quota):
    files, wanted = CASES[name]
    assert quota(files) == wanted


def test_mounts_elsewhere_are_found(quota: Quota, tmp_path: Path):
    mounts = (
        f"30 20 0:27 /docker/f00 {tmp_path}/groups/time rw,nosuid - cgroup cgroup rw,cpu,cpuacct\n"
        f"31 20 0:28 / {tmp_path}/groups/memory rw - cgroup cgroup rw,memory\n"
        "a broken line\n"
    )
    files = v1("groups/time/", 400_000) | v1("groups/time/inner/", 150_000) | v1("groups/memory/", 1000)
    named = {"proc/self/mountinfo": mounts, SELF: "4:cpu,cpuacct:/docker/f00/inner\n"}
    assert quota(files | named) == 1.5


def test_files_that_may_not_be_read_limit_nothing(quota: Quota, tmp_path: Path):
    (tmp_path / V2 / "cpu.max").mkdir(parents=True)  # reading it fails for every user
    assert quota({SELF: "0::/\n"}) is None


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="no affinity here")
@pytest.mark.parametrize(("limit", "cores"), [(None, 4), (2.0, 2), (1.5, 2), (0.1, 1), (64.0, 4)])
def test_threads_are_no_more_than_the_cores_and_the_quota(limit, cores, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    monkeypatch.setattr(cpu, "CPUS", Path("/nowhere"))  # no two of them on one core
    monkeypatch.setattr(cpu, "cgroup_quota", lambda: limit)
    assert cpu.usable_cores() == cores
