"""The machine as the system describes it, and the verdict on made-up machines."""

import copy
import json
import os
from typing import Any

import pytest
import torch

from chinchilla_lm import cli
from chinchilla_lm.native import engine_module
from chinchilla_lm.pack.formats import FORMATS
from chinchilla_lm.pipeline.doctor import make_checks
from chinchilla_lm.results import Machine
from chinchilla_lm.runtime import cpu
from chinchilla_lm.runtime.measuring import formats, machine
from chinchilla_lm.runtime.measuring.formats import ROWS, SIZES, rows_of


@pytest.fixture
def found() -> Machine:
    return machine.describe()


def test_the_description_is_plain_json_and_agrees_with_the_system(found: Machine):
    assert json.loads(json.dumps(found)) == found
    cpu = found["cpu"]
    logical = cpu["logical_cores"]
    assert logical is not None
    assert 1 <= cpu["usable_cores"] <= logical == os.cpu_count()
    assert cpu["threads"] == torch.get_num_threads()
    assert found["versions"]["torch"] == torch.__version__
    assert len(found["cuda"]) == torch.cuda.device_count()
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        assert found["memory_bytes"] == pytest.approx(
            os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), rel=0.02
        )


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs CPU affinity")
def test_usable_cores_follow_the_affinity_mask():
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert machine.usable_cores() == 1
    finally:
        os.sched_setaffinity(0, allowed)


def test_a_container_quota_caps_the_cores(monkeypatch):
    monkeypatch.setattr(cpu, "cgroup_quota", lambda: 0.5)
    assert machine.usable_cores() == 1


def test_two_hyper_threads_are_one_core(monkeypatch, tmp_path):
    for number, core in enumerate([0, 0, 1, 1]):
        (tmp_path / f"cpu{number}" / "topology").mkdir(parents=True)
        (tmp_path / f"cpu{number}" / "topology" / "physical_package_id").write_text("0\n")
        (tmp_path / f"cpu{number}" / "topology" / "core_id").write_text(f"{core}\n")
    monkeypatch.setattr(cpu, "CPUS", tmp_path)
    monkeypatch.setattr(cpu, "cgroup_quota", lambda: None)
    monkeypatch.setattr(cpu.os, "sched_getaffinity", lambda pid: {0, 1, 2, 3}, raising=False)
    assert machine.usable_cores() == 2


def test_the_last_level_cache_is_the_largest(monkeypatch, tmp_path):
    for index, size in enumerate(["48K", "1024K", "32M"]):
        (tmp_path / "cpu0" / "cache" / f"index{index}").mkdir(parents=True)
        (tmp_path / "cpu0" / "cache" / f"index{index}" / "size").write_text(size + "\n")
    monkeypatch.setattr(machine, "CPUS", tmp_path)
    assert machine.last_level_cache() == 32 << 20


@pytest.mark.parametrize(
    ("flags", "names"),
    [
        ({"avx2", "fma"}, ["AVX2"]),
        ({"avx2", "avx_vnni"}, ["AVX2", "VNNI"]),
        (
            {"avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_int8"},
            ["AVX2", "AVX-512F", "BF16", "AMX-BF16", "AMX-INT8"],
        ),
        ({"asimd", "asimddp", "bf16"}, ["BF16", "NEON", "DOTPROD"]),
        (set(), []),
    ],
)
def test_instruction_sets_are_named_from_the_flags(flags: set[str], names: list[str]):
    assert machine.instruction_sets(frozenset(flags)) == names


def test_packaged_models_are_found_without_importing_them(monkeypatch, tmp_path):
    package = tmp_path / "a_model_package"
    (package / "model").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    places = {"there": ("a_model_package", "model"), "cut": ("a_model_package", "x.gguf"), "none": ("no_such", "model")}
    monkeypatch.setattr(machine, "PACKAGED_MODELS", places)
    assert machine.packaged_models() == {"there": str(package / "model"), "cut": None, "none": None}


GOOD = {
    "cpu": {"architecture": "x86_64", "instruction_sets": ["AVX2"], "usable_cores": 8, "threads": 8},
    "memory_bytes": 64e9,
    "memory_available_bytes": 60e9,
    "load_average": 0.1,
    "cuda": [],
    "native": {"kernels": ["avx2", "portable"], "runs": "avx2", "error": None},
    "missing": [],
}


def warned(found: Any, gemm: tuple[float, float] = (100.0, 200.0), models: dict | None = None) -> dict[str, str]:
    checks = make_checks(found, 50.0, {"float32": gemm[0], "bfloat16": gemm[1]}, models or {"m": "/m"})
    return {check.name: check.text for check in checks if not check.passed}


def test_a_good_machine_has_no_warning():
    assert warned(GOOD) == {}


