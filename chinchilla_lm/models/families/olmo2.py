"""OLMo 2 and OLMo 3: norms behind each link's function alone, x + norm(f(x)), and over all heads of query and of key.

Follows transformers' `models/olmo2` and `models/olmo3`. OLMo 3 has windows on three of four blocks, and scales the rope
of the others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from chinchilla_lm.models.config import HeadConfig, HeadKind, ModelConfig, RopeConfig
from chinchilla_lm.models.families.base import Family
from chinchilla_lm.models.families.llama import DECODER_IGNORED, decoder_config, decoder_head, decoder_weights
from chinchilla_lm.models.families.reading import Fields

# Where a config is silent.
DEFAULTS = {"vocab_size": 50_304, "rms_norm_eps": 1e-5}
OLMO3_THETA = 500_000.0
KINDS = ("full_attention", "sliding_attention")


def read(hf: Mapping[str, Any], head: HeadConfig) -> ModelConfig:
    """Our config of an OLMo 2 or 3."""
    fields = Fields(DEFAULTS | dict(hf))
    bias = fields.flag("attention_bias", False)
    config = decoder_config(
        fields,
        head,
        placement="output",
        activation=fields.activation("hidden_act", "silu"),
        qkv_bias=bias,
        out_bias=bias,
        qk_norm=True,
        qk_norm_over="all",
    )
    if fields.model_type == "olmo2":
        return replace(config, ropes=(fields.rope(10_000.0),) * config.num_blocks)
    default = tuple(KINDS[0 if (block + 1) % 4 == 0 else 1] for block in range(config.num_blocks))
    types = fields.layer_types(config.num_blocks, default)
    window = fields.optional_whole("sliding_window", 4096)
    ropes = {name: _rope(fields, name) for name in set(types)}
    return replace(
        config,
        ropes=tuple(ropes[name] for name in types),
        windows=fields.windows(types, window, config.causal),
    )


def _rope(fields: Fields, layer_type: str) -> RopeConfig:
    """The rope of one layer type; older files scale only the full one, by a flat `rope_scaling`."""
    table = fields.dictionary("rope_parameters")
    if table and not set(table) & set(KINDS):
        raise fields.error("rope_parameters", sorted(table), "keyed by " + " and ".join(KINDS))
    given = dict(fields.dictionary(layer_type, table))
    theta = given.get("rope_theta")
    if layer_type == KINDS[0]:
        given |= fields.dictionary("rope_scaling")
        theta = given.get("rope_theta", fields.hf.get("rope_theta"))
    base = Fields({"model_type": fields.model_type, "rope_theta": theta})
    return fields.rope_of(given, base.number("rope_theta", OLMO3_THETA))


def _architectures(stem: str) -> dict[HeadKind, tuple[str, ...]]:
    return {
        "language-modeling": (f"{stem}ForCausalLM",),
        "token-classification": (f"{stem}ForTokenClassification",),
        "text-classification": (f"{stem}ForSequenceClassification",),
        "embedding": (f"{stem}Model",),
    }


FAMILY = Family(
    name="olmo2",
    architectures={"olmo2": _architectures("Olmo2"), "olmo3": _architectures("Olmo3")},
    base_prefix="model.",
    depth_key="num_hidden_layers",
    decoder=True,
    to_config=read,
    weights=decoder_weights,
    default_head=decoder_head,
    ignored=DECODER_IGNORED,
    layer_types=True,
    ours_only=frozenset({"token-classification"}),
)
