"""chinchilla.json: what is known of a model of ours beside its config, read without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from chinchilla_lm.errors import InputError
from chinchilla_lm.files import read_json

# Key of chinchilla.json: the model learnt from the answers of some data, beyond what the one before it knew.
ADAPTED = "adapted"
META = "chinchilla.json"
VERSION = 1  # of its layout
# Where certificates stood before they had a file of their own: no copy of a model takes them along.
_CERTIFICATE = ("certificate", "sha256")


def read_meta(path: Path, remedy: str = "make the model again") -> dict[str, Any]:
    """Its entries; none where there is no such file. Raises InputError, which ends in `remedy`, for a damaged one."""
    if not path.is_file():
        return {}
    meta: Any = read_json(path, "model description")
    if not isinstance(meta, dict) or meta.get("version") != VERSION:
        found = meta.get("version") if isinstance(meta, dict) else None
        raise InputError(f"{path} has version {found!r:.60}, not {VERSION}; update chinchilla-lm or {remedy}")
    if meta.get("tags") not in (None, "BIO"):
        raise InputError(f"{path}: tags {meta['tags']!r:.60} is not BIO; {remedy}")
    if not isinstance(meta.get("hub", {}), dict):
        raise InputError(f"{path}: hub {meta['hub']!r:.60} is not model, revision and commit; {remedy}")
    _check_window(meta.get("window", {}), path, remedy)
    return {key: value for key, value in meta.items() if key not in _CERTIFICATE}


def _check_window(window: Any, path: Path, remedy: str) -> None:
    """What the model was trained with, as finetune and compress write it: either entry may be missing."""
    if not isinstance(window, dict):
        raise InputError(f"{path}: window {window!r:.60} is not context and max_tokens; {remedy}")
    context, tokens = window.get("context"), window.get("max_tokens")
    if context not in (None, "sentence", "document"):
        raise InputError(f"{path}: context {context!r:.60} is not sentence or document; {remedy}")
    if tokens is not None and (type(tokens) is not int or tokens < 1):
        raise InputError(f"{path}: max_tokens {tokens!r:.60} is not a number of tokens from 1; {remedy}")