@pytest.mark.parametrize(
    ("place", "value", "name", "remedy"),
    [
        (("cpu", "instruction_sets"), ["SVE"], "instruction sets", "no AVX2"),
        (("cpu", "instruction_sets"), [], "instruction sets", "does not name"),
        (("cpu", "threads"), 16, "cores", "pass --threads 8"),
        (("load_average",), 2.5, "load", "stop what else runs"),
        (("native",), {"kernels": [], "runs": None, "error": None}, "native engine", "install a C++ compiler"),
        (("native", "runs"), "portable", "native engine", "runs its portable kernels (could also run avx2)"),
        (("native", "error"), "CHINCHILLA_ISA=mmx is not one", "native engine", "CHINCHILLA_ISA=mmx"),
        (("missing",), ["gguf"], "parts", "gguf not installed; pip install 'chinchilla-lm[full]'"),
        (("memory_available_bytes",), 1e9, "memory", "1.0 GB free: close something"),
    ],
)
def test_each_fault_is_one_warning_with_its_remedy(place: tuple[str, ...], value, name: str, remedy: str):
    found = copy.deepcopy(GOOD)
    inner = found
    for key in place[:-1]:
        inner = inner[key]  # type: ignore[assignment]
    inner[place[-1]] = value
    assert list(warned(found)) == [name]
    assert remedy in warned(found)[name]


def test_slow_bfloat16_and_missing_models_are_warned_of():
    assert warned(GOOD, gemm=(100.0, 50.0)) == {
        "bfloat16": "0.50 times the speed of float32 here; pass --dtype float32"
    }
    assert "requirements-demo.txt" in warned(GOOD, models={"m": None})["m"]


def test_what_a_system_does_not_tell_is_no_warning():
    found = GOOD | {"memory_bytes": None, "memory_available_bytes": None, "load_average": None}
    assert warned(found) == {}


def test_the_verb_prints_one_object_with_measured_figures(capsys):
    assert cli.main(["doctor", "--seconds", "0.1", "--json", "--quiet"]) == 0
    out, err = capsys.readouterr()
    result = json.loads(out)
    assert err == ""
    assert result["bandwidth_gb_s"] > 0.1
    assert set(result["machine"]["native"]) == {"kernels", "runs", "error"}
    assert result["reads"][-1]["gb_s"] == result["bandwidth_gb_s"]
    assert set(result["gemm_gflops"]) == {"float32", "bfloat16", "int8"}
    assert min(result["gemm_gflops"].values()) > 0.1
    assert {check["status"] for check in result["checks"]} <= {"pass", "warn"}
    assert set(result["models"]) == set(machine.PACKAGED_MODELS)


def test_the_verb_prints_every_check_for_people(capsys):
    assert cli.main(["doctor", "--seconds", "0.1"]) == 0
    out = capsys.readouterr().out
    assert "GFLOP/s" in out
    assert "GB/s" in out
    lines = [line for line in out.splitlines() if line.startswith(("PASS  ", "WARN  "))]
    assert len(lines) == 9 + len(machine.PACKAGED_MODELS)


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "inf"])
def test_the_verb_refuses_a_time_that_is_not_positive(capsys, seconds: str):
    assert cli.main(["doctor", f"--seconds={seconds}"]) == 2
    assert "is not greater than 0; pass --seconds 10" in capsys.readouterr().err


def test_a_format_pays_where_it_is_faster_than_all_with_more_bits():
    taken = {"f32": 4e-6, "bf16": 2e-6, "int8": 1e-6, "int8-row": 0.99e-6, "int4": 1.5e-6, "int4-g128": 0.8e-6}
    found = {one["format"]: one for one in rows_of(taken, 256, 512, 8)}
    pays = {name: one["pays"] for name, one in found.items()}
    assert pays == {"f32": True, "bf16": True, "int8": True, "int8-row": False, "int4": False, "int4-g128": True}
    assert found["int4"]["beside"] == {"bf16": 0.75, "int8": 1.5}
    assert found["int4"]["us"] == pytest.approx(1.5)
    assert found["int8-row"]["bits"] == 8 * FORMATS["int8-row"].bytes(256, 512) / (256 * 512)


@pytest.mark.skipif(engine_module() is None, reason="needs the native engine")
def test_every_format_is_timed_at_every_size(capsys):
    assert cli.main(["doctor", "--seconds", "0.1", "--json", "--quiet"]) == 0
    found = json.loads(capsys.readouterr().out)["formats"]
    cells = [(one["format"], one["outputs"], one["inputs"], one["rows"]) for one in found]
    assert sorted(cells) == sorted((name, *size, rows) for name in FORMATS for size in SIZES for rows in ROWS)
    assert min(one["us"] for one in found) > 0
    assert all(one["beside"][one["format"]] == 1 for one in found if one["format"] in one["beside"])


@pytest.mark.skipif(engine_module() is None, reason="needs the native engine")
def test_people_see_where_each_format_pays(capsys):
    assert cli.main(["doctor", "--seconds", "0.1"]) == 0
    out = capsys.readouterr().out
    assert out.count("pays at rows") == len(SIZES)
    assert "products with 1536 × 576 weights on one core" in out


def test_without_an_engine_no_format_is_timed(monkeypatch):
    monkeypatch.setattr(formats, "engine_module", lambda: None)
    assert formats.measure_formats(0.1) == []
