"""EXAONE 4: norms behind each link's function and of each head, and, where there are windows, no positions elsewhere.

Follows transformers' `models/exaone4`.
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
    "vocab_size": 102_400,
    "intermediate_size": 16_384,
    "num_key_value_heads": 32,
    "rms_norm_eps": 1e-5,
}


def read(hf: Mapping[str, Any], head: HeadConfig) -> ModelConfig:
    """Our config of an EXAONE 4."""
    fields = Fields(DEFAULTS | dict(hf))
    config = decoder_config(
        fields, head, placement="output", activation=fields.activation("hidden_act", "silu"), qk_norm=True
    )
    window = fields.optional_whole("sliding_window", 4096)
    types = fields.layer_types(config.num_blocks, _default_types(fields, config.num_blocks, window))
    rope = fields.rope(10_000.0)
    return replace(
        config,
        ropes=tuple(rope if window is None or name == "sliding_attention" else None for name in types),
        windows=fields.windows(types, window, config.causal),
    )


def _default_types(fields: Fields, blocks: int, window: int | None) -> tuple[str, ...]:
    """Every fourth block sees everything, or every one where there is no window."""
    if window is None or fields.hf.get("layer_types") is not None:
        return ("full_attention",) * blocks
    pattern = fields.whole("sliding_window_pattern", 4)
    return tuple("full_attention" if (block + 1) % pattern == 0 else "sliding_attention" for block in range(blocks))


FAMILY = Family(
    name="exaone4",
    architectures={"exaone4": standard_architectures("Exaone4")},
    base_prefix="model.",
    depth_key="num_hidden_layers",
    decoder=True,
    to_config=read,
    weights=decoder_weights,
    default_head=decoder_head,
    ignored=DECODER_IGNORED,
    layer_types=True,
)
