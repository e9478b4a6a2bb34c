"""Chinchilla shortens pretrained transformers and proves on paired data that they are still as good::

    import chinchilla_lm as ch
    run = ch.compress("model-or-folder", task="token-classification", data="folder", speedup=2.0, margin=0.5, out="out")

The names below are looked up on first use, so `import chinchilla_lm` (and `chinchilla --help`) loads no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from chinchilla_lm.api import compress, finetune
    from chinchilla_lm.errors import ContractError, InputError
    from chinchilla_lm.plan import Plan
    from chinchilla_lm.runtime.loading import load
    from chinchilla_lm.runtime.session import Session

__all__ = ["ContractError", "InputError", "Plan", "Session", "compress", "finetune", "load"]
__version__ = "0.1.0"

# Name → module that holds it. The functions of other verbs are in `api` alone: here the rooms evaluate, pack, export,
# score, search and shorten would shadow those of their names as soon as anything imported them.
_EXPORTS = {
    "InputError": "chinchilla_lm.errors",
    "ContractError": "chinchilla_lm.errors",
    "Plan": "chinchilla_lm.plan",
    "Session": "chinchilla_lm.runtime.session",
    "load": "chinchilla_lm.runtime.loading",
    "compress": "chinchilla_lm.api",
    "finetune": "chinchilla_lm.api",
}


def __getattr__(name: str) -> Any:
    """Import the module that holds an exported name and return the name. Raises AttributeError for any other name."""
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_EXPORTS[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_EXPORTS])
