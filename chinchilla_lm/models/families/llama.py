"""Llama and Mistral, and what the other decoders with rotary positions share with them.

Config and names follow transformers' `models/llama` and `models/mistral`. Mistral has a sliding window on every block.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from chinchilla_lm.models.config import HeadConfig, HeadKind, ModelConfig
from chinchilla_lm.models.families.base import Family, Weight, standard_architectures
from chinchilla_lm.models.families.reading import MAX_BLOCKS, Fields, plain_head


def decoder_head(hf: Mapping[str, Any], kind: HeadKind, labels: tuple[str, ...]) -> HeadConfig:
    """Decoders classify a text by its last token, without a bias, and tokens with one."""
    fields = Fields(hf)
    if kind == "language-modeling":
        return plain_head(hf, kind, (), bias=False, tied=fields.flag("tie_word_embeddings", False))
    if kind == "token-classification":
        return plain_head(hf, kind, labels, bias=fields.flag("token_classification_bias", True))
    return plain_head(hf, kind, labels, bias=False, pooling="last")


def decoder_config(fields: Fields, head: HeadConfig, **changes: Any) -> ModelConfig:
    """A Llama without windows; `changes` are what a family does differently."""
    heads = fields.whole("num_attention_heads", 32)
    hidden = fields.whole("hidden_size", 4096)
    blocks = fields.whole("num_hidden_layers", 32, high=MAX_BLOCKS)
    kv_heads = fields.whole("num_key_value_heads", heads)
    head_dim = fields.whole("head_dim", hidden // heads or 1)
    if heads % kv_heads:
        raise fields.error("num_key_value_heads", kv_heads, f"a divisor of num_attention_heads {heads}")
    if head_dim % 2:
        raise fields.error("head_dim", head_dim, "even, as rotary positions need")
    values: dict[str, Any] = {
        "family": fields.model_type,
        "vocab_size": fields.whole("vocab_size", 32_000),
        "hidden_size": hidden,
        "num_blocks": blocks,
        "num_heads": heads,
        "num_kv_heads": kv_heads,
        "head_dim": head_dim,
        "intermediate_size": fields.whole("intermediate_size", 11_008),
        "max_positions": fields.whole("max_position_embeddings", 2048),
        "causal": fields.flag("is_causal", True),
        "norm": "rmsnorm",
        "norm_eps": fields.number("rms_norm_eps", 1e-6),
        "placement": "pre",
        "activation": "silu",
        "gated": True,
        "head": head,
        "qkv_bias": False,
        "out_bias": False,
        "mlp_bias": False,
        "positions": "rope",
    }
    return ModelConfig(**{**values, **changes})


def read(hf: Mapping[str, Any], head: HeadConfig) -> ModelConfig:
    """Our config of a Llama."""
    fields = Fields(hf)
    bias = fields.flag("attention_bias", False)
    config = decoder_config(
        fields,
        head,
        activation=fields.activation("hidden_act", "silu"),
        qkv_bias=bias,
        out_bias=bias,
        mlp_bias=fields.flag("mlp_bias", False),
    )
    return replace(config, ropes=(fields.rope(10_000.0),) * config.num_blocks)


def read_mistral(hf: Mapping[str, Any], head: HeadConfig) -> ModelConfig:
    """Our config of a Mistral; a config without `sliding_window` has one of 4096, one that says null has none."""
    fields = Fields(MISTRAL_DEFAULTS | dict(hf))
    fields.require("layer_types", None)
    window = fields.optional_whole("sliding_window", 4096)
    config = decoder_config(fields, head, activation=fields.activation("hidden_act", "silu"))
    types = ("full_attention" if window is None else "sliding_attention",) * config.num_blocks
    return replace(
        config,
        ropes=(fields.rope(10_000.0),) * config.num_blocks,
        windows=fields.windows(types, window, config.causal),
    )


def read_either(hf: Mapping[str, Any], head: HeadConfig) -> ModelConfig:
    """Our config of a Llama or a Mistral."""
    return READERS[hf["model_type"]](hf, head)


# Where a Mistral's config is silent.
MISTRAL_DEFAULTS = {"num_key_value_heads": 8, "intermediate_size": 14_336, "max_position_embeddings": 131_072}
READERS = {"llama": read, "mistral": read_mistral}


def decoder_weights(config: ModelConfig) -> list[Weight]:
    """Names of a Llama-like decoder; a sandwich family has its own names for the norms."""
    found = [
        Weight("embedding.tokens.weight", ("embed_tokens.weight",)),
        Weight("norm.weight", ("norm.weight",)),
    ]
    for block in range(config.num_blocks):
        found += block_weights(config, f"links.{block}_attn.", f"links.{block}_mlp.", f"layers.{block}.")
    return found + head_weights(config)


def block_weights(config: ModelConfig, attn: str, mlp: str, theirs: str) -> list[Weight]:
    """The weights of one block."""
    queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    inner = config.intermediate_size
    found = []
    for part in _parts(config.qkv_bias):
        three = tuple(f"{theirs}self_attn.{name}_proj.{part}" for name in "qkv")
        found.append(Weight(f"{attn}qkv.{part}", three, rows=(queries, keys, keys)))
    for part in _parts(config.out_bias):
        found.append(Weight(f"{attn}out.{part}", (f"{theirs}self_attn.o_proj.{part}",)))
    for part in _parts(config.mlp_bias):
        two = (f"{theirs}mlp.gate_proj.{part}", f"{theirs}mlp.up_proj.{part}")
        found.append(Weight(f"{mlp}up.{part}", two, rows=(inner, inner)))
        found.append(Weight(f"{mlp}down.{part}", (f"{theirs}mlp.down_proj.{part}",)))
    if config.qk_norm:
        found += [Weight(f"{attn}{name}_norm.weight", (f"{theirs}self_attn.{name}_norm.weight",)) for name in "qk"]
    norms = {"norm": "input_layernorm"}, {"norm": "post_attention_layernorm"}
    if config.placement == "output":
        norms = {"norm_after": "post_attention_layernorm"}, {"norm_after": "post_feedforward_layernorm"}
    elif config.placement == "sandwich":
        norms[0]["norm_after"] = "post_attention_layernorm"
        norms[1].update(norm="pre_feedforward_layernorm", norm_after="post_feedforward_layernorm")
    for link, names_of in zip((attn, mlp), norms, strict=True):
        found += [Weight(f"{link}{ours}.weight", (f"{theirs}{name}.weight",)) for ours, name in names_of.items()]
    return found


def _parts(bias: bool) -> tuple[str, ...]:
    return ("weight", "bias") if bias else ("weight",)


def head_weights(config: ModelConfig) -> list[Weight]:
    """`lm_head` or `score`; a tied head is the embedding and has no weight of its own."""
    head = config.head
    if head.kind == "embedding" or (head.kind == "language-modeling" and head.tied):
        return []
    name = "lm_head" if head.kind == "language-modeling" else "score"
    found = [Weight("head.output.weight", (f"{name}.weight",), in_base=False)]
    if head.bias:
        found.append(Weight("head.output.bias", (f"{name}.bias",), in_base=False))
    return found


# Rotation tables that older checkpoints stored.
DECODER_IGNORED = (r"layers\.\d+\.self_attn\.rotary_emb\.inv_freq", r"rotary_emb\.inv_freq")

FAMILY = Family(
    name="llama",
    architectures={"llama": standard_architectures("Llama"), "mistral": standard_architectures("Mistral")},
    base_prefix="model.",
    depth_key="num_hidden_layers",
    decoder=True,
    to_config=read_either,
    weights=decoder_weights,
    default_head=decoder_head,
    ignored=DECODER_IGNORED,
)
