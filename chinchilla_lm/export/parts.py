"""A model's tensors under the names of transformers, rounded ones as codes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
from torch import Tensor

from chinchilla_lm.errors import InputError
from chinchilla_lm.export.hf import portable, portable_codes, remaining_blocks
from chinchilla_lm.models.checkpoint import Checkpoint
from chinchilla_lm.pack.mixed import Mixed
from chinchilla_lm.pack.panels import Floats
from chinchilla_lm.pack.quantized import Quantized

# What becomes of the codes of a codebook or of a sparse matrix.
WIDENED = "codebook or mask written out as codes of 8 bits"


class Part(NamedTuple):
    """A tensor as transformers stores it: the parameter that it is of, its name, its values in float32 or rounded."""

    ours: str
    name: str
    values: Floats | Quantized


@dataclass(frozen=True, slots=True)
class Portable:
    """A model with every link present or its whole block absent, and the codes of its matrices, by parameter; where
    there are codes, the model's floats are what they mean. widened: parameters whose codes had a codebook or a mask."""

    checkpoint: Checkpoint
    codes: Mapping[str, Quantized] = field(default_factory=dict)
    widened: frozenset[str] = frozenset()

    @classmethod
    def of(cls, checkpoint: Checkpoint, codes: Mapping[str, Quantized], *, every_block: bool = False) -> Portable:
        """every_block: those that do nothing stay as well. Codes of a codebook or of a sparse matrix become eight bits,
        for other programs' files have no place for them; they mean the same. Raises InputError as `portable` does."""
        model = checkpoint.model
        blocks = list(range(model.config.num_blocks)) if every_block else remaining_blocks(model)
        found = portable_codes(codes, blocks)
        widened = frozenset(name for name, one in found.items() if not one.is_plain)
        return cls(portable(checkpoint, blocks), {name: one.plain() for name, one in found.items()}, widened)

    def with_codes(self, codes: Mapping[str, Quantized]) -> Portable:
        """The same with other codes."""
        return replace(self, codes=codes)

    def parts(self) -> Iterator[Part]:
        """Every tensor, fused ones split; what is stored as a transpose is floats. Raises InputError for a weight that
        is not a finite number."""
        state, family = self.checkpoint.model.state_dict(), self.checkpoint.family
        config = self.checkpoint.model.config
        prefix = "" if config.head.kind == "embedding" else family.base_prefix
        for weight in family.weights(config):
            if weight.ours not in state:
                continue
            codes, begin = self.codes.get(weight.ours), 0
            values = _finite(state[weight.ours], weight.ours)
            for name, rows in zip(weight.theirs, weight.rows or (len(values),), strict=True):
                some = slice(begin, begin + rows)
                begin += rows
                part: Floats | Quantized = values[some].T if weight.transposed else values[some]
                if codes is not None and not weight.transposed:
                    part = codes.part(some)
                for one in (name, *weight.aliases):
                    yield Part(weight.ours, (prefix if weight.in_base else "") + one, part)


def _finite(tensor: Tensor, where: str) -> Floats:
    values: Floats = tensor.detach().float().numpy()
    if not np.isfinite(values).all():
        raise InputError(f"{where} has a weight that is NaN or infinite; restore the checkpoint")
    return values


def rounded(checkpoint: Checkpoint, formats: Mixed) -> dict[str, Quantized]:
    """The codes of a model's large matrices, each weight to the nearest, by parameter. Raises InputError where a format
    is of a matrix that the model lacks."""
    matrices = checkpoint.model.matrices()
    formats.check(matrices)
    names = {id(one): name for name, one in checkpoint.model.named_parameters(remove_duplicate=False)}
    found: dict[str, Quantized] = {}
    for matrix, linear in matrices.items():
        how = formats.of(matrix).rounding
        if how is not None:
            found[names[id(linear.weight)]] = how.round(_finite(linear.weight, matrix))
    return found
