"""The C++ engine: kernels for each instruction set, the executor, the binding. It knows no model names."""

from __future__ import annotations

import importlib
from functools import cache
from types import ModuleType


@cache
def engine_module() -> ModuleType | None:
    """The compiled engine, or None where the package was installed without it."""
    try:
        return importlib.import_module("chinchilla_lm.native._engine")
    except ImportError:
        return None
