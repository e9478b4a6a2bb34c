"""The links of the chain, each with its own norms and its own residual sum, so that one can vanish without the others.

B rows, T new positions, S positions seen, D hidden features, H heads, P head features.

Query, key and value are one matrix, and so are gate and up: fused products are the same sums in fewer, larger calls.
The price is that a family's file has to split them again when it saves.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chinchilla_lm.models.cache import KVCache
from chinchilla_lm.models.config import ModelConfig, RopeConfig
from chinchilla_lm.models.dropout import kept
from chinchilla_lm.models.rope import rotate

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
    "tanh": torch.tanh,
}

# Keys up to which the CPU multiplies the scores out, in training and in bfloat16; beyond, the memory of all scores is
# the limit, so there is none where stretches of QUERIES are multiplied without gradients. Forward and backward of 3 × 9
# heads of 64, bfloat16, one core: 300 positions 11 ms against SDPA's 30, 512 positions 45 against 84. Forward alone, 9
# heads: 512 positions, nothing hidden, 3.3 against 8.5; 2,048 positions, causal, 28 against 72; 32 × 12 heads of 32, 14
# positions: 0.97 against 1.35. In float32 SDPA's forward is the faster.
EXPLICIT_UP_TO = 512
# Queries multiplied at once where later positions are hidden. 4 × 9 heads, 512 positions, two cores: 4.7 ms with 128,
# 4.6 with 64, 5.7 with 256, 7.5 all at once; forward and backward 15.5, 16.5, 17.9 and 18.9.
QUERIES = 128


@dataclass(slots=True)
class Context:
    """What every link of one pass shares.

    tables: rotation tables by rope configuration. masks: by window, bool [B or 1, 1, T, S] (True: may look), or where
    the model has a bias of positions what is added to the scores, [B or 1, H, T, S], or None where SDPA needs no mask
    tensor. causal: SDPA's own causal path, valid where the mask is None. dropout: share of every link's contribution
    that is set to 0, by the rows' keys. distances, distance_rows: DeBERTa's embeddings [N, D], and which of them each
    pair of positions has, [T, S]. positions: of this pass, int64 [T].
    """

    tables: dict[RopeConfig, tuple[Tensor, Tensor]] = field(default_factory=dict)
    masks: dict[int | None, Tensor | None] = field(default_factory=dict)
    causal: bool = False
    cache: KVCache | None = None
    dropout: float = 0.0
    keys: Tensor | None = None
    distances: Tensor | None = None
    distance_rows: Tensor | None = None
    positions: Tensor | None = None


class Norm(nn.Module):
    """Layer norm or RMS norm over the last dimension; Gemma's weights are stored as their difference from one.

    After folding (`shorten.precompute`) there is no weight left, and the norm only centres and scales.
    """

    weight: Tensor | None
    bias: Tensor | None

    def __init__(self, config: ModelConfig, size: int) -> None:
        super().__init__()
        self.size, self.eps = size, config.norm_eps
        self.rms, self.unit_offset = config.norm == "rmsnorm", config.norm_unit_offset
        self.weight = nn.Parameter(torch.ones(size) if not config.norm_unit_offset else torch.zeros(size))
        bias = config.norm_bias and not self.rms
        self.register_parameter("bias", nn.Parameter(torch.zeros(size)) if bias else None)

    def forward(self, x: Tensor) -> Tensor:
        """Same shape and dtype as x."""
        if not self.rms:
            return F.layer_norm(x, (self.size,), self.weight, self.bias, self.eps)
        weight = self.weight
        if weight is not None and self.unit_offset:
            weight = 1.0 + weight
        return F.rms_norm(x, (self.size,), weight, self.eps)


class Link(nn.Module, ABC):
    """One residual sublayer: `forward` returns the residual stream with its contribution in it."""

    name: str  # as a plan has it: `3.attn`
    norm: Norm | None

    def __init__(self, config: ModelConfig, block: int) -> None:
        super().__init__()
        self.block = block
        self.placement = config.placement
        self.norm = None if config.placement == "output" else Norm(config, config.hidden_size)
        self.norm_after = Norm(config, config.hidden_size) if config.placement in ("sandwich", "output") else None
        self.residual_scale = config.residual_scale

    @property
    def place(self) -> int:
        """Its position in the chain, from 1: 0 is the embedding."""
        return 2 * self.block + (1 if self.name.endswith("attn") else 2)

    remembers = False  # whether a cache holds a state of it, instead of keys and values

    @property
    @abstractmethod
    def first(self) -> nn.Linear:
        """The matrix that the norm in front, if there is one, is for."""

    @property
    @abstractmethod
    def second(self) -> nn.Linear:
        """The matrix whose outputs are the link's contribution."""

    @abstractmethod
    def contribution(self, x_BTD: Tensor, context: Context) -> Tensor:
        """What the link adds to the stream, [B, T, D]."""

    def forward(self, x_BTD: Tensor, context: Context) -> Tensor:
        """The stream behind this link, [B, T, D]."""
        added = self.contribution(x_BTD if self.norm is None or self.placement == "post" else self.norm(x_BTD), context)
        if self.norm_after is not None:
            added = self.norm_after(added)
        if self.residual_scale != 1.0:
            added = added * self.residual_scale
        if context.dropout:
            added = self._dropped(added, context)
        x_BTD = x_BTD + added
        return self.norm(x_BTD) if self.norm is not None and self.placement == "post" else x_BTD

    def _dropped(self, added_BTD: Tensor, context: Context) -> Tensor:
        """The contribution with a share of it set to 0, and the rest so much larger."""
        assert context.keys is not None, "dropout needs the keys of the rows"
        stays = kept(context.keys, self.place, context.dropout, *added_BTD.shape[1:])
        return added_BTD * stays / (1 - context.dropout)


