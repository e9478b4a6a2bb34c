"""ModernBERT: a pre-norm encoder with rotary positions, gated MLPs and windows on two blocks of three.

Follows transformers' `models/modernbert`. `local_attention` counts both sides; each block looks half of it to the left
and to the right. The first block's attention has no norm in front, as it would follow the embedding's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from chinchilla_lm.models.config import HeadConfig, HeadKind, ModelConfig, RopeConfig
from chinchilla_lm.models.families.base import Family, Weight, standard_architectures
from chinchilla_lm.models.families.reading import MAX_BLOCKS, Fields, plain_head

# The older key and the default of each layer type's base.
THETAS = {"full_attention": ("global_rope_theta", 160_000.0), "sliding_attention": ("local_rope_theta", 10_000.0)}
POOLINGS = {"cls": "first", "mean": "mean"}


def head(hf: Mapping[str, Any], kind: HeadKind, labels: tuple[str, ...]) -> HeadConfig:
    """In front of every classifier, and of the decoder, stand a dense layer, an activation and a norm."""
    if kind == "embedding":
        return plain_head(hf, kind, labels)
    fields = Fields(hf)
    more: dict[str, Any] = {
        "transform": True,
        "dense_activation": fields.activation("classifier_activation", "gelu"),
        "dense_bias": fields.flag("classifier_bias", False),
    }
    if kind == "language-modeling":
        more["tied"] = fields.flag("tie_word_embeddings", True)
        more["bias"] = fields.flag("decoder_bias", True)
    elif kind != "token-classification":
        fields.require("classifier_pooling", *POOLINGS)
        more["pooling"] = POOLINGS[hf.get("classifier_pooling", "cls")]
    return plain_head(hf, kind, labels, **more)


def read(hf: Mapping[str, Any], head: HeadConfig) -> ModelConfig:
    """Our config of a ModernBERT."""
    fields = Fields(hf)
    heads, hidden = fields.whole("num_attention_heads", 12), fields.whole("hidden_size", 768)
    if hidden % heads or hidden // heads % 2:
        raise fields.error("num_attention_heads", heads, f"a divisor of hidden_size {hidden} into heads of even size")
    blocks = fields.whole("num_hidden_layers", 22, high=MAX_BLOCKS)
    every = fields.whole("global_attn_every_n_layers", 3)
    types = fields.layer_types(
        blocks, tuple("sliding_attention" if block % every else "full_attention" for block in range(blocks))
    )
    ropes = {name: _rope(fields, name) for name in set(types)}
    bias = fields.flag("attention_bias", False)
    return ModelConfig(
        family=fields.model_type,
        vocab_size=fields.whole("vocab_size", 50_368),
        hidden_size=hidden,
        num_blocks=blocks,
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=hidden // heads,
        intermediate_size=fields.whole("intermediate_size", 1152),
        max_positions=fields.whole("max_position_embeddings", 8192),
        causal=False,
        norm="layernorm",
        norm_eps=fields.number("norm_eps", 1e-5),
        norm_bias=fields.flag("norm_bias", False),
        first_norm=False,
        placement="pre",
        activation=fields.activation("hidden_activation", "gelu"),
        gated=True,
        head=head,
        qkv_bias=bias,
        out_bias=bias,
        mlp_bias=fields.flag("mlp_bias", False),
        positions="rope",
        embedding_norm=True,
        windows=fields.windows(types, fields.whole("local_attention", 128) // 2, causal=False),
        ropes=tuple(ropes[name] for name in types),
    )


def _rope(fields: Fields, layer_type: str) -> RopeConfig:
    """The rope of one layer type; older files have one key for each base, and scale both ropes alike."""
    given = fields.dictionary(layer_type, fields.dictionary("rope_parameters"))
    scaled = {**given, **fields.dictionary("rope_scaling")}
    key, default = THETAS[layer_type]
    base = Fields({"model_type": fields.model_type, key: scaled.get("rope_theta", fields.hf.get(key))})
    return fields.rope_of(scaled, base.number(key, default))


def weights(config: ModelConfig) -> list[Weight]:
    """All names of a ModernBERT with its head."""
    norm, attention, mlp = config.norm_bias, config.qkv_bias, config.mlp_bias
    found = [
        *named("embedding.tokens", "embeddings.tok_embeddings", False),
        *named("embedding.norm", "embeddings.norm", norm),
        *named("norm", "final_norm", norm),
    ]
    for block in range(config.num_blocks):
        ours, theirs = f"links.{block}_", f"layers.{block}."
        if block:
            found += named(f"{ours}attn.norm", f"{theirs}attn_norm", norm)
        found += named(f"{ours}attn.qkv", f"{theirs}attn.Wqkv", attention)
        found += named(f"{ours}attn.out", f"{theirs}attn.Wo", attention)
        found += named(f"{ours}mlp.norm", f"{theirs}mlp_norm", norm)
        found += named(f"{ours}mlp.up", f"{theirs}mlp.Wi", mlp)
        found += named(f"{ours}mlp.down", f"{theirs}mlp.Wo", mlp)
    head = config.head
    if head.kind == "embedding":
        return found
    found += named("head.dense", "head.dense", head.dense_bias, in_base=False)
    found += named("head.transform_norm", "head.norm", norm, in_base=False)
    lm = head.kind == "language-modeling"
    output = named("head.output", "decoder" if lm else "classifier", head.bias, in_base=False)
    return found + (output[1:] if lm and head.tied else output)


def named(ours: str, theirs: str, bias: bool, in_base: bool = True) -> list[Weight]:
    """A module's weight, and its bias where it has one."""
    parts = ("weight", "bias") if bias else ("weight",)
    return [Weight(f"{ours}.{part}", (f"{theirs}.{part}",), in_base=in_base) for part in parts]


FAMILY = Family(
    name="modernbert",
    architectures={"modernbert": standard_architectures("ModernBert", "ForMaskedLM")},
    base_prefix="model.",
    depth_key="num_hidden_layers",
    decoder=False,
    to_config=read,
    weights=weights,
    default_head=head,
    layer_types=True,
    rope_bases=(THETAS["full_attention"][0], THETAS["sliding_attention"][0]),
)
