"""MPNet: RoBERTa's positions and heads, no segments, and a bias by the distance of query and key on every score.

Follows transformers' `models/mpnet`, which reads 32 buckets whatever the config says of a larger table, and takes 1 for
the padding id.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from chinchilla_lm.models.config import HeadConfig, ModelConfig
from chinchilla_lm.models.families.base import Family, Weight, standard_architectures
from chinchilla_lm.models.families.bert import ENCODER_IGNORED, both, encoder_config
from chinchilla_lm.models.families.reading import Fields
from chinchilla_lm.models.families.roberta import head, head_weights

BUCKETS = 32
OFFSET = 2  # the first position's row: behind that of padding


def read(hf: Mapping[str, Any], head: HeadConfig) -> ModelConfig:
    """Our config of an MPNet."""
    fields = Fields(hf)
    fields.require("relative_attention_num_buckets", BUCKETS)
    positions = fields.whole("max_position_embeddings", 512, low=OFFSET + 1) - OFFSET
    return encoder_config(
        hf,
        head,
        vocab_size=fields.whole("vocab_size", 30_527),
        max_positions=positions,
        position_offset=OFFSET,
        segment_types=0,
        relative_buckets=BUCKETS,
    )


def weights(config: ModelConfig) -> list[Weight]:
    """All names of an MPNet with its head."""
    found = [
        Weight("embedding.tokens.weight", ("embeddings.word_embeddings.weight",)),
        Weight("embedding.positions.weight", ("embeddings.position_embeddings.weight",)),
        *both("embedding.norm", "embeddings.LayerNorm"),
        Weight("embedding.relative.weight", ("encoder.relative_attention_bias.weight",)),
    ]
    for block in range(config.num_blocks):
        attn, mlp, theirs = f"links.{block}_attn.", f"links.{block}_mlp.", f"encoder.layer.{block}."
        for part in ("weight", "bias"):
            names = tuple(f"{theirs}attention.attn.{name}.{part}" for name in "qkv")
            found.append(Weight(f"{attn}qkv.{part}", names, rows=(config.hidden_size,) * 3))
        found += both(f"{attn}out", f"{theirs}attention.attn.o")
        found += both(f"{attn}norm", f"{theirs}attention.LayerNorm")
        found += both(f"{mlp}up", f"{theirs}intermediate.dense")
        found += both(f"{mlp}down", f"{theirs}output.dense")
        found += both(f"{mlp}norm", f"{theirs}output.LayerNorm")
    return found + head_weights(config)


FAMILY = Family(
    name="mpnet",
    architectures={"mpnet": standard_architectures("MPNet", "ForMaskedLM")},
    base_prefix="mpnet.",
    depth_key="num_hidden_layers",
    decoder=False,
    to_config=read,
    weights=weights,
    default_head=head,
    ignored=ENCODER_IGNORED,
)
