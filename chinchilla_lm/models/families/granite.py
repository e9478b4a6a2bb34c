"""Granite (dense): a Llama whose embeddings, scores, links and logits are each multiplied by a number of the config.

Follows transformers' `models/granite`, which has no classes for classifiers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from chinchilla_lm.models.config import HeadConfig, ModelConfig
from chinchilla_lm.models.families.base import Family, standard_architectures
from chinchilla_lm.models.families.llama import DECODER_IGNORED, decoder_config, decoder_head, decoder_weights
from chinchilla_lm.models.families.reading import Fields


def read(hf: Mapping[str, Any], head: HeadConfig) -> ModelConfig:
    """Our config of a Granite. A config that is silent means 1, of the scores too."""
    fields = Fields(hf)
    bias = fields.flag("attention_bias", False)
    config = decoder_config(
        fields,
        head,
        activation=fields.activation("hidden_act", "silu"),
        qkv_bias=bias,
        out_bias=bias,
        mlp_bias=fields.flag("mlp_bias", False),
        embedding_scale=fields.number("embedding_multiplier", 1.0),
        attention_scale=fields.number("attention_multiplier", 1.0),
        residual_scale=fields.number("residual_multiplier", 1.0),
        logit_scale=1.0 / fields.number("logits_scaling", 1.0),
    )
    return replace(config, ropes=(fields.rope(10_000.0),) * config.num_blocks)


FAMILY = Family(
    name="granite",
    architectures={"granite": standard_architectures("Granite")},
    base_prefix="model.",
    depth_key="num_hidden_layers",
    decoder=True,
    to_config=read,
    weights=decoder_weights,
    default_head=decoder_head,
    ignored=DECODER_IGNORED,
    ours_only=frozenset({"token-classification", "text-classification", "ranking"}),
)
