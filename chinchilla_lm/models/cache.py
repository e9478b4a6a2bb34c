"""Keys and values of what was read so far: one slot for each attention link that is left, none for a dropped one.

A link that remembers something else (models/delta.py) has a state instead, which holds all that was read and cannot go
back to a part of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from chinchilla_lm.errors import InputError

if TYPE_CHECKING:
    from chinchilla_lm.models.transformer import Transformer


States = dict[str, tuple[Tensor, Tensor]]
Mark = tuple[int, States]


class KVCache:
    """Static keys and values, [rows, kv heads, capacity, head_dim] each, for the live attention links of a model."""

    def __init__(self, model: Transformer, rows: int, capacity: int) -> None:
        config = model.config
        weight = model.embedding.tokens.weight
        shape = (rows, config.num_kv_heads, capacity, config.head_dim)
        self.capacity = capacity
        self.length = 0
        self.slots: dict[str, tuple[Tensor, Tensor]] = {
            name: (torch.empty(shape, dtype=weight.dtype, device=weight.device), weight.new_empty(shape))
            for name in model.link_names
            if name.endswith(".attn") and not model.link(name).remembers
        }
        self._states: States = {}
        self._news: States = {}
        self._remembering = any(model.link(name).remembers for name in model.link_names)

    def extend(self, name: str, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Store the new positions of one link and return all of its keys and values so far."""
        end = self.length + key.shape[2]
        keys, values = self.slots[name]
        keys[:, :, self.length : end] = key
        values[:, :, self.length : end] = value
        return keys[:, :, :end], values[:, :, :end]

    def make_room(self, positions: int) -> None:
        """Raise InputError where so many new positions do not fit."""
        if self.length + positions > self.capacity:
            raise InputError(
                f"{self.length + positions} positions do not fit the cache of {self.capacity}; ask for fewer new tokens"
            )

    def state(self, name: str) -> tuple[Tensor, Tensor] | None:
        """What one link remembers of all that was read; None before the first token."""
        return self._states.get(name)

    def keep(self, name: str, state: tuple[Tensor, Tensor]) -> None:
        """What one link will remember once this pass is through."""
        self._news[name] = state

    def advance(self, positions: int) -> None:
        """A pass over so many new positions is through."""
        self.length += positions
        self._states, self._news = {**self._states, **self._news}, {}

    def mark(self) -> Mark:
        """Where it stands, for `restore`. States are never written into, so a mark stays what it is."""
        return self.length, self._states

    def restore(self, mark: Mark) -> None:
        """As it was when it was marked."""
        (self.length, self._states), self._news = mark, {}

    def rewind(self, length: int) -> None:
        """Forget all but the first `length` positions; of a model whose links remember, all or nothing."""
        if not 0 <= length <= self.length:
            raise InputError(f"a cache of {self.length} positions cannot go to {length}; pass one that it holds")
        if self._remembering and length not in (0, self.length):
            raise InputError(f"a cache of what was read on the whole cannot go to {length}; read again from the start")
        self.restore((length, {} if length == 0 else self._states))

    @property
    def bytes(self) -> int:
        """Memory of all slots."""
        held = (*self.slots.values(), *self._states.values())
        return sum(part.numel() * part.element_size() for slot in held for part in slot)
