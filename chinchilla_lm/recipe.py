"""What a person asks for: model, task, data, target, margin, and how to train. One definition, two ways to write it.

Every field below is a key of a YAML recipe and a flag of the command line by the same name (`recover: {epochs: 2}` and
`--recover-epochs 2`); the string beneath a field is its help text and carries its unit. Flags win over `--recipe FILE`.
Every wrong value ends as one InputError of one line: field, value, rule, remedy.
"""

from __future__ import annotations

import argparse
import difflib
import os
import shlex
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

from chinchilla_lm.errors import InputError
from chinchilla_lm.files import read_text, write_atomic

Task = Literal["language-modeling", "token-classification", "text-classification", "ranking"]


class _Settings(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True, protected_namespaces=()
    )


class LossWeights(_Settings):
    """What recovery lowers: the sum of these, each times its weight (train/losses.py)."""

    kl: float = Field(default=1.0, ge=0)
    """weight of the divergence from the original's outputs (nats a position)"""
    hidden: float = Field(default=1.0, ge=0)
    """weight of the error of hidden states at shared boundaries, relative to their variance"""
    squared: float = Field(default=0.0, ge=0)
    """weight of the squared error of the outputs, summed over them"""
    task: float = Field(default=0.0, ge=0)
    """weight of the task's own loss on the gold labels (nats a position)"""


class RecoverSettings(_Settings):
    """How a shortened model learns from the original again."""

    epochs: float = Field(default=3.0, ge=0, le=1000, examples=[3.0])
    """passes over the training data; 0 leaves recovery out"""
    tokens: int | None = Field(default=None, ge=1, examples=[1_000_000])
    """stop after this many tokens, even within a pass"""
    learning_rate: float = Field(default=1e-4, gt=0, le=1, examples=[1e-4])
    """peak step size of AdamW"""
    batch_tokens: int = Field(default=4096, ge=1)
    """tokens a step"""
    temperature: float = Field(default=1.0, gt=0, le=100)
    """both models' outputs are divided by this before the divergence is taken"""
    warmup: float = Field(default=0.05, ge=0, lt=1)
    """share of the steps over which the rate climbs to its peak"""
    weights: LossWeights = LossWeights()
    """what the loss is made of"""


class FinetuneSettings(_Settings):
    """How a pretrained model learns a task."""

    epochs: float = Field(default=3.0, gt=0, le=1000)
    """passes over the training data"""
    learning_rate: float = Field(default=5e-5, gt=0, le=1)
    """peak step size of AdamW for pretrained weights"""
    head_learning_rate: float = Field(default=5e-4, gt=0, le=1)
    """peak step size for weights that start from nothing"""
    batch_tokens: int = Field(default=2048, ge=1)
    """tokens a step"""
    weight_decay: float = Field(default=0.01, ge=0, le=1)
    """AdamW's decoupled decay of matrices, a step, relative to the rate"""
    warmup: float = Field(default=0.1, ge=0, lt=1)
    """share of the steps over which the rate climbs to its peak"""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """share of the target that is spread evenly over all labels"""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """share of what each link adds that is set to 0 in training"""
    token_dropout: float = Field(default=0.0, ge=0, lt=1)
    """share of tokens whose embedding is set to 0 in training, so that context has to tell"""


