"""ONE transformer for every family: embedding, a chain of links, a final norm, a head.

A model of L blocks is a chain of 2L positions: position 2b is `b.attn`, position 2b + 1 is `b.mlp`. A dropped link
leaves a gap; positions and names never shift, so a cost table, a plan and a half-trained model always speak of the same
link. The road not taken: patching Hugging Face's modules. There a link cannot truly vanish, and each family is its own
code.

B rows, T positions, D hidden features.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, TypeVar, overload

import torch
from torch import Tensor, nn

from chinchilla_lm.errors import InputError
from chinchilla_lm.models.batch import Batch
from chinchilla_lm.models.cache import KVCache
from chinchilla_lm.models.config import ModelConfig
from chinchilla_lm.models.delta import GatedDelta
from chinchilla_lm.models.disentangled import DisentangledAttention, Distances
from chinchilla_lm.models.dropout import kept
from chinchilla_lm.models.head import Head
from chinchilla_lm.models.layers import MLP, Attention, BareNorm, Context, Link, Norm, as_bias
from chinchilla_lm.models.relative import RelativeBias
from chinchilla_lm.models.rope import rotation_table
from chinchilla_lm.plan import chain

# What becomes of the norm of a dropped link; only a post-norm model can keep it.
NormFate = Literal["keep", "lose"]
R = TypeVar("R")
# (last hidden state [B, T, D], streams at the boundaries) → what a caller wants of a pass
Then = Callable[[Tensor, list[Tensor]], R]


class Embedding(nn.Module):
    """Token embedding, with learned positions, segments, a norm, a scale and a projection where the family has them."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        size = config.embedding_width
        self.tokens = nn.Embedding(config.vocab_size, size)
        learned = config.positions == "learned"
        self.positions = nn.Embedding(config.max_positions + config.position_offset, size) if learned else None
        self.segments = nn.Embedding(config.segment_types, size) if config.segment_types else None
        self.norm = nn.LayerNorm(size, config.norm_eps, bias=config.norm_bias) if config.embedding_norm else None
        self.project = nn.Linear(size, config.hidden_size) if config.embedding_size else None
        self.relative = RelativeBias(config) if config.relative_buckets else None
        self.distances = None if config.disentangled is None else Distances(config, config.disentangled)

    def forward(self, batch: Batch, positions_T: Tensor) -> Tensor:
        """[B, T, D]."""
        x = self.tokens(batch.ids)
        if self.config.embedding_scale != 1.0:
            x = x * torch.tensor(self.config.embedding_scale, dtype=x.dtype, device=x.device)
        if self.segments is not None:
            segments = torch.zeros_like(batch.ids) if batch.segments is None else batch.segments
            x = x + self.segments(segments)
        if self.positions is not None:
            x = x + self.positions(positions_T + self.config.position_offset)
        if self.norm is not None:
            x = self.norm(x)
        return x if self.project is None else self.project(x)


