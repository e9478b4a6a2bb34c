"""chinchilla.json: what is known of a model of ours beside its config, read without torch."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from chinchilla_lm.errors import InputError
from chinchilla_lm.files import read_json
from chinchilla_lm.models.source import Located

# Key of chinchilla.json: the SHA-256 of the records whose own answers the model learnt from, once for every training,
# those of the models that it was made of or taught by included. What learnt from a model's outputs alone adds none.
ADAPTED = "adapted"
META = "chinchilla.json"
VERSION = 1  # of its layout
# Where certificates stood before they had a file of their own: no copy of a model takes them along.
_CERTIFICATE = ("certificate", "sha256")
_SHA256 = re.compile(r"[0-9a-f]{64}")


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
    _check_adapted(meta.get(ADAPTED, []), path, remedy)
    return {key: value for key, value in meta.items() if key not in _CERTIFICATE}


def meta_of(located: Located) -> dict[str, Any]:
    """The entries of a model's folder; none of a GGUF file. Raises InputError as `read_meta` does."""
    return {} if located.gguf is not None else read_meta(located.folder / META)


def _check_window(window: Any, path: Path, remedy: str) -> None:
    """What the model was trained with, as finetune and compress write it: either entry may be missing."""
    if not isinstance(window, dict):
        raise InputError(f"{path}: window {window!r:.60} is not context and max_tokens; {remedy}")
    context, tokens = window.get("context"), window.get("max_tokens")
    if context not in (None, "sentence", "document"):
        raise InputError(f"{path}: context {context!r:.60} is not sentence or document; {remedy}")
    if tokens is not None and (type(tokens) is not int or tokens < 1):
        raise InputError(f"{path}: max_tokens {tokens!r:.60} is not a number of tokens from 1; {remedy}")


def _check_adapted(found: Any, path: Path, remedy: str) -> None:
    """The trainings that finetune and compress note."""
    if not isinstance(found, list) or not all(isinstance(one, str) and _SHA256.fullmatch(one) for one in found):
        raise InputError(f"{path}: {ADAPTED} {found!r:.60} is not SHA-256 of training records; {remedy}")


def adapted(
    meta: Mapping[str, Any], records: str | None = None, teachers: Sequence[Mapping[str, Any]] = ()
) -> dict[str, list[str]]:
    """The entry of a model that is made of another; none where neither learnt from any answers.

    meta: the other's entries. records: the SHA-256 of those whose answers it learns from. teachers: the entries of
    models whose answers it learns from too, and so from what these learnt from.
    """
    learnt = _trainings(meta) + Counter([] if records is None else [records])
    for teacher in teachers:
        learnt |= _trainings(teacher)
    return {ADAPTED: sorted(learnt.elements())} if learnt else {}


def learnt_more(meta: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether a model learnt from answers that another one did not learn from, or more often."""
    return not _trainings(meta) <= _trainings(other)


def _trainings(meta: Mapping[str, Any]) -> Counter[str]:
    return Counter(meta.get(ADAPTED, []))
