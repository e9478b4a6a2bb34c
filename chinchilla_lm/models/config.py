"""The numbers that drive the one transformer. A family file translates a Hugging Face `config.json` into them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

HeadKind = Literal["language-modeling", "token-classification", "text-classification", "ranking", "embedding"]
Activation = Literal["gelu", "gelu_tanh", "relu", "silu", "tanh"]
Scores = Literal["softmax", "sigmoid", "raw"]


@dataclass(frozen=True, slots=True)
class HeadConfig:
    """What stands on top of the last hidden state.

    language-modeling: the decoder, tied to the embedding or not; token-classification: one linear layer;
    text-classification and ranking: pooling and one linear layer (a ranking head has one output); embedding: pooling,
    L2-normalised or not. In front of each linear layer there may be a dense one with `dense_activation` (None: the
    model's own), and a norm behind it where `transform` says so. names: which of its sets of weight names a family has
    for this head, where there are several.
    scores: what a text classifier's outputs mean: `softmax`, one label a text; `sigmoid`, each label by itself, any
    number of them a text; `raw`, numbers of a regression.
    """

    kind: HeadKind
    labels: tuple[str, ...] = ()
    bias: bool = True
    tied: bool = False
    transform: bool = False
    dense_bias: bool = True
    names: str = ""
    dense_activation: Activation | None = None
    pooling: Literal["first", "last", "mean"] = "first"
    normalize: bool = False
    scores: Scores = "softmax"


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """Rotary positions: base `theta`; `scaling`, the sorted items of Hugging Face's dictionary (`linear`, `llama3` or
    `longrope`); `share`, the part of a head's features that turn, the first ones.

    Hashable, because every distinct rope of a model has one rotation table a pass.
    """

    theta: float = 10_000.0
    scaling: tuple[tuple[str, float | str | tuple[float, ...]], ...] = ()
    share: float = 1.0

    @property
    def switch(self) -> int | None:
        """Tokens of the longest text that is read with LongRoPE's short factors; None where all are read alike."""
        found = dict(self.scaling).get("original_max_position_embeddings")
        return int(found) if dict(self.scaling).get("rope_type") == "longrope" and isinstance(found, float) else None


@dataclass(frozen=True, slots=True)
class DeltaConfig:
    """A block's gated delta rule (models/delta.py): heads and their features, and tokens that are mixed beforehand."""

    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int
    kernel: int


@dataclass(frozen=True, slots=True)
class DisentangledConfig:
    """DeBERTa's attention: scores of content with embeddings of the distance from query to key.

    span: rows of the embeddings on each side. buckets: with more than 0, distances beyond half of them share rows,
    up to `farthest`. on_keys, on_queries: whether queries are multiplied with distances as keys (c2p), and keys with
    distances as queries (p2c). shared: distances are projected as the content is; else by matrices of their own.
    normed: by a layer norm in front of that.
    """

    span: int
    buckets: int
    farthest: int
    on_keys: bool
    on_queries: bool
    shared: bool
    normed: bool


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """One transformer. Widths are in features, windows and positions in tokens.

    placement: `pre` x + f(norm(x)); `post` norm(x + f(x)); `sandwich` x + norm(f(norm(x))); `output` x + norm(f(x)).
    residual_scale: what f is multiplied by before the sum. qk_norm_over: one norm for each `head`, or one over `all`;
    qk_norm_last: behind the rotation, of each head.
    softcap: s becomes softcap · tanh(s / softcap), of scores before the mask, and of an LM head's logits, which are
    multiplied by logit_scale before that.
    norm_bias: of layer norms. first_norm: false where no norm stands in front of the first block's attention.
    windows: one entry a block, None for full attention, else the number of positions a token sees (itself included)
    on each side that it may look to.
    deltas: one entry a block, None for attention; empty where all are. attention_gate: what a head saw is multiplied by
    the sigmoid of a gate, which stands behind the head's query in the first matrix.
    ropes: one entry a block, None for a block that does not see positions; empty for learned positions.
    embedding_size: features of a token's embedding where they are not the hidden ones; a matrix leads from one to the
    other, and the transform of a language-modelling head back.
    relative_buckets: rows of one table, shared by all blocks, of what each head adds to a score by the distance from
    query to key (T5's buckets: half of them for each side, from `relative_distance` on all one); 0 for none.
    """

    family: str
    vocab_size: int
    hidden_size: int
    num_blocks: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    max_positions: int
    causal: bool
    norm: Literal["layernorm", "rmsnorm"]
    norm_eps: float
    placement: Literal["pre", "post", "sandwich", "output"]
    activation: Activation
    gated: bool
    head: HeadConfig
    norm_unit_offset: bool = False
    norm_bias: bool = True
    first_norm: bool = True
    qkv_bias: bool = True
    out_bias: bool = True
    mlp_bias: bool = True
    qk_norm: bool = False
    qk_norm_over: Literal["head", "all"] = "head"
    qk_norm_last: bool = False
    positions: Literal["rope", "learned", "none"] = "learned"
    position_offset: int = 0
    segment_types: int = 0
    embedding_size: int | None = None
    embedding_norm: bool = False
    embedding_scale: float = 1.0
    attention_scale: float | None = None
    attention_softcap: float | None = None
    residual_scale: float = 1.0
    logit_scale: float = 1.0
    logit_softcap: float | None = None
    final_norm: bool = True
    relative_buckets: int = 0
    relative_distance: int = 128
    disentangled: DisentangledConfig | None = None
    windows: tuple[int | None, ...] = ()
    ropes: tuple[RopeConfig | None, ...] = field(default=())
    deltas: tuple[DeltaConfig | None, ...] = ()
    attention_gate: bool = False

    @property
    def embedding_width(self) -> int:
        """Features of a token's embedding."""
        return self.embedding_size or self.hidden_size

    @property
    def post_norm(self) -> bool:
        """Whether the norm stands after the residual sum, so that a dropped link may leave its norm behind."""
        return self.placement == "post"

    @property
    def switches(self) -> tuple[int, ...]:
        """Lengths past which a text is read with other angles, so that what a cache holds of it is of no use."""
        return tuple(sorted({rope.switch for rope in self.ropes if rope is not None and rope.switch is not None}))
