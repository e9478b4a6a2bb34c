"""Recipes from the command line, and back."""

from __future__ import annotations

import argparse
import shlex
import typing
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic.fields import FieldInfo

from chinchilla_lm.recipe.checks import layered, merge, read_yaml
from chinchilla_lm.recipe.fields import Recipe
from chinchilla_lm.recipe.names import choices_of, field_paths, flag_of, flags_of, kind_of, plain_types, words_of

_METAVARS: Mapping[str, str] = {
    "model": "MODEL",
    "speedup": "X",
    "latency_ms": "MS",
    "formats": "F,F,…|auto",
    "memory_mb": "MB",
    "data": "DATA",
    "output": "OUT",
    "calibration": "DATA",
    "guard": "DATA",
    "train": "FILE",
    "dev": "FILE",
    "test": "FILE",
    "finetune.teachers": "MODEL",
    "finetune.unlabelled": "DATA",
}


def add_flags(parser: argparse.ArgumentParser, fields: Iterable[str]) -> None:
    """Add `--recipe FILE` and an option for each named field; `recover` stands for all that is nested in it.

    `model` becomes the positional MODEL. Values stay text here: `from_args` checks them by the same rules as YAML.
    Raises KeyError for a name that is no field: a bug of the verb's.
    """
    known = dict(field_paths())
    parser.add_argument("--recipe", metavar="FILE", help="YAML file with any of these fields; flags win over it")
    for name in fields:
        paths = [path for path in known if path == name or path.startswith(name + ".")]
        if not paths:
            raise KeyError(name)
        for path in paths:
            _add_flag(parser, path, known[path])


def _add_flag(parser: argparse.ArgumentParser, path: str, field: FieldInfo) -> None:
    text = (field.description or "").replace("%", "%%")
    if field.default is not None and not field.is_required():
        text += f" (default {field.default})"
    choices = choices_of(field)
    metavar = _METAVARS.get(path) or ("{" + ",".join(choices) + "}" if choices else kind_of(field))
    flags = flags_of(path)
    if flags == ("model",):  # optional here, since a recipe may name it
        parser.add_argument("model", nargs="?", default=argparse.SUPPRESS, metavar=metavar, help=text)
    else:
        of_list = typing.get_origin(plain_types(field)[0]) is list
        several: dict[str, Any] = {"nargs": "+", "action": "extend"} if of_list else {}
        parser.add_argument(*flags, dest=path, default=argparse.SUPPRESS, metavar=metavar, help=text, **several)


def from_args(args: argparse.Namespace, base: Mapping[str, Any] | None = None) -> Recipe:
    """The recipe that a verb's arguments ask for: `base` (an earlier run's recipe) < `--recipe FILE` < flags.

    Raises InputError in one line for the first thing that is wrong.
    """
    flags: dict[str, Any] = {}
    for path, _ in field_paths():
        if vars(args).get(path) is not None:
            flags = merge(flags, _nested(path, vars(args)[path]))
    return layered(base or {}, read_yaml(args.recipe) if getattr(args, "recipe", None) else {}, flags)


def command_of(verb: str, recipe: Recipe, without: Iterable[str] = ()) -> str:
    """What a person types to ask for this recipe: every field that is not at its default, quoted for a shell.

    without: fields that the verb does not take; `finetune` stands for all that is nested in it.
    """
    words = ["chinchilla", verb, recipe.model]
    for path, field in field_paths():
        if path.partition(".")[0] in without:
            continue
        value: Any = recipe
        for name in path.split("."):
            value = getattr(value, name)
        if path != "model" and value is not None and (field.is_required() or value != field.default):
            words += [flag_of(path), *words_of(value)]
    return shlex.join(words)


def _nested(path: str, value: Any) -> dict[str, Any]:
    for name in reversed(path.split(".")):
        value = {name: value}
    return value
