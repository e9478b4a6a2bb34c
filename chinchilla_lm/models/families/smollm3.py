"""SmolLM3: a Llama in which every fourth block does not see positions, and may have a window instead.

Follows transformers' `models/smollm3`. There the list of layer types alone says which blocks have the window.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from chinchilla_lm.models.config import HeadConfig, HeadKind, ModelConfig
from chinchilla_lm.models.families.base import Family, standard_architectures
from chinchilla_lm.models.families.llama import DECODER_IGNORED, decoder_config, decoder_head, decoder_weights
from chinchilla_lm.models.families.reading import Fields

# Where a config is silent.
DEFAULTS = {
    "vocab_size": 128_256,
    "hidden_size": 2048,
    "num_hidden_layers": 36,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "max_position_embeddings": 32_768,
}
THETA = 2_000_000.0
ROPE_LAYERS = "no_rope_layers"  # 1 for a block that has a rope, whatever the name says


def head(hf: Mapping[str, Any], kind: HeadKind, labels: tuple[str, ...]) -> HeadConfig:
    """As other decoders, with a tied LM head by default."""
    return decoder_head({"tie_word_embeddings": True} | dict(hf), kind, labels)


def read(hf: Mapping[str, Any], head: HeadConfig) -> ModelConfig:
    """Our config of a SmolLM3."""
    fields = Fields(DEFAULTS | dict(hf))
    bias = fields.flag("attention_bias", False)
    config = decoder_config(
        fields,
        head,
        activation=fields.activation("hidden_act", "silu"),
        qkv_bias=bias,
        out_bias=bias,
        mlp_bias=fields.flag("mlp_bias", False),
    )
    turned = _turned(fields, config.num_blocks)
    window = fields.optional_whole("sliding_window", None)
    windowed = fields.flag("use_sliding_window", False) and window is not None
    default = tuple("sliding_attention" if windowed and not one else "full_attention" for one in turned)
    types = fields.layer_types(config.num_blocks, default)
    rope = fields.rope(THETA)
    return replace(
        config,
        ropes=tuple(rope if one else None for one in turned),
        windows=fields.windows(types, window, config.causal),
    )


def _turned(fields: Fields, blocks: int) -> list[bool]:
    """Which blocks have a rope."""
    interval = fields.whole("no_rope_layer_interval", 4)
    given = fields.hf.get(ROPE_LAYERS)
    if given is None:
        return [(block + 1) % interval != 0 for block in range(blocks)]
    if not isinstance(given, list | tuple) or len(given) < blocks or any(one not in (0, 1) for one in given):
        raise fields.error(ROPE_LAYERS, given, f"a list of {blocks} times 0 or 1")
    return [bool(one) for one in given[:blocks]]


FAMILY = Family(
    name="smollm3",
    architectures={"smollm3": standard_architectures("SmolLM3")},
    base_prefix="model.",
    depth_key="num_hidden_layers",
    decoder=True,
    to_config=read,
    weights=decoder_weights,
    default_head=head,
    ignored=DECODER_IGNORED,
    layer_types=True,
    rope_layers=ROPE_LAYERS,
)
