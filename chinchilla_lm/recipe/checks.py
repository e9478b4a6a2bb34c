"""Values become a recipe, or one InputError of one line: field, value, rule, remedy."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from typing import Any

import yaml
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from chinchilla_lm.errors import InputError
from chinchilla_lm.files import read_text
from chinchilla_lm.recipe.fields import Recipe
from chinchilla_lm.recipe.names import choices_of, field_paths, flag_of, kind_of, words_of

# The two kinds of target, of which a job has one.
TARGETS = ("speedup", "latency_ms")


def make_recipe(values: Mapping[str, Any]) -> Recipe:
    """A checked recipe. Raises InputError for the first field that is wrong: field, value, rule, remedy in one line."""
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise InputError(_explain(error)) from None


def layered(*layers: Mapping[str, Any]) -> Recipe:
    """A recipe of several, each above the one before it, field by field. Raises InputError as `make_recipe` does.

    A target, speed-up or latency, takes the place of either kind below it.
    """
    values: dict[str, Any] = {}
    for layer in layers:
        if any(layer.get(target) is not None for target in TARGETS):
            values = {key: value for key, value in values.items() if key not in TARGETS}
        values = merge(values, layer)
    return make_recipe(values)


def merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Both, nested mappings field by field; where both have a field, the one above."""
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        merged[key] = merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


def read_yaml(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The mapping in a YAML file. Raises InputError when it is missing, no YAML, or no mapping of names to values."""
    text = read_text(path, "recipe")
    try:
        values = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise InputError(f"recipe {path} is not valid YAML: {error.problem} at line {line}; mend that line") from error
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise InputError(f"recipe {path} is not valid YAML: {_one_line(str(error))}; write it anew") from error
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise InputError(f"recipe {path} is not a mapping of fields to values; write lines such as `speedup: 1.5`")
    return values


def require_target(recipe: Recipe) -> None:
    """Raise InputError unless exactly one of `speedup` and `latency_ms` is given."""
    if recipe.speedup is None and recipe.latency_ms is None:
        raise InputError("no target is given; pass --speedup 1.5 or --latency 20")
    require_one_target(recipe)


def require_one_target(recipe: Recipe) -> None:
    """Raise InputError where both `speedup` and `latency_ms` are given."""
    if recipe.speedup is not None and recipe.latency_ms is not None:
        both = f"speedup {recipe.speedup:g} and latency_ms {recipe.latency_ms:g}"
        raise InputError(f"{both} are two targets where one is needed; pass only one of --speedup and --latency")


# pydantic's error type → the rule in our words, filled in from its context.
_RULES: Mapping[str, str] = {
    "greater_than": "is not greater than {gt}",
    "greater_than_equal": "is less than {ge}",
    "less_than": "is not less than {lt}",
    "less_than_equal": "is greater than {le}",
    "float_parsing": "is not a number",
    "float_type": "is not a number",
    "finite_number": "is not a finite number",
    "bool_parsing": "is not true or false",
    "bool_type": "is not true or false",
    "int_parsing": "is not a whole number",
    "int_type": "is not a whole number",
    "int_from_float": "is not a whole number",
    "int_parsing_size": "is too large a number",
    "string_type": "is not text",
    "string_too_short": "is empty",
    "model_type": "is not a mapping of fields to values",
    "list_type": "is not a list",
    "too_short": "is empty",
    "model_attributes_type": "is not a mapping of fields to values",
}


def _explain(error: ValidationError) -> str:
    problem = error.errors(include_url=False)[0]
    # Of a list, the field and not its item: an index names nothing that a person typed.
    path = ".".join(part for part in problem["loc"] if isinstance(part, str))
    kind, context = problem["type"], problem.get("ctx", {})
    known = dict(field_paths())
    if kind == "extra_forbidden":
        near = difflib.get_close_matches(path, list(known), n=1, cutoff=0.5)
        return f"{path} is not a field of a recipe; " + (f"did you mean {near[0]}?" if near else "remove it")
    remedy = _remedy(path, known.get(path))
    if kind == "missing":
        return f"{path} is missing; {remedy}"
    if kind == "literal_error":
        rule = f"is not one of {', '.join(choices_of(known[path]))}"
    else:
        rule = _RULES[kind].format(**context) if kind in _RULES else f"is refused ({problem['msg']})"
    return _one_line(f"{path} {_shown(problem['input'])} {rule}; {remedy}")


def _shown(value: Any) -> str:
    text = str(value) if isinstance(value, str | int | float) and value != "" else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _remedy(path: str, field: FieldInfo | None) -> str:
    if field is None:
        return "see the fields of a recipe in chinchilla compress --help"
    if path == "model":
        return "pass MODEL, a folder or a hub id"
    if field.examples:
        example = field.examples[0]
    elif choices := choices_of(field):
        example = choices[0] if field.default is None or field.is_required() else field.default
    else:
        example = field.default if field.default is not None and not field.is_required() else kind_of(field)
    return f"pass {' '.join([flag_of(path), *words_of(example)])}"


def _one_line(text: str) -> str:
    return " ".join(text.split())