class BareNorm(nn.Module):
    """The norm that a dropped link of a post-norm model leaves behind."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.norm = Norm(config, config.hidden_size)

    def forward(self, x_BTD: Tensor, context: Context) -> Tensor:
        """The normalised stream, [B, T, D]."""
        return self.norm(x_BTD)


class Attention(Link):
    """Grouped-query attention, rotary or not, with optional norms of query and key and a sliding window."""

    def __init__(self, config: ModelConfig, block: int) -> None:
        super().__init__(config, block)
        self.name = f"{block}.attn"
        if block == 0 and not config.first_norm:
            self.norm = None
        self.heads, self.kv_heads, self.head_dim = config.num_heads, config.num_kv_heads, config.head_dim
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        self.gated = config.attention_gate
        self.widths = [queries * (2 if self.gated else 1), keys, keys]
        self.qkv = nn.Linear(config.hidden_size, sum(self.widths), bias=config.qkv_bias)
        self.out = nn.Linear(queries, config.hidden_size, bias=config.out_bias)
        self.whole_norms, self.norms_last = config.qk_norm_over == "all", config.qk_norm_last
        sizes = [queries, keys] if self.whole_norms else [self.head_dim] * 2
        self.q_norm, self.k_norm = (Norm(config, size) if config.qk_norm else None for size in sizes)
        self.rope = config.ropes[block] if config.positions == "rope" else None
        self.window = config.windows[block] if config.windows else None
        self.scale, self.softcap = config.attention_scale, config.attention_softcap

    @property
    def first(self) -> nn.Linear:
        """See Link."""
        return self.qkv

    @property
    def second(self) -> nn.Linear:
        """See Link."""
        return self.out

    def contribution(self, x_BTD: Tensor, context: Context) -> Tensor:
        """Attention over this pass's and, with a cache, all earlier positions, [B, T, D]."""
        rows, positions, _ = x_BTD.shape
        query, key, value = self.qkv(x_BTD).split(self.widths, dim=-1)
        gate = None
        if self.gated:
            query, gate = query.unflatten(-1, (self.heads, 2, self.head_dim)).unbind(-2)
            query, gate = query.flatten(-2), gate.flatten(-2)
        if self.whole_norms and self.q_norm is not None and self.k_norm is not None:
            query, key = self.q_norm(query), self.k_norm(key)
        query, key, value = (
            part.view(rows, positions, -1, self.head_dim).transpose(1, 2) for part in (query, key, value)
        )
        early = not self.whole_norms and not self.norms_last
        if early and self.q_norm is not None and self.k_norm is not None:
            query, key = self.q_norm(query), self.k_norm(key)
        if self.rope is not None:
            table = context.tables[self.rope]
            query, key = rotate(query, table), rotate(key, table)
        if self.norms_last and self.q_norm is not None and self.k_norm is not None:
            query, key = self.q_norm(query), self.k_norm(key)
        if context.cache is not None:
            key, value = context.cache.extend(self.name, key, value)
        mixed = self._attend(query, key, value, context).transpose(1, 2).reshape(rows, positions, -1)
        return self.out(mixed if gate is None else mixed * gate.sigmoid())

    def mask(self, query: Tensor, key: Tensor, context: Context) -> Tensor | None:
        """See Context.masks."""
        return context.masks.get(self.window)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, context: Context) -> Tensor:
        plain = query.device.type == "cpu" and (query.requires_grad or query.dtype is torch.bfloat16)
        few = key.shape[2] <= EXPLICIT_UP_TO or (context.causal and not query.requires_grad)
        if (plain and few) or self.softcap is not None:  # SDPA has no soft cap
            mask = self.mask(query, key, context)
            return explicit_attention(query, key, value, mask, context.causal, self.scale, self.softcap)
        mask = self.mask(query, key, context)
        grouped = self.heads != self.kv_heads
        # SDPA's own grouped path is a fused kernel on a GPU in half precision without a mask; elsewhere it leaves it.
        if grouped and not (query.is_cuda and mask is None and query.dtype is not torch.float32):
            shared = self.heads // self.kv_heads
            key, value = key.repeat_interleave(shared, dim=1), value.repeat_interleave(shared, dim=1)
            grouped = False
        causal = context.causal and mask is None
        if mask is not None and mask.is_floating_point():
            mask = mask.to(query.dtype)
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=causal, scale=self.scale, enable_gqa=grouped
        )