class Recipe(_Settings):
    """One job, from the checkpoint to the certificate. Frozen: change it with `model_copy(update=...)`."""

    model: str = Field(min_length=1)
    """a folder, a hub id (NAME or NAME@REVISION), a GGUF file, or the `model` folder of an earlier run"""
    task: Task
    """what the model is for"""
    data: str | None = Field(default=None, min_length=1)
    """a folder or file in a known layout, or a hub dataset: to train, choose and test on"""
    train: str | None = Field(default=None, min_length=1)
    """file in DATA, or split of a hub dataset, to train on; where one of the three is named, only such are read"""
    dev: str | None = Field(default=None, min_length=1)
    """file or split to choose on"""
    test: str | None = Field(default=None, min_length=1)
    """file or split to test on"""
    calibration: str | None = Field(default=None, min_length=1)
    """text or data to measure costs on; without it, part of the training data"""
    guard: str | None = Field(default=None, min_length=1)
    """data of another kind, on which the result must hold the margin against the original as well"""
    text_column: str | None = None
    """column or key of the text, where it is not found by itself"""
    label_column: str | None = None
    """column or key of the label"""
    group_column: str | None = None
    """column or key whose equal values stay in one split"""
    time_column: str | None = None
    """column or key of the date, for splits by time"""
    split_by: Literal["auto", "hash", "group", "time"] = "auto"
    """how to split data that comes in one piece; auto: by group or time where a column is named, else by hash"""
    encoding: str | None = Field(default=None, min_length=1, examples=["gb18030"])
    """how the data files are encoded, where it is not found by itself: gb18030, shift-jis, cp1251 …"""
    output: str | None = Field(default=None, min_length=1)
    """folder to write to"""
    speedup: float | None = Field(default=None, gt=1.0, le=20, examples=[1.5])
    """how many times faster than the original, end to end on this machine"""
    latency_ms: float | None = Field(default=None, gt=0, examples=[20])
    """time for one request in milliseconds, end to end on this machine"""
    margin: float = Field(default=1.0, gt=0, le=50, examples=[1.0])
    """largest loss of quality that passes: points of F1 or accuracy, percent of perplexity"""
    metric: str | None = None
    """the metric to certify; without it, the task's own"""
    method: Literal["race", "refine", "greedy", "dp", "top", "one-shot", "cosine"] = "race"
    """how the path is searched; race: refine and top, each recovered briefly, the better on dev wins"""
    max_measures: int = Field(default=200, ge=1, le=100_000)
    """true measurements that a search may make"""
    device: Literal["cpu", "cuda", "auto"] = "auto"
    """where it runs"""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """number format of the computation; auto: bfloat16 where it is native"""
    backend: Literal["auto", "native", "torch"] = "auto"
    """what serves the model: the C++ engine or torch; auto: the engine where it is there and the device is the CPU"""
    threads: int | None = Field(default=None, ge=1, le=1024, examples=[4])
    """CPU threads; without it, one for each usable core"""
    batch: int | None = Field(default=None, ge=1, examples=[1])
    """sequences a batch while timing; without it, 1 for a language model, 32 for others"""
    tokens: int | None = Field(default=None, ge=1, examples=[128])
    """tokens a sequence while timing; without it, 128 for a language model, the data's median for others"""
    new_tokens: int | None = Field(default=None, ge=1, examples=[64])
    """tokens that a language model writes in a timed request; without it, 64"""
    context: Literal["sentence", "document"] = "sentence"
    """what a new model sees of a document at a time; a trained one goes on as it was trained"""
    bidirectional: bool | None = Field(None, examples=[True])
    """true: a decoder's tokens see what follows, in training and ever after; without it, only a tagger's do"""
    max_tokens: int | None = Field(default=None, ge=4, examples=[512])
    """longest window in tokens; without it, what the model takes"""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """decides every random choice; splits that are made do not depend on it"""
    calibration_tokens: int = Field(default=8192, ge=1)
    """tokens to measure costs on"""
    score_loss: Literal["kl", "task"] = "kl"
    """what a removal costs: divergence from the original's outputs, or the task's loss"""
    recover: RecoverSettings = RecoverSettings()
    """how the shortened model learns from the original again"""
    finetune: FinetuneSettings = FinetuneSettings()
    """how a pretrained model learns the task"""

    @property
    def adapts(self) -> bool:
        """Whether the data's own answers take part in recovery, so that it is more than a copy of the original."""
        return self.recover.epochs > 0 and self.recover.weights.task > 0

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Recipe:
        """The recipe in a YAML file. Raises InputError when it is missing, damaged or wrong."""
        return make_recipe(read_yaml(path))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write every field that is set as YAML, atomically. Raises InputError when it cannot be written.

        In ASCII with escapes: PyYAML writes some line separators (U+0085) raw and reads them back as spaces.
        """
        write_atomic(path, yaml.safe_dump(self.model_dump(exclude_none=True), sort_keys=False))


# The two kinds of target, of which a job has one.
TARGETS = ("speedup", "latency_ms")

# Field path → the words on the command line, where they are not `--` and the path with dashes.
_FLAGS: Mapping[str, tuple[str, ...]] = {
    "model": ("model",),
    "output": ("-o", "--output"),
    "latency_ms": ("--latency",),
}
_METAVARS: Mapping[str, str] = {
    "model": "MODEL",
    "speedup": "X",
    "latency_ms": "MS",
    "data": "DATA",
    "output": "OUT",
    "calibration": "DATA",
    "guard": "DATA",
    "train": "FILE",
    "dev": "FILE",
    "test": "FILE",
}


def field_paths(model: type[BaseModel] = Recipe, prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every field as (`recover.weights.kl`, its definition), in order, nested ones in place of their parent."""
    for name, field in model.model_fields.items():
        nested = field.annotation
        if isinstance(nested, type) and issubclass(nested, BaseModel):
            yield from field_paths(nested, f"{prefix}{name}.")
        else:
            yield prefix + name, field


