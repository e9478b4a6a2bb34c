"""Keys and values of what was read so far: one slot for each attention link that is left, none for a dropped one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from chinchilla_lm.errors import InputError

if TYPE_CHECKING:
    from chinchilla_lm.models.transformer import Transformer


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
            if name.endswith(".attn")
        }

    def extend(self, name: str, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Store the new positions of one link and return all of its keys and values so far."""
        end = self.length + key.shape[2]
        if end > self.capacity:
            raise InputError(f"{end} positions do not fit the cache of {self.capacity}; ask for fewer new tokens")
        keys, values = self.slots[name]
        keys[:, :, self.length : end] = key
        values[:, :, self.length : end] = value
        return keys[:, :, :end], values[:, :, :end]

    def rewind(self, length: int) -> None:
        """Forget all but the first `length` positions."""
        if not 0 <= length <= self.length:
            raise InputError(f"a cache of {self.length} positions cannot go to {length}; pass one that it holds")
        self.length = length

    @property
    def bytes(self) -> int:
        """Memory of all slots."""
        return sum(part.numel() * part.element_size() for slot in self.slots.values() for part in slot)
