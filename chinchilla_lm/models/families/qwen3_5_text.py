"""Qwen3.5 (dense, text): three of four blocks mix tokens by the gated delta rule, the others by attention with a gate.

Follows transformers' `models/qwen3_5`. Where a config says that it is not causal, attention looks both ways, and the
memories go on running one way. Of text all three of its kinds of position are the same, so its rope is a plain
one, of a quarter of each head.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from chinchilla_lm.models.config import DeltaConfig, HeadConfig, ModelConfig
from chinchilla_lm.models.families.base import Family, Weight
from chinchilla_lm.models.families.llama import DECODER_IGNORED, decoder_config, decoder_head, decoder_weights
from chinchilla_lm.models.families.reading import Fields

# Where a config is silent.
DEFAULTS = {
    "vocab_size": 248_320,
    "intermediate_size": 12_288,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "max_position_embeddings": 32_768,
}
LINEAR, FULL = "linear_attention", "full_attention"
ROTARY_SHARE = 0.25


def read(hf: Mapping[str, Any], head: HeadConfig) -> ModelConfig:
    """Our config of a Qwen3.5."""
    fields = Fields(DEFAULTS | dict(hf))
    bias = fields.flag("attention_bias", False)
    fields.require("hidden_act", "silu", "swish", None)  # of the convolution too
    config = decoder_config(
        fields, head, norm_unit_offset=True, qkv_bias=bias, out_bias=bias, qk_norm=True, attention_gate=True
    )
    interval = fields.whole("full_attention_interval", 4)
    default = tuple(FULL if (block + 1) % interval == 0 else LINEAR for block in range(config.num_blocks))
    types = fields.layer_types(config.num_blocks, default, (FULL, LINEAR))
    delta, rope = _delta(fields), fields.rope(10_000.0, share=ROTARY_SHARE)
    return replace(
        config,
        ropes=tuple(rope if name == FULL else None for name in types),
        deltas=tuple(delta if name == LINEAR else None for name in types),
    )


def _delta(fields: Fields) -> DeltaConfig:
    keys, values = fields.whole("linear_num_key_heads", 16), fields.whole("linear_num_value_heads", 32)
    if values % keys:
        raise fields.error("linear_num_key_heads", keys, f"a divisor of linear_num_value_heads {values}")
    return DeltaConfig(
        keys,
        values,
        fields.whole("linear_key_head_dim", 128),
        fields.whole("linear_value_head_dim", 128),
        fields.whole("linear_conv_kernel_dim", 4),
    )


def weights(config: ModelConfig) -> list[Weight]:
    """All names of a Qwen3.5 with its head."""
    found = []
    for weight in decoder_weights(config):
        link, _, part = weight.ours.removeprefix("links.").partition(".")
        block, _, kind = link.partition("_")
        if kind != "attn" or part == "norm.weight":
            found.append(weight)
        elif config.deltas[int(block)] is None:
            gated = part.startswith("qkv.")
            found.append(replace(weight, rows=(2 * weight.rows[0], *weight.rows[1:])) if gated else weight)
        elif part == "qkv.weight":
            found += delta_weights(config, int(block))
    return found


def delta_weights(config: ModelConfig, block: int) -> list[Weight]:
    """The weights of one link with the gated delta rule, but for the norm in front of it."""
    delta = config.deltas[block]
    assert delta is not None
    keys, values = delta.key_heads * delta.key_dim, delta.value_heads * delta.value_dim
    ours, theirs = f"links.{block}_attn.", f"layers.{block}.linear_attn."
    return [
        Weight(
            f"{ours}inner.weight",
            tuple(f"{theirs}in_proj_{name}.weight" for name in ("qkv", "z", "b", "a")),
            rows=(2 * keys + values, values, delta.value_heads, delta.value_heads),
        ),
        Weight(f"{ours}conv.weight", (f"{theirs}conv1d.weight",)),
        Weight(f"{ours}decay", (f"{theirs}A_log",)),
        Weight(f"{ours}step", (f"{theirs}dt_bias",)),
        Weight(f"{ours}head_norm.weight", (f"{theirs}norm.weight",)),
        Weight(f"{ours}out.weight", (f"{theirs}out_proj.weight",)),
    ]


FAMILY = Family(
    name="qwen3_5_text",
    architectures={
        "qwen3_5_text": {
            "language-modeling": ("Qwen3_5ForCausalLM",),
            "token-classification": ("Qwen3_5TextForTokenClassification",),
            "text-classification": ("Qwen3_5TextForSequenceClassification",),
            "embedding": ("Qwen3_5TextModel",),
        }
    },
    base_prefix="model.",
    depth_key="num_hidden_layers",
    decoder=True,
    to_config=read,
    weights=weights,
    default_head=decoder_head,
    ignored=(*DECODER_IGNORED, r"mtp\..*"),
    layer_types=True,
    ours_only=frozenset({"token-classification"}),
)
