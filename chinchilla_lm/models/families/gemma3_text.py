"""Gemma 3, text only: sandwich norms stored as their difference from one, scaled embeddings, two ropes.

Follows transformers' `models/gemma3`. Sliding blocks turn with a base of 10 000, full ones with 1 000 000.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from chinchilla_lm.models.config import HeadConfig, HeadKind, ModelConfig, RopeConfig
from chinchilla_lm.models.families.base import Family, Weight
from chinchilla_lm.models.families.llama import DECODER_IGNORED, decoder_config, decoder_head, decoder_weights
from chinchilla_lm.models.families.reading import Fields

# Where a config is silent.
DEFAULTS = {
    "vocab_size": 262_208,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "max_position_embeddings": 131_072,
}
GLOBAL_THETA, LOCAL_THETA = 1_000_000.0, 10_000.0


def head(hf: Mapping[str, Any], kind: HeadKind, labels: tuple[str, ...]) -> HeadConfig:
    """As other decoders, with a tied LM head by default."""
    return decoder_head({"tie_word_embeddings": True} | dict(hf), kind, labels)


def read(hf: Mapping[str, Any], head: HeadConfig) -> ModelConfig:
    """Our config of a Gemma 3."""
    fields = Fields(DEFAULTS | dict(hf))
    for key in ("final_logit_softcapping", "attn_logit_softcapping"):
        fields.require(key, None)
    bias = fields.flag("attention_bias", False)
    config = decoder_config(
        fields,
        head,
        placement="sandwich",
        activation=fields.activation("hidden_activation", "gelu_pytorch_tanh"),
        norm_unit_offset=True,
        qkv_bias=bias,
        out_bias=bias,
        qk_norm=True,
        attention_scale=fields.number("query_pre_attn_scalar", 256) ** -0.5,
    )
    types = _layer_types(fields, config.num_blocks)
    both_ways = fields.flag("use_bidirectional_attention", False)
    window = fields.optional_whole("sliding_window", 4096)
    if both_ways and window is not None:
        window = window // 2 + 1
    ropes = {name: _rope(fields, name) for name in set(types)}
    return replace(
        config,
        causal=config.causal and not both_ways,
        embedding_scale=config.hidden_size**0.5,
        ropes=tuple(ropes[name] for name in types),
        windows=fields.windows(types, window, config.causal),
    )


def _layer_types(fields: Fields, blocks: int) -> tuple[str, ...]:
    pattern = fields.whole("sliding_window_pattern", fields.whole("_sliding_window_pattern", 6))
    default = ("full_attention" if (block + 1) % pattern == 0 else "sliding_attention" for block in range(blocks))
    return fields.layer_types(blocks, tuple(default))


def _rope(fields: Fields, layer_type: str) -> RopeConfig:
    """The rope of one layer type; older files scale only the full one, by a flat `rope_scaling`."""
    full = layer_type == "full_attention"
    given = dict(fields.dictionary(layer_type, fields.dictionary("rope_parameters")))
    if full:
        given |= fields.dictionary("rope_scaling")
    key, default = ("rope_theta", GLOBAL_THETA) if full else ("rope_local_base_freq", LOCAL_THETA)
    base = Fields({"model_type": fields.model_type, key: given.get("rope_theta", fields.hf.get(key))})
    return fields.rope_of(given, base.number(key, default))


def weights(config: ModelConfig) -> list[Weight]:
    """All names of a Gemma 3 with its head."""
    return decoder_weights(config)


FAMILY = Family(
    name="gemma3_text",
    architectures={
        "gemma3_text": {
            "language-modeling": ("Gemma3ForCausalLM",),
            "token-classification": ("Gemma3TextForTokenClassification",),
            "text-classification": ("Gemma3TextForSequenceClassification",),
            "embedding": ("Gemma3TextModel",),
        }
    },
    base_prefix="model.",
    depth_key="num_hidden_layers",
    decoder=True,
    to_config=read,
    weights=weights,
    default_head=head,
    ignored=DECODER_IGNORED,
    layer_types=True,
    ours_only=frozenset({"token-classification"}),
)
