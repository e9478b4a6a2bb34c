"""Tensors of a checkpoint into our transformer and back again.

The transformer is built without storage, then given the tensors one by one: no wasted initialisation, and never more
than one tensor beyond the model in memory.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from chinchilla_lm.errors import InputError
from chinchilla_lm.models.config import ModelConfig
from chinchilla_lm.models.families.base import Family, Weight
from chinchilla_lm.models.tensors import TensorSource, read_checked
from chinchilla_lm.models.transformer import NormFate, Transformer

FRESH_STD = 0.02  # of a new head's weights; BERT's and GPT-2's initializer_range
FRESH_SEED = 0
EMBEDDING, OUTPUT = "embedding.tokens.weight", "head.output.weight"


def fill(
    config: ModelConfig,
    dropped: Mapping[str, NormFate],
    family: Family,
    source: TensorSource,
    trained: bool,
    device: torch.device,
    dtype: torch.dtype,
) -> tuple[Transformer, tuple[str, ...]]:
    """The model with a checkpoint's weights, and the names of those that are new.

    trained: the checkpoint holds this head's weights. Raises InputError for tensors that are missing, unexpected, of
    another shape or not finite.
    """
    unread = Unread(config, dropped, family, source, trained)
    state: dict[str, Tensor] = {}
    for name in unread.names:
        tensor = unread.read(name)
        converted = tensor.to(device=device, dtype=dtype)
        # A clone of what a file mapping holds, which is read-only in spirit and aligned by chance.
        state[name] = converted.clone() if converted is tensor and source.mapped else converted
    if unread.model.config.head.tied:
        state[OUTPUT] = state[EMBEDDING]
    unread.model.load_state_dict(state, assign=True)
    unread.model.tie()
    return unread.model.eval(), unread.fresh


class Unread:
    """A model without storage, whose weights are read one by one when they are asked for.

    names: of the parameters, tied ones once. fresh: those that the checkpoint lacks. Raises InputError as `fill` does;
    for what is wrong with a tensor, when it is read.
    """

    def __init__(
        self,
        config: ModelConfig,
        dropped: Mapping[str, NormFate],
        family: Family,
        source: TensorSource,
        trained: bool,
    ) -> None:
        self._source, self._names = source, Names(family, source)
        config = untie_if_different(config, family, source, self._names)
        self._names.refuse_unexpected(config, trained)
        self.model = skeleton(config, dropped)
        self._shapes = {name: tuple(tensor.shape) for name, tensor in self.model.state_dict().items()}
        self._weights: dict[str, Weight] = {}
        for weight in family.weights(config):
            if weight.ours not in self._shapes:
                continue
            if weight.ours == EMBEDDING and config.head.tied and self._names.find(weight, weight.theirs[0]) is None:
                weight = replace(output_weight(config, family), ours=EMBEDDING)  # some tools save only one of the two
            self._weights[weight.ours] = weight
        self._fresh = [name for name, one in self._weights.items() if not trained and is_new(one, self._names)]
        self._generator = torch.Generator().manual_seed(FRESH_SEED)
        tied = {OUTPUT} if config.head.tied else set()
        missing = sorted(set(self._shapes) - set(self._weights) - tied)
        assert not missing, f"{family.name} has no name for {missing}"

    @property
    def names(self) -> tuple[str, ...]:
        """In the order of the family's table, which is that of the random numbers of new ones."""
        return tuple(self._weights)

    @property
    def fresh(self) -> tuple[str, ...]:
        """Parameters of a head that the checkpoint was not trained with."""
        return tuple(self._fresh)

    def read(self, name: str, rows: slice | None = None) -> Tensor:
        """A parameter, or some of its rows, in the file's precision."""
        if name == OUTPUT and name not in self._weights:
            name = EMBEDDING
        weight, shape = self._weights[name], self._shapes[name]
        if name in self._fresh:
            return initial(name, shape, self._generator)[rows or slice(None)]
        found = self._names.find(weight, weight.theirs[0])
        whole = rows is None or weight.transposed or len(weight.theirs) > 1 or found is None
        if rows is None or whole or found is None:
            return assemble(weight, shape, self._source, self._names)[rows or slice(None)]
        return read_checked(self._source, found, shape, rows)


class _Uninitialised(TorchFunctionMode):
    """Leaves out `torch.nn.init`: without storage it does nothing but import torch's compiler, which takes seconds."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))


def skeleton(config: ModelConfig, dropped: Mapping[str, NormFate] | None = None) -> Transformer:
    """A model on torch's meta device: shapes without storage, for `load_state_dict(…, assign=True)`."""
    with torch.device("meta"), _Uninitialised():
        return Transformer(config, dropped)


