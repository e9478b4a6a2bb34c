"""BERT: post-norm, learned positions, segments; what others share with it. Follows transformers' `models/bert`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from chinchilla_lm.models.config import HeadConfig, HeadKind, ModelConfig
from chinchilla_lm.models.families.base import Family, Weight, standard_architectures
from chinchilla_lm.models.families.reading import MAX_BLOCKS, Fields, plain_head


def head(hf: Mapping[str, Any], kind: HeadKind, labels: tuple[str, ...]) -> HeadConfig:
    """Sequences are classified on [CLS] behind the pooler (dense, tanh); the LM head has a transform."""
    if kind == "language-modeling":
        return plain_head(hf, kind, (), tied=Fields(hf).flag("tie_word_embeddings", True), transform=True)
    if kind in ("text-classification", "ranking"):
        return plain_head(hf, kind, labels, dense_activation="tanh", pooling="first")
    return plain_head(hf, kind, labels)


def encoder_config(hf: Mapping[str, Any], head: HeadConfig, **changes: Any) -> ModelConfig:
    """A BERT; `changes` are what a family does differently."""
    fields = Fields(hf)
    fields.require("is_decoder", False, None)
    heads, hidden = fields.whole("num_attention_heads", 12), fields.whole("hidden_size", 768)
    if hidden % heads:
        raise fields.error("num_attention_heads", heads, f"a divisor of hidden_size {hidden}")
    values: dict[str, Any] = {
        "family": fields.model_type,
        "vocab_size": fields.whole("vocab_size", 30_522),
        "hidden_size": hidden,
        "num_blocks": fields.whole("num_hidden_layers", 12, high=MAX_BLOCKS),
        "num_heads": heads,
        "num_kv_heads": heads,
        "head_dim": hidden // heads,
        "intermediate_size": fields.whole("intermediate_size", 3072),
        "max_positions": fields.whole("max_position_embeddings", 512),
        "causal": False,
        "norm": "layernorm",
        "norm_eps": fields.number("layer_norm_eps", 1e-12),
        "placement": "post",
        "activation": fields.activation("hidden_act", "gelu"),
        "gated": False,
        "head": head,
        "segment_types": fields.whole("type_vocab_size", 2),
        "embedding_norm": True,
        "final_norm": False,
    }
    return ModelConfig(**{**values, **changes})


def both(ours: str, theirs: str, in_base: bool = True) -> list[Weight]:
    """A module's weight and bias."""
    return [Weight(f"{ours}.{part}", (f"{theirs}.{part}",), in_base=in_base) for part in ("weight", "bias")]


def base_weights(config: ModelConfig) -> list[Weight]:
    """The weights of the encoder itself."""
    found = [
        Weight("embedding.tokens.weight", ("embeddings.word_embeddings.weight",)),
        Weight("embedding.positions.weight", ("embeddings.position_embeddings.weight",)),
        Weight("embedding.segments.weight", ("embeddings.token_type_embeddings.weight",)),
        *both("embedding.norm", "embeddings.LayerNorm"),
    ]
    width = config.hidden_size
    for block in range(config.num_blocks):
        attn, mlp, theirs = f"links.{block}_attn.", f"links.{block}_mlp.", f"encoder.layer.{block}."
        for part in ("weight", "bias"):
            names = tuple(f"{theirs}attention.self.{name}.{part}" for name in ("query", "key", "value"))
            found.append(Weight(f"{attn}qkv.{part}", names, rows=(width,) * 3))
        found += both(f"{attn}out", f"{theirs}attention.output.dense")
        found += both(f"{attn}norm", f"{theirs}attention.output.LayerNorm")
        found += both(f"{mlp}up", f"{theirs}intermediate.dense")
        found += both(f"{mlp}down", f"{theirs}output.dense")
        found += both(f"{mlp}norm", f"{theirs}output.LayerNorm")
    return found


def decoder_of(config: ModelConfig, theirs: str, bias: str) -> list[Weight]:
    """The last matrix of a masked-language-modelling head.

    Its bias goes by two names. Transformers ties them where it ties the matrix, and else uses the decoder's.
    """
    found = [Weight("head.output.bias", (f"{theirs}.bias",), in_base=False, aliases=(bias,))]
    if not config.head.tied:
        found.append(Weight("head.output.weight", (f"{theirs}.weight",), in_base=False))
    return found


def weights(config: ModelConfig) -> list[Weight]:
    """All names of a BERT with its head."""
    found = base_weights(config)
    kind = config.head.kind
    if kind == "language-modeling":
        found += both("head.dense", "cls.predictions.transform.dense", in_base=False)
        found += both("head.transform_norm", "cls.predictions.transform.LayerNorm", in_base=False)
        found += decoder_of(config, "cls.predictions.decoder", "cls.predictions.bias")
    elif kind != "embedding":
        if config.head.dense_activation is not None:
            found += both("head.dense", "pooler.dense")
        found += both("head.output", "classifier", in_base=False)
    return found


# Buffers, the pooler where no head uses it, and the next-sentence head that pretraining leaves behind.
ENCODER_IGNORED = (
    r"embeddings\.position_ids",
    r"pooler\.dense\.(weight|bias)",
    r"cls\.seq_relationship\.(weight|bias)",
)

FAMILY = Family(
    name="bert",
    architectures={"bert": standard_architectures("Bert", "ForMaskedLM", "ForPreTraining")},
    base_prefix="bert.",
    depth_key="num_hidden_layers",
    decoder=False,
    to_config=encoder_config,
    weights=weights,
    default_head=head,
    ignored=ENCODER_IGNORED,
)
