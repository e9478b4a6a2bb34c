"""What each attention head adds to a score for the distance between query and key, in T5's buckets.

Half of the buckets are for keys in front of the query, half for those behind it. On each side the first half of them
holds one distance each; the others grow by a constant factor up to `relative_distance`, and the last holds all beyond.
Raffel et al. 2020, section 2.1, as MPNet and T5 of transformers have it.

H heads, T queries, S keys, N distances −(S − 1) … S − 1 from query to key.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from chinchilla_lm.models.config import ModelConfig


class RelativeBias(nn.Module):
    """One table [buckets, H] for all links."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.distance = config.relative_distance
        self.weight = nn.Parameter(torch.zeros(config.relative_buckets, config.num_heads))

    def by_distance(self, keys: int) -> Tensor:
        """The bias of the distances −(keys − 1) … keys − 1, [H, N]."""
        return self.weight[self.buckets(keys, self.weight.device)].T

    def buckets(self, keys: int, device: torch.device) -> Tensor:
        """The bucket of each of these distances, int64 [N]."""
        return bucket(torch.arange(1 - keys, keys, device=device), len(self.weight), self.distance)

    def forward(self, past: int, seen: int) -> Tensor:
        """The bias of the queries past … seen − 1 on the keys 0 … seen − 1, [1, H, T, S]."""
        rows_HTS = self.by_distance(seen).unfold(-1, seen, 1)  # row i is that of query seen − 1 − i
        return rows_HTS[:, : seen - past].flip(1)[None]


def bucket(distance: Tensor, buckets: int, farthest: int) -> Tensor:
    """The bucket of each distance (key − query), int64, same shape."""
    side = buckets // 2
    exact = side // 2
    away = distance.abs()
    grown = torch.log(away.clamp(min=1).float() / exact) / math.log(farthest / exact) * (side - exact)
    far = (exact + grown.to(torch.int64)).clamp(max=side - 1)
    return torch.where(away < exact, away, far) + torch.where(distance > 0, side, 0)
