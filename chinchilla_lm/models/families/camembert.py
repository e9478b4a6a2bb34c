"""CamemBERT: a RoBERTa under a model_type and class names of its own. Follows transformers' `models/camembert`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from chinchilla_lm.models.config import HeadConfig, ModelConfig
from chinchilla_lm.models.families import roberta
from chinchilla_lm.models.families.base import standard_architectures


def read(hf: Mapping[str, Any], head: HeadConfig) -> ModelConfig:
    """Our config of a CamemBERT."""
    return roberta.read({"vocab_size": 30_522} | dict(hf), head)


FAMILY = replace(
    roberta.FAMILY,
    name="camembert",
    architectures={"camembert": standard_architectures("Camembert", "ForMaskedLM")},
    to_config=read,
)
