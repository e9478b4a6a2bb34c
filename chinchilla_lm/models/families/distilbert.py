"""DistilBERT: BERT without segments and pooler, under other names. Follows transformers' `models/distilbert`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from chinchilla_lm.models.config import HeadConfig, HeadKind, ModelConfig
from chinchilla_lm.models.families.base import Family, Weight, standard_architectures
from chinchilla_lm.models.families.bert import both, encoder_config
from chinchilla_lm.models.families.reading import Fields, plain_head

# Their name of what BERT's config calls …
RENAMED = {
    "dim": "hidden_size",
    "n_heads": "num_attention_heads",
    "n_layers": "num_hidden_layers",
    "hidden_dim": "intermediate_size",
    "activation": "hidden_act",
}


def head(hf: Mapping[str, Any], kind: HeadKind, labels: tuple[str, ...]) -> HeadConfig:
    """Sequences are classified on [CLS] behind a dense layer with ReLU."""
    if kind == "language-modeling":
        return plain_head(hf, kind, (), tied=Fields(hf).flag("tie_word_embeddings", True), transform=True)
    if kind in ("text-classification", "ranking"):
        return plain_head(hf, kind, labels, dense_activation="relu", pooling="first")
    return plain_head(hf, kind, labels)


def read(hf: Mapping[str, Any], head: HeadConfig) -> ModelConfig:
    """Our config of a DistilBERT."""
    as_bert = dict(hf) | {"num_hidden_layers": hf.get("n_layers", hf.get("num_hidden_layers", 6))}
    for theirs, ours in RENAMED.items():
        if theirs in hf:
            as_bert[ours] = hf[theirs]
    return encoder_config(as_bert, head, segment_types=0, norm_eps=1e-12)


def weights(config: ModelConfig) -> list[Weight]:
    """All names of a DistilBERT with its head."""
    found = [
        Weight("embedding.tokens.weight", ("embeddings.word_embeddings.weight",)),
        Weight("embedding.positions.weight", ("embeddings.position_embeddings.weight",)),
        *both("embedding.norm", "embeddings.LayerNorm"),
    ]
    width = config.hidden_size
    for block in range(config.num_blocks):
        attn, mlp, theirs = f"links.{block}_attn.", f"links.{block}_mlp.", f"transformer.layer.{block}."
        for part in ("weight", "bias"):
            names = tuple(f"{theirs}attention.{name}_lin.{part}" for name in "qkv")
            found.append(Weight(f"{attn}qkv.{part}", names, rows=(width,) * 3))
        found += both(f"{attn}out", f"{theirs}attention.out_lin")
        found += both(f"{attn}norm", f"{theirs}sa_layer_norm")
        found += both(f"{mlp}up", f"{theirs}ffn.lin1")
        found += both(f"{mlp}down", f"{theirs}ffn.lin2")
        found += both(f"{mlp}norm", f"{theirs}output_layer_norm")
    return found + head_weights(config)


def head_weights(config: ModelConfig) -> list[Weight]:
    """Names of the head."""
    if config.head.kind == "embedding":
        return []
    if config.head.kind == "token-classification":
        return both("head.output", "classifier", in_base=False)
    if config.head.kind != "language-modeling":
        return both("head.dense", "pre_classifier", False) + both("head.output", "classifier", False)
    found = both("head.dense", "vocab_transform", False) + both("head.transform_norm", "vocab_layer_norm", False)
    output = both("head.output", "vocab_projector", in_base=False)
    return found + (output[1:] if config.head.tied else output)


FAMILY = Family(
    name="distilbert",
    architectures={"distilbert": standard_architectures("DistilBert", "ForMaskedLM")},
    base_prefix="distilbert.",
    depth_key="n_layers",
    decoder=False,
    to_config=read,
    weights=weights,
    default_head=head,
    ignored=(r"embeddings\.position_ids",),
)
