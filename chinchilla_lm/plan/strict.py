"""Strict reading: the checks and the JSON behind plans and cost tables, which people edit by hand.

Every refusal is an InputError of one line with the value, the rule and the remedy. JSON is read without its usual
leniencies: a key given twice, NaN and Infinity are refused.
"""

import json
import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from chinchilla_lm.errors import InputError
from chinchilla_lm.files import read_text, write_atomic

VERSION = 1  # layout of plan.json, costs.json and formats.json
_T = TypeVar("_T")
_FORMAT = re.compile(r"[a-z0-9]+([.+-][a-z0-9]+)*")


def check_whole(value: Any, name: str, least: int) -> int:
    """`value` if it is a whole number of at least `least`; InputError otherwise."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InputError(f"{name} {value!r} is not a whole number of at least {least}; give one")
    return value


def check_at_most(value: int, name: str, most: int, rule: str) -> None:
    """InputError if `value` is above `most`, which `rule` names; before a loop whose length an edited file decides."""
    if value > most:
        raise InputError(f"{name} {value} is above {rule}, {most}; correct it")


def check_finite(value: Any, name: str, least: float = -math.inf) -> float:
    """`value` if it is a finite int or float of at least `least`; InputError otherwise."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InputError(f"{name} {value!r} is not a finite int or float; give one")
    if value < least:
        raise InputError(f"{name} {value!r} is below {least:g}; clamp clock noise or measure it again")
    return value


def check_one_of(value: Any, name: str, words: Sequence[str]) -> None:
    """InputError unless `value` is one of `words`."""
    if value not in words:
        raise InputError(f"{name} {value!r} is not one of {', '.join(words)}; write one of them")


def check_known(links: Collection[str], known: Sequence[str]) -> None:
    """InputError if a link is not among `known`, the links of the model in chain order, or stands there twice."""
    for name in links:
        if name not in known:
            raise InputError(f"link {name!r} is not in this model; use {known[0]} to {known[-1]}")
    if len(set(links)) != len(links):
        twice = next(name for name in links if list(links).count(name) > 1)
        raise InputError(f"link {twice!r} is given twice; leave one")


def check_chain(found: Sequence[str], expected: Sequence[str], where: str) -> None:
    """InputError unless `found` is exactly `expected`: no link unknown, doubled, missing or out of order."""
    check_known(found, expected)
    missing = [name for name in expected if name not in found]
    if missing:
        raise InputError(f"link {missing[0]} is missing from {where}, which has one of each; add it")
    for is_, should in zip(found, expected, strict=True):
        if is_ != should:
            raise InputError(f"link {is_} stands where {should} belongs in {where}; put the links in chain order")


def check_keys(
    data: Any, required: Mapping[str, type], where: str, optional: Mapping[str, type] | None = None
) -> Mapping[str, Any]:
    """`data` if it is a mapping with exactly these keys and types; InputError otherwise.

    An int serves as a float, a bool as neither; the value of an optional key may be None.
    """
    if not isinstance(data, Mapping):
        raise InputError(f"{where} is a {type(data).__name__}, not an object in braces; rewrite it")
    optional = optional or {}
    known = {**required, **optional}
    for key in data:
        if key not in known:
            raise InputError(f"key {key!r} of {where} is unknown; use {', '.join(known)}")
    for key, kind in known.items():
        if key not in data:
            if key in required:
                raise InputError(f"key {key!r} of {where} is missing; add it")
            continue
        value = data[key]
        fits = isinstance(value, (int, float) if kind is float else kind)
        if isinstance(value, bool) and kind is not bool:
            fits = False
        if not fits and not (value is None and key in optional):
            raise InputError(f"{key} {value!r} of {where} is not of type {kind.__name__}; correct it")
    return data


def check_format(value: Any, name: str) -> None:
    """InputError unless `value` is how a format is written; whether there is one of that name is for `pack` to say."""
    if not isinstance(value, str) or _FORMAT.fullmatch(value) is None:
        raise InputError(f"{name} {value!r} is not the name of a format; write one such as int8")


def check_version(data: Mapping[str, Any], where: str, known: Sequence[int] = (VERSION,)) -> None:
    """InputError unless the layout is one that this release reads."""
    if data["version"] not in known:
        words = " or ".join(map(str, known))
        raise InputError(f"version {data['version']} of {where} is not {words}; write it anew with this release")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    for key, _ in pairs:
        if sum(key == other for other, _ in pairs) > 1:
            raise InputError(f"key {key!r} is given twice in one object; leave one")
    return dict(pairs)


def _no_constant(word: str) -> float:
    raise InputError(f"number {word} is not finite; write a finite one")


def read(path: str | Path, what: str, build: Callable[[Any], _T]) -> _T:
    """`build` applied to the JSON in a file; `what` names it in errors (`plan`).

    Raises:
        InputError: with the file's name in front, if there is no such file, or it is no strict JSON, or build refuses.
    """
    text = read_text(path, what)
    try:
        return build(json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant))
    except InputError as error:
        raise InputError(f"{what} {path}: {error}") from error
    except json.JSONDecodeError as error:
        place = f"{error.msg} at line {error.lineno} column {error.colno}"
        raise InputError(f"{what} {path} is not valid JSON: {place}; correct that line") from error
    except RecursionError as error:
        raise InputError(f"{what} {path} is nested too deeply for JSON; restore it or make it again") from error


def write(path: str | Path, data: Mapping[str, Any]) -> None:
    """Write `data` as JSON, each object of a top-level list on a line of its own, replacing the file in one step.

    Raises:
        InputError: a value is no plain JSON, or is not finite.
    """

    def dump(value: Any) -> str:
        if isinstance(value, list) and value and all(isinstance(row, dict) for row in value):
            rows = ",\n".join(f"    {json.dumps(row, ensure_ascii=False, allow_nan=False)}" for row in value)
            return f"[\n{rows}\n  ]"
        return json.dumps(value, ensure_ascii=False, allow_nan=False, indent=2).replace("\n", "\n  ")

    try:
        body = ",\n".join(f"  {json.dumps(key)}: {dump(value)}" for key, value in data.items())
    except (TypeError, ValueError) as error:
        raise InputError(f"{path}: a value is not plain, finite JSON ({error}); leave it out") from error
    write_atomic(path, f"{{\n{body}\n}}\n")
