"""DeBERTa-v2 and v3: a BERT whose scores see the distance of two tokens through the content of each.

Follows transformers' `models/deberta_v2`. The convolution of v2's larger models is refused. Of the two heads for
masked tokens, `legacy` (the default of a config) has BERT's names; the other one is always tied to the embedding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from chinchilla_lm.models.config import DisentangledConfig, HeadConfig, HeadKind, ModelConfig
from chinchilla_lm.models.families.base import Family, Weight, standard_architectures
from chinchilla_lm.models.families.bert import both, decoder_of, encoder_config
from chinchilla_lm.models.families.reading import Fields, plain_head

# Where a config is silent, and BERT's would be another value.
DEFAULTS = {
    "vocab_size": 128_100,
    "hidden_size": 1536,
    "num_hidden_layers": 24,
    "num_attention_heads": 24,
    "intermediate_size": 6144,
    "layer_norm_eps": 1e-7,
}
PARTS = ("c2p", "p2c")
LEGACY, NEW = "legacy", "new"


def head(hf: Mapping[str, Any], kind: HeadKind, labels: tuple[str, ...]) -> HeadConfig:
    """Sequences are classified on [CLS] behind a dense layer with `pooler_hidden_act`."""
    fields = Fields(hf)
    if kind == "language-modeling":
        legacy = fields.flag("legacy", True)
        tied = fields.flag("tie_word_embeddings", True) or not legacy
        return plain_head(hf, kind, (), tied=tied, transform=True, names=LEGACY if legacy else NEW)
    if kind in ("text-classification", "ranking"):
        activation = fields.activation("pooler_hidden_act", "gelu")
        return plain_head(hf, kind, labels, dense_activation=activation, pooling="first")
    return plain_head(hf, kind, labels)


def read(hf: Mapping[str, Any], head: HeadConfig) -> ModelConfig:
    """Our config of a DeBERTa."""
    given = DEFAULTS | {key: value for key, value in hf.items() if value is not None}
    fields = Fields(given)
    hidden, positions = fields.whole("hidden_size", 1536), fields.whole("max_position_embeddings", 512)
    if fields.whole("conv_kernel_size", 0, low=0):
        raise fields.error("conv_kernel_size", given["conv_kernel_size"], "0; a convolution is not supported")
    for key in ("embedding_size", "pooler_hidden_size"):
        fields.require(key, hidden)
    parts = _parts(fields)
    config = encoder_config(
        {key: value for key, value in given.items() if key != "type_vocab_size"},  # of a BERT it is above 0
        head,
        segment_types=fields.whole("type_vocab_size", 0, low=0),
        positions="learned" if fields.flag("position_biased_input", True) else "none",
        disentangled=_disentangled(fields, parts, positions),
    )
    fields.require("attention_head_size", config.head_dim)
    # The scores are sums of so many products, whether the model has distances or not.
    return replace(config, attention_scale=(config.head_dim * (1 + len(parts))) ** -0.5)


def _parts(fields: Fields) -> tuple[str, ...]:
    """What `pos_att_type` names, a list or a text with bars."""
    given = fields.hf.get("pos_att_type", [])
    names = [part.strip() for part in given.lower().split("|")] if isinstance(given, str) else given
    if not isinstance(names, list | tuple) or not all(name in PARTS for name in names):
        raise fields.error("pos_att_type", given, f"a list of {' and '.join(PARTS)}")
    return tuple(name for name in PARTS if name in names)


def _disentangled(fields: Fields, parts: tuple[str, ...], positions: int) -> DisentangledConfig | None:
    if not fields.flag("relative_attention", False) or not parts:
        return None
    farthest = fields.whole("max_relative_positions", -1, low=-1)
    farthest = positions if farthest < 1 else farthest
    buckets = max(0, fields.whole("position_buckets", -1, low=-1))
    if buckets and not 4 <= buckets <= 2 * (farthest - 2):
        raise fields.error("position_buckets", buckets, f"in 4 … {2 * (farthest - 2)}, twice the relative positions")
    normed = fields.hf.get("norm_rel_ebd", "none")
    if not isinstance(normed, str):
        raise fields.error("norm_rel_ebd", normed, "none or layer_norm")
    return DisentangledConfig(
        span=buckets or farthest,
        buckets=buckets,
        farthest=farthest,
        on_keys="c2p" in parts,
        on_queries="p2c" in parts,
        shared=fields.flag("share_att_key", False),
        normed="layer_norm" in [part.strip() for part in normed.lower().split("|")],
    )


def weights(config: ModelConfig) -> list[Weight]:
    """All names of a DeBERTa with its head."""
    found = [
        Weight("embedding.tokens.weight", ("embeddings.word_embeddings.weight",)),
        *both("embedding.norm", "embeddings.LayerNorm"),
    ]
    if config.positions == "learned":
        found.append(Weight("embedding.positions.weight", ("embeddings.position_embeddings.weight",)))
    if config.segment_types:
        found.append(Weight("embedding.segments.weight", ("embeddings.token_type_embeddings.weight",)))
    about = config.disentangled
    if about is not None:
        found.append(Weight("embedding.distances.weight", ("encoder.rel_embeddings.weight",)))
        found += both("embedding.distances.norm", "encoder.LayerNorm") if about.normed else []
    for block in range(config.num_blocks):
        attn, mlp, theirs = f"links.{block}_attn.", f"links.{block}_mlp.", f"encoder.layer.{block}."
        for part in ("weight", "bias"):
            names = tuple(f"{theirs}attention.self.{name}_proj.{part}" for name in ("query", "key", "value"))
            found.append(Weight(f"{attn}qkv.{part}", names, rows=(config.hidden_size,) * 3))
        if about is not None and not about.shared:
            found += both(f"{attn}distance_key", f"{theirs}attention.self.pos_key_proj") if about.on_keys else []
            found += both(f"{attn}distance_query", f"{theirs}attention.self.pos_query_proj") if about.on_queries else []
        found += both(f"{attn}out", f"{theirs}attention.output.dense")
        found += both(f"{attn}norm", f"{theirs}attention.output.LayerNorm")
        found += both(f"{mlp}up", f"{theirs}intermediate.dense")
        found += both(f"{mlp}down", f"{theirs}output.dense")
        found += both(f"{mlp}norm", f"{theirs}output.LayerNorm")
    return found + head_weights(config)


def head_weights(config: ModelConfig) -> list[Weight]:
    """Names of the head."""
    kind = config.head.kind
    if kind == "embedding":
        return []
    if kind != "language-modeling":
        found = [] if kind == "token-classification" else both("head.dense", "pooler.dense", in_base=False)
        return found + both("head.output", "classifier", in_base=False)
    if config.head.names == LEGACY:
        found = both("head.dense", "cls.predictions.transform.dense", in_base=False)
        found += both("head.transform_norm", "cls.predictions.transform.LayerNorm", in_base=False)
        return found + decoder_of(config, "cls.predictions.decoder", "cls.predictions.bias")
    found = both("head.dense", "lm_predictions.lm_head.dense", in_base=False)
    found += both("head.transform_norm", "lm_predictions.lm_head.LayerNorm", in_base=False)
    output = both("head.output", "lm_predictions.lm_head", in_base=False)
    return found + (output[1:] if config.head.tied else output)


FAMILY = Family(
    name="deberta-v2",
    architectures={"deberta-v2": standard_architectures("DebertaV2", "ForMaskedLM")},
    base_prefix="deberta.",
    depth_key="num_hidden_layers",
    decoder=False,
    to_config=read,
    weights=weights,
    default_head=head,
    # What only pretraining needs (`_weight`: what a discriminator adds to its generator's embeddings, which is in
    # `weight` too), and absolute positions that a model without them may still hold.
    ignored=(
        r"embeddings\.position_ids",
        r"embeddings\.position_embeddings\.weight",
        r"embeddings\.(word|position)_embeddings\._weight",
        r"mask_predictions\..*",
    ),
)
