"""Phi-3, Phi-3.5 and Phi-4-mini: a Llama with matrices stored fused, heads that may turn in part, and LongRoPE.

Follows transformers' `models/phi3`. A text that is longer than `original_max_position_embeddings` turns by other angles
from its first token on; dropout is for training and is left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from chinchilla_lm.models.config import HeadConfig, ModelConfig, RopeConfig
from chinchilla_lm.models.families.base import Family, Weight, standard_architectures
from chinchilla_lm.models.families.llama import DECODER_IGNORED, decoder_config, decoder_head, decoder_weights
from chinchilla_lm.models.families.reading import Fields

# Where a config is silent.
DEFAULTS = {
    "vocab_size": 32_064,
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "max_position_embeddings": 4096,
    "original_max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
}
# Older files call it by what its paper's draft did, or by another method's name.
LONGROPE = ("longrope", "su", "yarn")
FUSED = {"qkv.weight": "self_attn.qkv_proj.weight", "up.weight": "mlp.gate_up_proj.weight"}


def read(hf: Mapping[str, Any], head: HeadConfig) -> ModelConfig:
    """Our config of a Phi-3."""
    fields = Fields(DEFAULTS | dict(hf))
    config = decoder_config(fields, head, activation=fields.activation("hidden_act", "silu"))
    window = fields.optional_whole("sliding_window", None)
    types = ("full_attention" if window is None else "sliding_attention",) * config.num_blocks
    return replace(
        config,
        ropes=(_rope(fields, config.head_dim),) * config.num_blocks,
        windows=fields.windows(types, window, config.causal),
    )


def _rope(fields: Fields, head_dim: int) -> RopeConfig:
    given = fields.dictionary("rope_scaling") or fields.dictionary("rope_parameters")
    kind = given.get("rope_type", given.get("type", "default"))
    plain = fields.rope_of({**given, "rope_type": "default"}, _theta(fields, given), share=1.0)
    if kind in LONGROPE:
        return fields.longrope(given, plain.theta, plain.share, head_dim)
    if kind != "default":
        raise fields.error("rope_type", kind, "one of default, longrope")
    return plain


def _theta(fields: Fields, given: Mapping[str, Any]) -> float:
    theta = given.get("rope_theta", fields.hf.get("rope_theta"))
    return Fields({"model_type": fields.model_type, "rope_theta": theta}).number("rope_theta", 10_000.0)


def weights(config: ModelConfig) -> list[Weight]:
    """All names of a Phi-3 with its head; query, key and value are one tensor, and gate and up."""
    found = []
    for weight in decoder_weights(config):
        link, _, part = weight.ours.removeprefix("links.").partition(".")
        if part in FUSED:
            block = link.partition("_")[0]
            weight = Weight(weight.ours, (f"layers.{block}.{FUSED[part]}",))
        found.append(weight)
    return found


FAMILY = Family(
    name="phi3",
    architectures={"phi3": standard_architectures("Phi3")},
    base_prefix="model.",
    depth_key="num_hidden_layers",
    decoder=True,
    to_config=read,
    weights=weights,
    default_head=decoder_head,
    ignored=DECODER_IGNORED,
)
