"""A cache of kept copies for one test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from chinchilla_lm.runtime import loading
from chinchilla_lm.runtime.engine import keeping, kept


@pytest.fixture
def copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where copies are kept: of files as young as they are, and however quickly they were made."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("CHINCHILLA_KEEP", "1")
    monkeypatch.setattr(loading, "WORTH", 0.0)
    monkeypatch.setattr(keeping, "PAUSE", 0.0)
    monkeypatch.setattr(kept.time, "time_ns", lambda: 2**62)
    return tmp_path / "cache" / "chinchilla" / "programs"


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The formats of what was made from a file, and not taken from a copy."""
    forms: list[str] = []
    real = loading.compile_file

    def counting(path: Any, form: str, task: str | None = None) -> Any:
        forms.append(form)
        return real(path, form, task)

    monkeypatch.setattr(loading, "compile_file", counting)
    return forms
