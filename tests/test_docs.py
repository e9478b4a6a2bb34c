"""The documentation: its site builds without a warning, and it names only what is there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest

import chinchilla_lm

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
ARCHITECTURE = DOCS / "architecture.md"
EXACT = [*sorted((DOCS / "how-to").glob("*.md")), DOCS / "platforms.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md"]
SOURCES = (".py", ".cpp", ".h", ".sh", ".md", ".toml", ".yml", ".txt")
SKIPPED = {"__pycache__", "out", "build", "dist"}
# Letters of a shape behind a name, `x_BTD`, and what stands for a name that a reader chooses.
SHAPE, CHOSEN = re.compile(r"(?<=[a-z])_[A-Z]{1,3}$"), {"NAME", "MODEL", "PACKED", "ORIGINAL", "DATA"}
ELSEWHERE = {"llama.cpp", "unistd.h"}  # a project, and a header of the system


def named_files(text: str) -> set[str]:
    """The files that a text names, with or without their folder."""
    found = re.findall(rf"[\w./-]*\w(?:{'|'.join(map(re.escape, SOURCES))})\b", text)
    return {name for name in found if Path(name).stem not in CHOSEN} - ELSEWHERE


@cache
def files() -> tuple[str, ...]:
    """Every source file of the repository, from its root."""
    found = []
    for folder, inner, names in os.walk(ROOT):
        inner[:] = [name for name in inner if name not in SKIPPED and not name.startswith(".")]
        found += [Path(folder, name).relative_to(ROOT).as_posix() for name in names if name.endswith(SOURCES)]
    return tuple(found)


@cache
def words() -> frozenset[str]:
    """Every word of the code."""
    folders = ("chinchilla_lm/", "tests/", "benchmarks/")
    code = [name for name in files() if name.startswith(folders) and name != "tests/test_docs.py"]
    code += ["CMakeLists.txt", "pyproject.toml"]
    return frozenset(word for name in code for word in re.findall(r"\w+", (ROOT / name).read_text(encoding="utf-8")))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as its configuration says; any warning fails."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-E", str(DOCS), str(folder)]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return folder


def test_the_reference_has_every_public_name(site: Path):
    page = (site / "reference.html").read_text(encoding="utf-8")
    for name in chinchilla_lm.__all__:
        assert f'id="chinchilla_lm.{name}"' in page
    assert 'id="chinchilla_lm.Session.entities"' in page


def test_the_site_takes_nothing_from_elsewhere(site: Path):
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert not re.findall(r'(?:src|<link[^>]+href)="(?:https?:)?//[^"]*"', text), page


def test_the_architecture_names_files_that_are_there():
    named = named_files(ARCHITECTURE.read_text(encoding="utf-8"))
    assert len(named) > 30
    assert {name for name in named if not any(f"/{path}".endswith(f"/{name}") for path in files())} == set()


@pytest.mark.parametrize("page", EXACT, ids=lambda page: page.name)
def test_guides_name_files_by_their_whole_path(page: Path):
    text = re.sub(r"\]\([^)]*\)", "", page.read_text(encoding="utf-8"))  # links go by the page's own folder
    assert {name for name in named_files(text) if not (ROOT / name).is_file()} == set()


@pytest.mark.parametrize("page", [ARCHITECTURE, *EXACT], ids=lambda page: page.name)
def test_names_in_code_are_those_of_the_code(page: Path):
    text = page.read_text(encoding="utf-8")
    spans = re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    found = {
        SHAPE.sub("", name)
        for span in spans
        for name in re.findall(r"[A-Za-z_]\w{2,}", span)
        if " " not in span.split("(")[0] and not named_files(span) and "/" not in span and name not in CHOSEN
    }
    assert {name for name in found if name not in words()} == set()


@pytest.mark.parametrize("page", sorted(DOCS.rglob("*.md")), ids=lambda page: str(page.relative_to(DOCS)))
def test_links_lead_to_files(page: Path):
    targets = re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8"))
    assert [target for target in targets if not (page.parent / target).exists()] == []


def test_the_stair_of_the_architecture_is_the_one_that_is_checked():
    text = ARCHITECTURE.read_text(encoding="utf-8")
    block = text.split("Rooms import downwards only:")[1].split("\n\n")[1]
    drawn = [sorted(line.strip().split(", ")) for line in block.splitlines()]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = project["tool"]["importlinter"]["contracts"]
    [layers] = [contract["layers"] for contract in contracts if contract["type"] == "layers"]
    assert drawn == [sorted(layer.split(" | ")) for layer in layers]
