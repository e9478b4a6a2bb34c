"""ELECTRA: a BERT whose embeddings may be narrower than its hidden states. Follows transformers' `models/electra`.

A generator is a masked language model. A discriminator (`ElectraForPreTraining`) tells replaced tokens from original
ones, which is none of our tasks: it is loaded for one of them, with a new head.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from chinchilla_lm.models.config import HeadConfig, HeadKind, ModelConfig
from chinchilla_lm.models.families.base import Family, Weight, standard_architectures
from chinchilla_lm.models.families.bert import ENCODER_IGNORED, base_weights, both, encoder_config
from chinchilla_lm.models.families.reading import Fields, plain_head
from chinchilla_lm.models.families.roberta import classifier_weights

# Where a config is silent, and BERT's would be another value.
DEFAULTS = {"hidden_size": 256, "num_attention_heads": 4, "intermediate_size": 1024}


def head(hf: Mapping[str, Any], kind: HeadKind, labels: tuple[str, ...]) -> HeadConfig:
    """Sequences are classified on [CLS] behind a dense layer; its activation, and the LM transform's, is a GELU."""
    if kind == "language-modeling":
        tied = Fields(hf).flag("tie_word_embeddings", True)
        return plain_head(hf, kind, (), tied=tied, transform=True, dense_activation="gelu")
    if kind in ("text-classification", "ranking"):
        return plain_head(hf, kind, labels, dense_activation="gelu", pooling="first")
    return plain_head(hf, kind, labels)


def read(hf: Mapping[str, Any], head: HeadConfig) -> ModelConfig:
    """Our config of an ELECTRA."""
    given = DEFAULTS | {key: value for key, value in hf.items() if value is not None}
    fields = Fields(given)
    narrow = fields.whole("embedding_size", 128)
    same = narrow == fields.whole("hidden_size", 256)
    return encoder_config(given, head, embedding_size=None if same else narrow)


def weights(config: ModelConfig) -> list[Weight]:
    """All names of an ELECTRA with its head."""
    found = base_weights(config)
    if config.embedding_size is not None:
        found += both("embedding.project", "embeddings_project")
    if config.head.kind != "language-modeling":
        return found + classifier_weights(config)
    found += both("head.dense", "generator_predictions.dense", in_base=False)
    found += both("head.transform_norm", "generator_predictions.LayerNorm", in_base=False)
    output = both("head.output", "generator_lm_head", in_base=False)
    return found + (output[1:] if config.head.tied else output)


FAMILY = Family(
    name="electra",
    architectures={"electra": standard_architectures("Electra", "ForMaskedLM")},
    base_prefix="electra.",
    depth_key="num_hidden_layers",
    decoder=False,
    to_config=read,
    weights=weights,
    default_head=head,
    ignored=ENCODER_IGNORED,
)
