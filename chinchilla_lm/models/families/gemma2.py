"""Gemma 2: sandwich norms stored as their difference from one, scaled embeddings, soft caps on scores and logits.

Follows transformers' `models/gemma2`. Every second block has a window.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from chinchilla_lm.models.config import HeadConfig, ModelConfig
from chinchilla_lm.models.families.base import Family, standard_architectures
from chinchilla_lm.models.families.gemma3_text import head
from chinchilla_lm.models.families.llama import DECODER_IGNORED, decoder_config, decoder_weights
from chinchilla_lm.models.families.reading import Fields

# Where a config is silent.
DEFAULTS = {
    "vocab_size": 256_000,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "max_position_embeddings": 8192,
}
SCORE_CAP, LOGIT_CAP = 50.0, 30.0


def read(hf: Mapping[str, Any], head: HeadConfig) -> ModelConfig:
    """Our config of a Gemma 2."""
    fields = Fields(DEFAULTS | dict(hf))
    fields.require("use_bidirectional_attention", False, None)  # which transformers has a key for, and no effect
    bias = fields.flag("attention_bias", False)
    config = decoder_config(
        fields,
        head,
        placement="sandwich",
        activation=fields.activation("hidden_activation", "gelu_pytorch_tanh"),
        norm_unit_offset=True,
        qkv_bias=bias,
        out_bias=bias,
        attention_scale=fields.number("query_pre_attn_scalar", 256) ** -0.5,
        attention_softcap=_cap(fields, "attn_logit_softcapping", SCORE_CAP),
        logit_softcap=_cap(fields, "final_logit_softcapping", LOGIT_CAP),
    )
    blocks = config.num_blocks
    default = tuple("full_attention" if (block + 1) % 2 == 0 else "sliding_attention" for block in range(blocks))
    types = fields.layer_types(blocks, default)
    window = fields.optional_whole("sliding_window", 4096)
    return replace(
        config,
        embedding_scale=config.hidden_size**0.5,
        ropes=(fields.rope(10_000.0),) * blocks,
        windows=fields.windows(types, window, config.causal),
    )


def _cap(fields: Fields, key: str, default: float) -> float | None:
    """A cap, or None where the file says null."""
    return None if key in fields.hf and fields.hf[key] is None else fields.number(key, default)


FAMILY = Family(
    name="gemma2",
    architectures={"gemma2": standard_architectures("Gemma2")},
    base_prefix="model.",
    depth_key="num_hidden_layers",
    decoder=True,
    to_config=read,
    weights=decoder_weights,
    default_head=head,
    ignored=DECODER_IGNORED,
    layer_types=True,
)
