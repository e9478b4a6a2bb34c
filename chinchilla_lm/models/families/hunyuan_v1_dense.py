"""Hunyuan (dense): a Llama with norms of query and key behind their rotation, and a rope whose base may be stretched.

Follows transformers' `models/hunyuan_v1_dense`. Its files call that stretch `dynamic` and give `alpha`; it is the same
at every length.
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
DEFAULTS = {"vocab_size": 290_943, "rms_norm_eps": 1e-5}
MOST_ALPHA = 1e9  # published: 1000; its power shall be a number
NORMS = {"q_norm.weight": "query_layernorm", "k_norm.weight": "key_layernorm"}


def read(hf: Mapping[str, Any], head: HeadConfig) -> ModelConfig:
    """Our config of a Hunyuan."""
    fields = Fields(DEFAULTS | dict(hf))
    bias = fields.flag("attention_bias", False)
    activation = fields.activation("hidden_act", "silu")
    config = decoder_config(
        fields, head, activation=activation, qkv_bias=bias, out_bias=bias, qk_norm=True, qk_norm_last=True
    )
    return replace(config, ropes=(_rope(fields, config.head_dim),) * config.num_blocks)


def _rope(fields: Fields, head_dim: int) -> RopeConfig:
    given = fields.dictionary("rope_scaling") or fields.dictionary("rope_parameters")
    if given.get("rope_type", given.get("type")) != "dynamic" or not given.get("alpha"):
        return fields.rope(10_000.0)
    if head_dim <= 2:
        raise fields.error("head_dim", head_dim, "above 2, as a stretched base needs")
    said = {key: given.get(key, fields.hf.get(key)) for key in ("rope_theta", "alpha")}
    numbers = Fields(said | {"model_type": fields.model_type})
    theta, alpha = numbers.number("rope_theta", 10_000.0), numbers.number("alpha", 1.0)
    if alpha > MOST_ALPHA:
        raise fields.error("alpha", alpha, f"a number up to {MOST_ALPHA:.0e}")
    return RopeConfig(theta * alpha ** (head_dim / (head_dim - 2)))


def weights(config: ModelConfig) -> list[Weight]:
    """All names of a Hunyuan with its head."""
    found = []
    for weight in decoder_weights(config):
        link, _, part = weight.ours.removeprefix("links.").partition(".")
        if part in NORMS:
            weight = replace(weight, theirs=(f"layers.{link.partition('_')[0]}.self_attn.{NORMS[part]}.weight",))
        found.append(weight)
    return found


FAMILY = Family(
    name="hunyuan_v1_dense",
    architectures={"hunyuan_v1_dense": standard_architectures("HunYuanDenseV1")},
    base_prefix="model.",
    depth_key="num_hidden_layers",
    decoder=True,
    to_config=read,
    weights=weights,
    default_head=decoder_head,
    ignored=DECODER_IGNORED,
    ours_only=frozenset({"token-classification"}),
)