def explicit_attention(
    query_BHTP: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    causal: bool,
    scale: float | None,
    softcap: float | None = None,
) -> Tensor:
    """softmax(q kᵀ · scale) v by plain products, [B, H, T, P]; key and value are [B, kv heads, S, P].

    softcap: scores s become softcap · tanh(s / softcap) before the mask.

    The query heads that share a key are rows of one product. Same function as SDPA, for the CPU, where the fused kernel
    is the slower one in bfloat16 and in its backward pass; its price is the memory of all scores. `causal`: position t
    sees at most keys 0 … t, so each stretch of QUERIES is multiplied only with the keys up to its end; a mask, if there
    is one, says so too. A row of padding that may look nowhere (all that its window holds is padding too) is a mean of
    values here and zero there; nobody reads it.
    """
    rows, heads, positions, size = query_BHTP.shape
    with torch.autocast(key.device.type, enabled=False):
        query = query_BHTP.reshape(rows, key.shape[1], -1, positions, size) * (size**-0.5 if scale is None else scale)
        if not causal:
            return _mix(query, key, value, mask, softcap).view(rows, heads, positions, size)
        triangle = torch.ones(QUERIES, QUERIES, dtype=torch.bool, device=key.device).tril()[None, None]
        parts = []
        for start in range(0, positions, QUERIES):
            stop = min(start + QUERIES, positions)
            seen = triangle[..., : stop - start, : stop - start] if mask is None else mask[..., start:stop, :stop]
            parts.append(_mix(query[:, :, :, start:stop], key[:, :, :stop], value[:, :, :stop], seen, softcap))
        return torch.cat(parts, dim=3).view(rows, heads, positions, size)


def _mix(query_BGQTP: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, softcap: float | None = None) -> Tensor:
    """What G groups of Q query heads see, [B, G, Q, T, P]; the mask, [B or 1, 1 or G·Q, T, n], is of n last keys."""
    shape = query_BGQTP.shape
    scores = (query_BGQTP.flatten(2, 3) @ key.transpose(-1, -2)).view(*shape[:-1], -1)
    if softcap is not None:
        scores = (scores / softcap).tanh() * softcap
    if mask is not None:
        bias = as_bias(mask, scores.dtype)
        grouped = bias[:, :, None] if bias.shape[1] == 1 else bias.unflatten(1, shape[1:3])
        scores[..., -mask.shape[-1] :] += grouped
    return (scores.flatten(2, 3).softmax(-1) @ value).view(shape)


def as_bias(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """What a mask adds to the scores: 0, or where it is False the least number; what is a bias already, as it is."""
    if mask.dtype is not torch.bool:
        return mask.to(dtype)
    # Not −∞: the softmax of a row of −∞ is NaN, and NaN times a gradient of 0 is NaN in every weight.
    return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)


class MLP(Link):
    """down(act(up x)), or down(act(gate x) * up x) with gate and up in one matrix, gate first."""

    def __init__(self, config: ModelConfig, block: int) -> None:
        super().__init__(config, block)
        self.name = f"{block}.mlp"
        self.gated = config.gated
        self.activation = ACTIVATIONS[config.activation]
        inner = config.intermediate_size
        self.up = nn.Linear(config.hidden_size, inner * (2 if config.gated else 1), bias=config.mlp_bias)
        self.down = nn.Linear(inner, config.hidden_size, bias=config.mlp_bias)

    @property
    def first(self) -> nn.Linear:
        """See Link."""
        return self.up

    @property
    def second(self) -> nn.Linear:
        """See Link."""
        return self.down

    def contribution(self, x_BTD: Tensor, context: Context) -> Tensor:
        """[B, T, D]."""
        inner = self.up(x_BTD)
        if not self.gated:
            return self.down(self.activation(inner))
        gate, up = inner.chunk(2, dim=-1)
        return self.down(self.activation(gate) * up)
