"""A model's matrices as formats have them, put in place of its own for the time of a pass.

What a format makes of a weight is computed as packing does it, from the weights as they are: norms are not folded in.
Products stay in the model's own numbers, so that what is measured is what the rounding of weights does by itself. A
bias, a norm or a table that is looked up is never rounded; an embedding that is the decoder too is, with the head.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from chinchilla_lm.errors import InputError
from chinchilla_lm.models.transformer import Transformer
from chinchilla_lm.pack.formats import format_named
from chinchilla_lm.pack.panels import LANES
from chinchilla_lm.pack.quantized import Quantized
from chinchilla_lm.plan import HEAD

# Memory for rounded matrices, in bytes: those of SmolLM2-135M in four formats.
ROUNDED_BYTES = 2_200_000_000


class Rounded:
    """Rounds matrices once, as long as memory lasts: least recently used out first."""

    def __init__(self, model: Transformer, capacity: int = ROUNDED_BYTES) -> None:
        self.matrices, self.capacity, self._used = model.matrices(), capacity, 0
        self._values: OrderedDict[tuple[str, str], Tensor] = OrderedDict()

    def of(self, what: str) -> list[str]:
        """The matrices of a link, or the head's. Raises InputError for what the model lacks."""
        names = [HEAD] if what == HEAD else [f"{what}.first", f"{what}.second"]
        for name in names:
            if name not in self.matrices:
                raise InputError(f"{name} is no matrix of this model; leave it out of the plan")
        return names

    def values(self, matrix: str, form: str) -> Tensor:
        """What a format makes of a matrix: of its shape, number type and device."""
        place = (matrix, form)
        if place not in self._values:
            self._values[place] = self._round(matrix, form)
            self._used += self._values[place].nbytes
            while self._used > self.capacity and len(self._values) > 1:
                self._used -= self._values.popitem(last=False)[1].nbytes
        self._values.move_to_end(place)
        return self._values[place]

    def _round(self, matrix: str, form: str) -> Tensor:
        weight = self.matrices[matrix].weight.detach()
        meant = format_named(form).meant(weight.float().cpu().numpy())
        return torch.from_numpy(meant).to(weight.device, weight.dtype)

    def error(self, what: str, form: str) -> float:
        """Squared error of the weights of a link, or of the head, over their squares: the mean of its matrices."""
        errors = []
        for name in self.of(what):
            weight = self.matrices[name].weight.detach().float()
            squares = float(weight.square().sum())
            errors.append(float((self.values(name, form).float() - weight).square().sum()) / squares if squares else 0)
        return sum(errors) / len(errors)

    @contextmanager
    def swapped(self, formats: Mapping[str, str]) -> Iterator[None]:
        """The model with these links, or the head, rounded. A tensor that two modules share is rounded for both."""
        before = {name: self.matrices[name].weight.data for what in formats for name in self.of(what)}
        try:
            for what, form in formats.items():
                for name in self.of(what):
                    self.matrices[name].weight.data = self.values(name, form)
            yield
        finally:
            for name, weight in before.items():
                self.matrices[name].weight.data = weight


def stand_ins(model: Transformer, form: str) -> dict[str, Quantized]:
    """A model's matrices as a format has them in size and layout, by the name of the parameter, for a clock, which does
    not see what the codes are: of each some rows are rounded, and repeated. Empty for a format that rounds none."""
    how = format_named(form).rounding
    if how is None:
        return {}
    names = {id(one): name for name, one in model.named_parameters(remove_duplicate=False)}
    found: dict[str, Quantized] = {}
    for linear in model.matrices().values():
        rows = linear.weight.detach()[:LANES].float().cpu().numpy()
        found[names[id(linear.weight)]] = how.round(rows).take(np.arange(linear.out_features) % len(rows))
    return found
