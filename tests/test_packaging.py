"""What pip is told: pins that satisfy the ranges, and one version number."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import chinchilla_lm

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]


def pins(*names: str) -> dict[str, str]:
    lines = [line for name in names for line in (ROOT / name).read_text(encoding="utf-8").splitlines()]
    found = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(each.name): str(each.specifier).removeprefix("==") for each in found}


@pytest.mark.parametrize("wanted", PROJECT["dependencies"] + EXTRAS["test"] + EXTRAS["hub"] + EXTRAS["demo"])
def test_every_dependency_is_pinned_within_its_range(wanted: str):
    requirement = Requirement(wanted)
    pinned = pins("constraints.txt", "requirements-demo.txt")
    assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)])


def test_no_pin_names_a_build():
    assert not [pin for pin in pins("constraints.txt").values() if "+" in pin]


def test_version_is_a_release_number():
    assert re.fullmatch(r"\d+\.\d+\.\d+", chinchilla_lm.__version__)
    assert PROJECT["dynamic"] == ["version"]
