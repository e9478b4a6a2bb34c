"""RoBERTa and XLM-RoBERTa: BERT with positions that start behind the padding id, and heads of their own.

Follows transformers' `models/roberta`. There, positions count real tokens only; with padding on the right it is the
same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from chinchilla_lm.models.config import HeadConfig, HeadKind, ModelConfig
from chinchilla_lm.models.families.base import Family, Weight, standard_architectures
from chinchilla_lm.models.families.bert import ENCODER_IGNORED, base_weights, both, decoder_of, encoder_config
from chinchilla_lm.models.families.reading import Fields, plain_head


def head(hf: Mapping[str, Any], kind: HeadKind, labels: tuple[str, ...]) -> HeadConfig:
    """Sequences are classified on <s> behind a dense layer with tanh; the LM transform is always a GELU."""
    if kind == "language-modeling":
        tied = Fields(hf).flag("tie_word_embeddings", True)
        return plain_head(hf, kind, (), tied=tied, transform=True, dense_activation="gelu")
    if kind in ("text-classification", "ranking"):
        return plain_head(hf, kind, labels, dense_activation="tanh", pooling="first")
    return plain_head(hf, kind, labels)


def read(hf: Mapping[str, Any], head: HeadConfig) -> ModelConfig:
    """Our config of a RoBERTa."""
    fields = Fields(hf)
    offset = fields.whole("pad_token_id", 1, low=0) + 1
    positions = fields.whole("max_position_embeddings", 512, low=offset + 1) - offset
    vocab = fields.whole("vocab_size", 50_265)
    return encoder_config(hf, head, position_offset=offset, max_positions=positions, vocab_size=vocab)


def weights(config: ModelConfig) -> list[Weight]:
    """All names of a RoBERTa with its head."""
    return base_weights(config) + head_weights(config)


def head_weights(config: ModelConfig) -> list[Weight]:
    """The names of the head."""
    if config.head.kind != "language-modeling":
        return classifier_weights(config)
    return [
        *both("head.dense", "lm_head.dense", in_base=False),
        *both("head.transform_norm", "lm_head.layer_norm", in_base=False),
        *decoder_of(config, "lm_head.decoder", "lm_head.bias"),
    ]


def classifier_weights(config: ModelConfig) -> list[Weight]:
    """Those of a head that is no language model's."""
    if config.head.kind == "embedding":
        return []
    if config.head.kind == "token-classification":
        return both("head.output", "classifier", in_base=False)
    return both("head.dense", "classifier.dense", in_base=False) + both(
        "head.output", "classifier.out_proj", in_base=False
    )


FAMILY = Family(
    name="roberta",
    architectures={
        "roberta": standard_architectures("Roberta", "ForMaskedLM"),
        "xlm-roberta": standard_architectures("XLMRoberta", "ForMaskedLM"),
    },
    base_prefix="roberta.",
    depth_key="num_hidden_layers",
    decoder=False,
    to_config=read,
    weights=weights,
    default_head=head,
    ignored=ENCODER_IGNORED,
)
