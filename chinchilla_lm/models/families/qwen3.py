"""Qwen3 (dense): Qwen2 with norms of query and key instead of biases. Follows transformers' `models/qwen3`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from chinchilla_lm.models.config import HeadConfig, ModelConfig
from chinchilla_lm.models.families.base import Family, standard_architectures
from chinchilla_lm.models.families.llama import DECODER_IGNORED, decoder_head, decoder_weights
from chinchilla_lm.models.families.qwen2 import qwen_config
from chinchilla_lm.models.families.reading import Fields


def read(hf: Mapping[str, Any], head: HeadConfig) -> ModelConfig:
    """Our config of a Qwen3."""
    fields = Fields(hf)
    bias = fields.flag("attention_bias", False)
    head_dim = fields.whole("head_dim", 128)
    return qwen_config(dict(hf) | {"head_dim": head_dim}, head, qkv_bias=bias, out_bias=bias, qk_norm=True)


FAMILY = Family(
    name="qwen3",
    architectures={"qwen3": standard_architectures("Qwen3")},
    base_prefix="model.",
    depth_key="num_hidden_layers",
    decoder=True,
    to_config=read,
    weights=decoder_weights,
    default_head=decoder_head,
    ignored=DECODER_IGNORED,
    layer_types=True,
)