def flag_of(path: str) -> str:
    """What a person types for a field: `MODEL` or `--recover-epochs`."""
    if path == "model":
        return "MODEL"
    return _FLAGS.get(path, ("--" + path.replace("_", "-").replace(".", "-"),))[-1]


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
    choices = _choices(field)
    metavar = _METAVARS.get(path) or ("{" + ",".join(choices) + "}" if choices else _kind(field))
    flags = _FLAGS.get(path, (flag_of(path),))
    if flags == ("model",):  # optional here, since a recipe may name it
        parser.add_argument("model", nargs="?", default=argparse.SUPPRESS, metavar=metavar, help=text)
    else:
        parser.add_argument(*flags, dest=path, default=argparse.SUPPRESS, metavar=metavar, help=text)


def _plain_types(field: FieldInfo) -> list[Any]:
    """The field's type, or those of its union, without None."""
    annotation = field.annotation
    is_union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    return [kind for kind in (typing.get_args(annotation) if is_union else [annotation]) if kind is not type(None)]


def _choices(field: FieldInfo) -> tuple[str, ...]:
    kind = _plain_types(field)[0]
    return typing.get_args(kind) if typing.get_origin(kind) is Literal else ()


def _kind(field: FieldInfo) -> str:
    return {int: "N", float: "NUMBER", bool: "BOOL"}.get(_plain_types(field)[0], "TEXT")


def from_args(args: argparse.Namespace, base: Mapping[str, Any] | None = None) -> Recipe:
    """The recipe that a verb's arguments ask for: `base` (an earlier run's recipe) < `--recipe FILE` < flags.

    Raises InputError in one line for the first thing that is wrong.
    """
    flags: dict[str, Any] = {}
    for path, _ in field_paths():
        if vars(args).get(path) is not None:
            flags = _merged(flags, _nested(path, vars(args)[path]))
    return layered(base or {}, read_yaml(args.recipe) if getattr(args, "recipe", None) else {}, flags)


def layered(*layers: Mapping[str, Any]) -> Recipe:
    """A recipe of several, each above the one before it, field by field. Raises InputError as `make_recipe` does.

    A target, speed-up or latency, takes the place of either kind below it.
    """
    values: dict[str, Any] = {}
    for layer in layers:
        if any(layer.get(target) is not None for target in TARGETS):
            values = {key: value for key, value in values.items() if key not in TARGETS}
        values = _merged(values, layer)
    return make_recipe(values)


def command_of(verb: str, recipe: Recipe) -> str:
    """What a person types to ask for this recipe: every field that is not at its default, quoted for a shell."""
    words = ["chinchilla", verb, recipe.model]
    for path, field in field_paths():
        value: Any = recipe
        for name in path.split("."):
            value = getattr(value, name)
        if path != "model" and value is not None and (field.is_required() or value != field.default):
            words += [flag_of(path), str(value)]
    return shlex.join(words)


def _nested(path: str, value: Any) -> dict[str, Any]:
    for name in reversed(path.split(".")):
        value = {name: value}
    return value


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        merged[key] = _merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
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


def make_recipe(values: Mapping[str, Any]) -> Recipe:
    """A checked recipe. Raises InputError for the first field that is wrong: field, value, rule, remedy in one line."""
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise InputError(_explain(error)) from None


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
    "model_attributes_type": "is not a mapping of fields to values",
}


def _explain(error: ValidationError) -> str:
    problem = error.errors(include_url=False)[0]
    path = ".".join(str(part) for part in problem["loc"])
    kind, context = problem["type"], problem.get("ctx", {})
    known = dict(field_paths())
    if kind == "extra_forbidden":
        near = difflib.get_close_matches(path, list(known), n=1, cutoff=0.5)
        return f"{path} is not a field of a recipe; " + (f"did you mean {near[0]}?" if near else "remove it")
    remedy = _remedy(path, known.get(path))
    if kind == "missing":
        return f"{path} is missing; {remedy}"
    if kind == "literal_error":
        rule = f"is not one of {', '.join(_choices(known[path]))}"
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
    elif choices := _choices(field):
        example = choices[0] if field.default is None or field.is_required() else field.default
    else:
        example = field.default if field.default is not None and not field.is_required() else _kind(field)
    return f"pass {flag_of(path)} {example}"


def _one_line(text: str) -> str:
    return " ".join(text.split())
