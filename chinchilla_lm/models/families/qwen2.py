"""Qwen2 and Qwen2.5: a Llama with biases on query, key and value, and windows on the later blocks where asked.

Follows transformers' `models/qwen2`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from chinchilla_lm.models.config import HeadConfig, ModelConfig
from chinchilla_lm.models.families.base import Family, standard_architectures
from chinchilla_lm.models.families.llama import DECODER_IGNORED, decoder_config, decoder_head, decoder_weights
from chinchilla_lm.models.families.reading import Fields

# Where a config is silent.
DEFAULTS = {
    "vocab_size": 151_936,
    "intermediate_size": 22_016,
    "num_key_value_heads": 32,
    "max_position_embeddings": 32_768,
}


def qwen_config(hf: Mapping[str, Any], head: HeadConfig, **changes: Any) -> ModelConfig:
    """Ropes and windows as both Qwens have them; `changes` are what they do differently."""
    fields = Fields(DEFAULTS | dict(hf))
    config = decoder_config(fields, head, activation=fields.activation("hidden_act", "silu"), **changes)
    window = fields.optional_whole("sliding_window", 4096) if fields.flag("use_sliding_window", False) else None
    first = fields.whole("max_window_layers", 28, low=0)
    default = tuple(
        "sliding_attention" if window is not None and block >= first else "full_attention"
        for block in range(config.num_blocks)
    )
    types = fields.layer_types(config.num_blocks, default)
    ropes = tuple(fields.rope(10_000.0, name) for name in types)
    return replace(config, ropes=ropes, windows=fields.windows(types, window, config.causal))


def read(hf: Mapping[str, Any], head: HeadConfig) -> ModelConfig:
    """Our config of a Qwen2."""
    return qwen_config(hf, head, qkv_bias=True)


FAMILY = Family(
    name="qwen2",
    architectures={"qwen2": standard_architectures("Qwen2")},
    base_prefix="model.",
    depth_key="num_hidden_layers",
    decoder=True,
    to_config=read,
    weights=decoder_weights,
    default_head=decoder_head,
    ignored=DECODER_IGNORED,
    layer_types=True,
)
