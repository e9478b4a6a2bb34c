"""How a person writes a field of a recipe: as a key of YAML and as a flag, and what can stand behind it."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from chinchilla_lm.recipe.fields import Recipe

# Field path → the words on the command line, where they are not `--` and the path with dashes.
_FLAGS: Mapping[str, tuple[str, ...]] = {
    "model": ("model",),
    "output": ("-o", "--output"),
    "latency_ms": ("--latency",),
    "memory_mb": ("--memory",),
}


def field_paths(model: type[BaseModel] = Recipe, prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every field as (`recover.weights.kl`, its definition), in order, nested ones in place of their parent."""
    for name, field in model.model_fields.items():
        nested = field.annotation
        if isinstance(nested, type) and issubclass(nested, BaseModel):
            yield from field_paths(nested, f"{prefix}{name}.")
        else:
            yield prefix + name, field


def flags_of(path: str) -> tuple[str, ...]:
    """The words on the command line for a field, the longest last."""
    return _FLAGS.get(path, ("--" + path.replace("_", "-").replace(".", "-"),))


def flag_of(path: str) -> str:
    """What a person types for a field: `MODEL` or `--recover-epochs`."""
    return "MODEL" if path == "model" else flags_of(path)[-1]


def plain_types(field: FieldInfo) -> list[Any]:
    """The field's type, or those of its union, without None."""
    annotation = field.annotation
    is_union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    return [kind for kind in (typing.get_args(annotation) if is_union else [annotation]) if kind is not type(None)]


def choices_of(field: FieldInfo) -> tuple[str, ...]:
    """The words that a field may be; none where it is no choice."""
    kind = plain_types(field)[0]
    return typing.get_args(kind) if typing.get_origin(kind) is Literal else ()


def kind_of(field: FieldInfo) -> str:
    """What stands for a value in a flag's help."""
    return {int: "N", float: "NUMBER", bool: "BOOL"}.get(plain_types(field)[0], "TEXT")


def words_of(value: Any) -> list[str]:
    """What stands behind a flag for a value: a word, or several of a list."""
    return [str(one) for one in value] if isinstance(value, list) else [str(value)]
