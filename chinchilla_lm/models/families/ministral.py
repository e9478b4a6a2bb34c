"""Ministral: a Mistral that says block by block whether there is a window. Follows transformers' `models/ministral`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from chinchilla_lm.models.config import HeadConfig, ModelConfig
from chinchilla_lm.models.families.base import Family, standard_architectures
from chinchilla_lm.models.families.llama import (
    DECODER_IGNORED,
    MISTRAL_DEFAULTS,
    decoder_config,
    decoder_head,
    decoder_weights,
)
from chinchilla_lm.models.families.reading import Fields


def read(hf: Mapping[str, Any], head: HeadConfig) -> ModelConfig:
    """Our config of a Ministral; a config without `sliding_window` has one of 4096, one that says null has none."""
    fields = Fields(MISTRAL_DEFAULTS | dict(hf))
    window = fields.optional_whole("sliding_window", 4096)
    config = decoder_config(fields, head, activation=fields.activation("hidden_act", "silu"))
    default = ("full_attention" if window is None else "sliding_attention",) * config.num_blocks
    types = fields.layer_types(config.num_blocks, default)
    return replace(
        config,
        ropes=tuple(fields.rope(10_000.0, name) for name in types),
        windows=fields.windows(types, window, config.causal),
    )


FAMILY = Family(
    name="ministral",
    architectures={"ministral": standard_architectures("Ministral")},
    base_prefix="model.",
    depth_key="num_hidden_layers",
    decoder=True,
    to_config=read,
    weights=decoder_weights,
    default_head=decoder_head,
    ignored=DECODER_IGNORED,
    layer_types=True,
)