class Transformer(nn.Module):
    """A causal or bidirectional model with some of its links dropped.

    dropped: link name → what became of its norm. Only post-norm models have a norm to `keep`.

    `dropout` and `token_dropout` act in training mode only, on batches with keys: the share of every link's
    contribution that is set to 0, and the share of tokens whose whole embedding is.
    """

    dropout: float = 0.0
    token_dropout: float = 0.0

    def __init__(self, config: ModelConfig, dropped: Mapping[str, NormFate] | None = None) -> None:
        super().__init__()
        self.config = config
        self.dropped = dict(dropped or {})
        self.names = tuple(link.name for link in chain(config.num_blocks))
        unknown = sorted(set(self.dropped) - set(self.names))
        if unknown:
            raise InputError(f"link {unknown[0]!r} is not one of 0.attn … {self.names[-1]}; correct the plan")
        self.embedding = Embedding(config)
        self.links = nn.ModuleDict()
        for name in self.names:
            module = self._build(name)
            if module is not None:
                self.links[key(name)] = module
        self.norm = Norm(config, config.hidden_size) if config.final_norm else None
        self.head = Head(config)
        self.tie()

    def _build(self, name: str) -> nn.Module | None:
        block, kind = name.split(".")
        if name not in self.dropped:
            attention = Attention if self.config.disentangled is None else DisentangledAttention
            mixer = GatedDelta if self.config.deltas and self.config.deltas[int(block)] else attention
            return (mixer if kind == "attn" else MLP)(self.config, int(block))
        if self.config.post_norm and self.dropped[name] == "keep":
            return BareNorm(self.config)
        return None

    def tie(self) -> None:
        """Share the embedding with the decoder of a tied language-modelling head."""
        if self.config.head.kind == "language-modeling" and self.config.head.tied:
            assert self.head.output is not None
            self.head.output.weight = self.embedding.tokens.weight

    @property
    def link_names(self) -> list[str]:
        """Names of the links that are left, in the chain's order."""
        return [name for name in self.names if name not in self.dropped]

    def link(self, name: str) -> Link:
        """The module of a link that is left."""
        module = self.links[key(name)]
        assert isinstance(module, Link)
        return module

    def matrices(self) -> dict[str, nn.Linear]:
        """The large matrices that are left, in the chain's order: `3.attn.first`, `3.attn.second` … and a decoder's
        `head`."""
        links = [module for module in self.links.values() if isinstance(module, Link)]
        found = {f"{link.name}.{place}": getattr(link, place) for link in links for place in ("first", "second")}
        decoder = self.head.output if self.config.head.kind == "language-modeling" else None
        return found if decoder is None else found | {"head": decoder}

    def context(self, batch: Batch, cache: KVCache | None = None) -> Context:
        """What the links of a pass share; of the embedding it needs only what it says of positions to attention."""
        past = 0 if cache is None else cache.length
        new = batch.ids.shape[1]
        if self.config.positions == "learned" and past + new > self.config.max_positions:
            raise InputError(
                f"{past + new} tokens are more than the model's {self.config.max_positions} positions; shorten the text"
            )
        if cache is not None:
            cache.make_room(new)
        for switch in self.config.switches:
            if 0 < past <= switch < past + new:
                raise InputError(
                    f"{past + new} tokens are more than the {switch} up to which this text was read with other angles; "
                    "read it again from its start"
                )
        positions = torch.arange(past, past + new, device=batch.ids.device)
        context = Context(cache=cache, causal=self.config.causal and past == 0, positions=positions)
        context.dropout, context.keys = self.dropout if self.training else 0.0, batch.keys
        lengths = None if batch.mask is None else past + batch.mask.sum(1)
        for rope in set(self.config.ropes) - {None}:
            assert rope is not None
            context.tables[rope] = rotation_table(rope, self.config.head_dim, positions, lengths)
        for window in set(self.config.windows or (None,)):
            context.masks[window] = self._biased(self._mask(batch, past, window), past, past + new)
        if self.embedding.distances is not None:
            context.distances, context.distance_rows = self.embedding.distances(new)
        return context

    def embed(self, batch: Batch, cache: KVCache | None = None) -> tuple[Tensor, Context]:
        """The stream in front of the first link, [B, T, D], and what the links of this pass share."""
        context = self.context(batch, cache)
        assert context.positions is not None
        x_BTD = self.embedding(batch, context.positions)
        if self.training and self.token_dropout:
            assert batch.keys is not None, "dropout needs the keys of the rows"
            x_BTD = x_BTD * kept(batch.keys, 0, self.token_dropout, batch.ids.shape[1])[:, :, None]
        return x_BTD, context

    def _biased(self, mask: Tensor | None, past: int, seen: int) -> Tensor | None:
        """The mask, and what the positions add to the scores, in one, [B or 1, H, T, S]; the mask alone without one."""
        if self.embedding.relative is None:
            return mask
        bias_1HTS = self.embedding.relative(past, seen)
        return bias_1HTS if mask is None else as_bias(mask, bias_1HTS.dtype) + bias_1HTS

    def _mask(self, batch: Batch, past: int, window: int | None) -> Tensor | None:
        """bool [B or 1, 1, T, S], or None where SDPA needs none."""
        new = batch.ids.shape[1]
        seen = past + new
        windowed = window is not None and window < seen
        sdpa = past == 0 and self.embedding.relative is None  # SDPA's own causal path takes no bias besides
        if batch.mask is None and not windowed and (not self.config.causal or sdpa or new == 1):
            return None
        query = torch.arange(past, seen, device=batch.ids.device)[:, None]
        other = torch.arange(seen, device=batch.ids.device)[None, :]
        allowed = other <= query if self.config.causal else torch.ones_like(other <= query)
        if windowed:
            assert window is not None
            allowed = allowed & (query - other < window) & (other - query < window)
        mask = allowed[None, None]
        return mask if batch.mask is None else mask & _may_be_seen(batch.mask, past)

    def run(
        self,
        x_BTD: Tensor,
        context: Context,
        start: int = 0,
        stop: int | None = None,
        skip: Mapping[str, NormFate] | None = None,
    ) -> Tensor:
        """The stream from chain position `start` up to `stop`, without the links in `skip`, [B, T, D]."""
        for name in self.names[start:stop]:
            if key(name) not in self.links:
                continue
            module = self.links[key(name)]
            if skip is None or name not in skip:
                x_BTD = module(x_BTD, context)
            elif self.config.post_norm and skip[name] == "keep":
                x_BTD = module.norm(x_BTD)  # type: ignore[operator]
        return x_BTD

    def finish(self, x_BTD: Tensor) -> Tensor:
        """The last hidden state, [B, T, D]."""
        return x_BTD if self.norm is None else self.norm(x_BTD)

    @overload
    def forward(self, batch: Batch, cache: KVCache | None = ...) -> Tensor: ...
    @overload
    def forward(
        self, batch: Batch, cache: KVCache | None = ..., *, boundaries: Sequence[int] = ..., then: Then[R]
    ) -> R: ...
    def forward(
        self,
        batch: Batch,
        cache: KVCache | None = None,
        *,
        boundaries: Sequence[int] = (),
        then: Then[R] | None = None,
    ) -> Tensor | R:
        """What the head gives; with a cache, it grows by this batch's positions.

        then: what is made instead, of the last hidden state [B, T, D] and the streams at `boundaries` of the chain, in
        ascending order. A loss is computed there, because the logits of a whole batch would be too large to give back,
        and because what wraps a model in training sees what happens within its call.
        """
        x, context = self.embed(batch, cache)
        streams: list[Tensor] = []
        start = 0
        for boundary in boundaries:
            x = self.run(x, context, start, boundary)
            streams.append(x)
            start = boundary
        x = self.finish(self.run(x, context, start))
        if cache is not None:
            cache.advance(batch.ids.shape[1])
        return self.head(x, batch) if then is None else then(x, streams)


def key(name: str) -> str:
    """The name of a link as a key of a ModuleDict, which may hold no dot."""
    return name.replace(".", "_")


def _may_be_seen(mask_BT: Tensor, past: int) -> Tensor:
    """bool [B, 1, 1, past + T]: real tokens; what a cache holds was real."""
    earlier = mask_BT.new_ones(mask_BT.shape[0], past)
    return torch.cat((earlier, mask_BT), dim=1)[:, None, None, :]