class Names:
    """The names that a family uses and those that this checkpoint has, which may lack the base prefix or be older."""

    def __init__(self, family: Family, source: TensorSource) -> None:
        self.family, self.source, self.present = family, source, source.names
        prefix = family.base_prefix
        self.prefix = prefix if any(name.startswith(prefix) for name in self.present) else ""

    def spellings(self, weight: Weight, name: str) -> list[str]:
        """What a tensor may be called in the file, the likeliest first."""
        found = []
        for one in (name, *weight.aliases):
            full = (self.prefix if weight.in_base else "") + one
            found.append(full)
            if "LayerNorm." in full:  # checkpoints converted from TensorFlow
                found.append(
                    full.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
                )
        return found

    def find(self, weight: Weight, name: str) -> str | None:
        """The spelling that the file has."""
        return next((full for full in self.spellings(weight, name) if full in self.present), None)

    def refuse_unexpected(self, config: ModelConfig, trained: bool) -> None:
        """Refuse weights that our model would leave out; other heads' weights are left out only where ours is new."""
        known = {
            full
            for one in (config, untied(config))
            for weight in self.family.weights(one)
            for name in weight.theirs
            for full in self.spellings(weight, name)
        }
        ignored = re.compile("|".join(self.family.ignored) or "(?!)")
        for name in sorted(self.present - known):
            in_base = name.startswith(self.prefix)
            if ignored.fullmatch(name.removeprefix(self.prefix)) or (not in_base and not trained):
                continue
            if not in_base and config.head.kind == "embedding":
                continue
            raise InputError(
                f"tensor {name} of {self.source.where(name)} is not a part of a {self.family.name} with this config; "
                "use the config.json that belongs to the weights"
            )


def untie_if_different(config: ModelConfig, family: Family, source: TensorSource, names: Names) -> ModelConfig:
    """As transformers does: a decoder stored beside the embedding, with other values, is not tied to it."""
    if not config.head.tied:
        return config
    decoder = output_weight(config, family)
    table = next(weight for weight in family.weights(config) if weight.ours == EMBEDDING)
    output, embedding = names.find(decoder, decoder.theirs[0]), names.find(table, table.theirs[0])
    if output is None or embedding is None:
        return config
    shape = (config.vocab_size, config.embedding_width)
    same = torch.equal(read_checked(source, output, shape), read_checked(source, embedding, shape))
    return config if same else untied(config)


def untied(config: ModelConfig) -> ModelConfig:
    """The config with a decoder of its own."""
    return replace(config, head=replace(config.head, tied=False))


def output_weight(config: ModelConfig, family: Family) -> Weight:
    """What the decoder would be called if it were not tied."""
    return next(weight for weight in family.weights(untied(config)) if weight.ours == OUTPUT)


def is_new(weight: Weight, names: Names) -> bool:
    """Whether a weight belongs to a head that this checkpoint was not trained with; BERT's pooler may be there."""
    if not weight.ours.startswith("head."):
        return False
    return not weight.in_base or names.find(weight, weight.theirs[0]) is None


def assemble(weight: Weight, shape: tuple[int, ...], source: TensorSource, names: Names) -> Tensor:
    """One of our parameters out of the checkpoint's tensors."""
    parts = []
    for rows, name in zip(weight.rows or (shape[0],), weight.theirs, strict=True):
        found = names.find(weight, name)
        if found is None:
            full = names.spellings(weight, name)[0]
            raise InputError(f"tensor {full} is missing from the checkpoint; download the model again")
        expected = (rows, *shape[1:])
        tensor = read_checked(source, found, expected[::-1] if weight.transposed else expected)
        parts.append(tensor.T if weight.transposed else tensor)
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def initial(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """A new weight: normal(0, 0.02) for a matrix, zero for a bias, one for a norm."""
    if name.endswith(".bias"):
        return torch.zeros(shape)
    if len(shape) == 1:
        return torch.ones(shape)
    return torch.empty(shape).normal_(0.0, FRESH_STD, generator=generator)


def spread(model: Transformer, family: Family) -> dict[str, Tensor]:
    """The model's weights under Hugging Face names, fused ones split and turned back: the inverse of `fill`."""
    state = model.state_dict()
    prefix = "" if model.config.head.kind == "embedding" else family.base_prefix
    found: dict[str, Tensor] = {}
    for weight in family.weights(model.config):
        if weight.ours not in state:
            continue
        tensor = state[weight.ours].detach().cpu()
        parts = tensor.split(weight.rows) if weight.rows else (tensor,)
        for name, part in zip(weight.theirs, parts, strict=True):
            for one in (name, *weight.aliases):
                # safetensors wants every tensor whole and none to share memory with another.
                turned = part.T if weight.transposed else part
                found[(prefix if weight.in_base else "") + one] = turned.clone(memory_format=torch.contiguous_format)
    return found
