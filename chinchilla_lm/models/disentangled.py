"""DeBERTa's attention (He et al. 2021, section 3.1; DeBERTa-v3's log buckets as transformers' `models/deberta_v2`).

The score of query i and key j is

    (q_i · k_j  +  q_i · K r(i − j)  +  k_j · Q r(i − j)) · scale

where r(d) is the embedding of a distance, one table for all links, and K and Q project it as the link projects its
content, or by matrices of their own. Both products are taken with all rows of the table, of which each pair of
positions then picks its own: 2 × span products a position instead of one a pair.

B rows, T queries, S keys, H heads, P head features, N rows of distances, D hidden features.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from chinchilla_lm.models.config import DisentangledConfig, ModelConfig
from chinchilla_lm.models.layers import Attention, Context, as_bias


class Distances(nn.Module):
    """The table, [2 · span, D]; row span + d is distance d, those beyond the span have its last rows."""

    def __init__(self, config: ModelConfig, about: DisentangledConfig) -> None:
        super().__init__()
        self.about = about
        self.weight = nn.Parameter(torch.zeros(2 * about.span, config.hidden_size))
        self.norm = nn.LayerNorm(config.hidden_size, config.norm_eps) if about.normed else None

    def forward(self, positions: int) -> tuple[Tensor, Tensor]:
        """The embeddings, [N, D], and the row of each pair, int64 [T, S]."""
        at = torch.arange(positions, device=self.weight.device)
        return self.embeddings(), self.rows(at[:, None] - at[None, :])

    def embeddings(self) -> Tensor:
        """As the links project them, [N, D]."""
        return self.weight if self.norm is None else self.norm(self.weight)

    def rows(self, distance: Tensor) -> Tensor:
        """The row of each distance from query to key (query − key), int64, same shape."""
        if self.about.buckets:
            distance = log_bucket(distance, self.about.buckets, self.about.farthest)
        return (distance + self.about.span).clamp(0, 2 * self.about.span - 1)


def log_bucket(distance: Tensor, buckets: int, farthest: int) -> Tensor:
    """Distances up to half of the buckets as they are, those beyond on a scale of logarithms; int64, same shape."""
    half = buckets // 2
    away = distance.abs()
    grown = torch.log(away.clamp(min=1) / half) / torch.log(torch.tensor((farthest - 1) / half)) * (half - 1)
    far = torch.ceil(grown).to(torch.int64) + half
    return torch.where(away <= half, distance, far * distance.sign())


class DisentangledAttention(Attention):
    """Attention whose mask holds what the distances add to the scores."""

    def __init__(self, config: ModelConfig, block: int) -> None:
        super().__init__(config, block)
        about = config.disentangled
        assert about is not None
        self.about = about
        size, width = config.hidden_size, self.heads * self.head_dim
        self.distance_key = nn.Linear(size, width) if about.on_keys and not about.shared else None
        self.distance_query = nn.Linear(size, width) if about.on_queries and not about.shared else None

    def mask(self, query: Tensor, key: Tensor, context: Context) -> Tensor | None:
        """What is added to the scores, [B, H, T, S]."""
        assert context.distances is not None
        assert context.distance_rows is not None
        rows_TS, added = context.distance_rows, query.new_zeros(())
        queries_HNP, keys_HNP = self.projected(context.distances)
        if keys_HNP is not None:
            of_queries_BHTN = query @ keys_HNP.to(query.dtype).transpose(-1, -2)
            added = added + of_queries_BHTN.gather(-1, rows_TS.expand(*query.shape[:3], -1))
        if queries_HNP is not None:
            of_keys_BHSN = key @ queries_HNP.to(key.dtype).transpose(-1, -2)
            added = added + of_keys_BHSN.gather(-1, rows_TS.T.expand(*key.shape[:3], -1)).transpose(-1, -2)
        scale = self.head_dim**-0.5 if self.scale is None else self.scale
        mask = context.masks.get(self.window)
        return added * scale if mask is None else added * scale + as_bias(mask, added.dtype)

    def projected(self, distances_ND: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """The distances as queries and as keys of each head, [H, N, P], where the scores have such a part."""
        if self.about.shared:
            wanted = (self.about.on_queries, self.about.on_keys)
            both = self.qkv(distances_ND).split(self.widths, dim=-1)[:2]
            query, key = (part if on else None for part, on in zip(both, wanted, strict=True))
        else:
            query = None if self.distance_query is None else self.distance_query(distances_ND)
            key = None if self.distance_key is None else self.distance_key(distances_ND)
        return self._by_head(query), self._by_head(key)

    def _by_head(self, x_ND: Tensor | None) -> Tensor | None:
        return None if x_ND is None else x_ND.view(len(x_ND), self.heads, self.head_dim).transpose(0, 1)
