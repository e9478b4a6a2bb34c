"""What pip is told: pins that satisfy the ranges, and one version number."""

import ast
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, assert_type

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import chinchilla_lm
from chinchilla_lm.installed import FULL

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]


def pins(*names: str) -> dict[str, str]:
    lines = [line for name in names for line in (ROOT / name).read_text(encoding="utf-8").splitlines()]
    found = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(each.name): str(each.specifier).removeprefix("==") for each in found}


def of_others(*extras: str) -> list[str]:
    """What extras ask for; of our own extras that they name, what those ask for."""
    wanted = [Requirement(one) for extra in extras for one in EXTRAS[extra]]
    own = [extra for one in wanted if one.name == PROJECT["name"] for extra in one.extras]
    return [str(one) for one in wanted if one.name != PROJECT["name"]] + (of_others(*own) if own else [])


# Torch for CUDA asks for the one version that it comes with; without it, packed models run on a GPU as floats.
OF_TORCH = {"triton"}


@pytest.mark.parametrize("wanted", sorted({*PROJECT["dependencies"], *of_others("test", "hub", "demo", "docs")}))
def test_every_dependency_is_pinned_within_its_range(wanted: str):
    requirement = Requirement(wanted)
    pinned = pins("constraints.txt", "requirements-demo.txt")
    if requirement.name in OF_TORCH:
        assert requirement.name not in pinned
        return
    assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)])


def test_no_pin_names_a_build():
    assert not [pin for pin in pins("constraints.txt").values() if "+" in pin]


def test_version_is_a_release_number():
    assert re.fullmatch(r"\d+\.\d+\.\d+", chinchilla_lm.__version__)
    assert PROJECT["dynamic"] == ["version"]


# Distributions whose modules have another name.
DISTRIBUTIONS = {"yaml": "pyyaml", "sklearn": "scikit-learn"}
OWN = {"chinchilla_lm", "tests"}


def imported(room: str) -> Iterator[tuple[str, Path]]:
    """Every module from elsewhere that a folder imports, as a distribution, and where."""
    for path in (ROOT / room).rglob("*.py"):
        if "workers" in path.parts:  # they run in environments of their own
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [one.name for one in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [str(node.module)]
            for name in {name.split(".")[0] for name in names} - set(sys.stdlib_module_names) - OWN:
                yield canonicalize_name(DISTRIBUTIONS.get(name, name)), path


def named(*wanted: list[str]) -> set[str]:
    return {canonicalize_name(Requirement(one).name) for each in wanted for one in each}


def test_the_extra_is_what_its_absence_is_explained_by():
    assert {name.replace("_", "-") for name in FULL} == named(EXTRAS["full"])
    assert not named(EXTRAS["full"]) & named(PROJECT["dependencies"])


@pytest.mark.parametrize(("room", "extras"), [("chinchilla_lm", ("hub",)), ("tests", ("hub", "test"))])
def test_what_is_imported_is_declared(room: str, extras: tuple[str, ...]):
    declared = named(PROJECT["dependencies"], of_others(*extras)) | OF_TORCH
    found = list(imported(room))
    assert {name for name, _ in found} & declared
    assert {(name, path.name) for name, path in found if name not in declared} == set()


@pytest.fixture
def without_compiler(tmp_path: Path) -> Path:
    """The sources, as pip would build them."""
    for tool in ("scikit_build_core", "nanobind"):
        if importlib.util.find_spec(tool) is None:
            pytest.skip(f"{tool} is not installed")
    if shutil.which("cmake") is None or os.name == "nt":
        pytest.skip("no cmake here")
    for name in ("pyproject.toml", "CMakeLists.txt", "README.md", "LICENSE"):
        shutil.copyfile(ROOT / name, tmp_path / name)
    ignored = shutil.ignore_patterns("*.so", "__pycache__")
    shutil.copytree(ROOT / "chinchilla_lm", tmp_path / "chinchilla_lm", ignore=ignored)
    return tmp_path


def build(folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    call = "from scikit_build_core.build import build_wheel; build_wheel('dist')"
    environment = {key: value for key, value in os.environ.items() if key != "CHINCHILLA_NO_ENGINE"}
    environment |= {"CXX": "/bin/false", **variables}
    return subprocess.run([sys.executable, "-c", call], cwd=folder, env=environment, capture_output=True, text=True)


def test_a_failed_compilation_stops_the_installation_and_says_what_to_do(without_compiler: Path):
    ran = build(without_compiler)
    said = ran.stdout + ran.stderr
    assert ran.returncode != 0
    assert not list(without_compiler.glob("dist/*.whl"))
    assert "its native engine could not be compiled" in said
    assert "C++20 compiler" in said
    assert "set CHINCHILLA_NO_ENGINE=1" in said


def test_without_the_engine_only_where_that_is_asked_for(without_compiler: Path):
    assert build(without_compiler, CHINCHILLA_NO_ENGINE="0").returncode != 0
    ran = build(without_compiler, CHINCHILLA_NO_ENGINE="1")
    assert ran.returncode == 0, ran.stderr
    [wheel] = without_compiler.glob("dist/*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "chinchilla_lm/native/__init__.py" in names
    assert "chinchilla_lm/py.typed" in names
    assert not [name for name in names if name.endswith((".so", ".cpp", ".h"))]


def test_type_checkers_may_read_the_package():
    assert files("chinchilla_lm").joinpath("py.typed").is_file()


def test_every_public_name_is_there():
    assert sorted(chinchilla_lm._EXPORTS) == chinchilla_lm.__all__
    for name in chinchilla_lm.__all__:
        assert getattr(chinchilla_lm, name).__name__ == name


if TYPE_CHECKING:  # mypy sees the types behind the names that are looked up on first use, and not Any
    assert_type(chinchilla_lm.Plan.full(1), chinchilla_lm.Plan)
    assert_type(chinchilla_lm.load("folder"), chinchilla_lm.Session)
