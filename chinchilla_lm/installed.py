"""What of our dependencies is installed.

`pip install chinchilla-lm` brings what runs packed models, some 100 MB. The extra `full` brings all that reads, trains
and judges the others: torch above all, which by itself is larger than everything else together many times over. A verb
that needs it says so in one line.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

from chinchilla_lm.errors import InputError

# The modules that the extra brings.
FULL = ("torch", "transformers", "safetensors", "huggingface_hub", "gguf")
REMEDY = "pip install 'chinchilla-lm[full]'"


def missing() -> tuple[str, ...]:
    """The modules of the extra that are not installed. Imports none of them."""
    return tuple(name for name in FULL if not _is_there(name))


def part_of(error: BaseException) -> str | None:
    """The module of the extra whose absence an error is about; None for every other error."""
    if not isinstance(error, ModuleNotFoundError) or not error.name:
        return None
    module = error.name.partition(".")[0]
    return module if module in FULL and not _is_there(module) else None


@contextmanager
def needing(who: str) -> Iterator[None]:
    """Raise InputError where `who` needs a module of the extra that is not installed."""
    try:
        yield
    except ModuleNotFoundError as error:
        module = part_of(error)
        if module is None:
            raise
        raise InputError(lacks(who, module)) from error


def lacks(who: str, module: str) -> str:
    """What there is to say."""
    return f"{who} needs {module}, which is not installed; {REMEDY}"


def _is_there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):  # kept from being imported
        return False
