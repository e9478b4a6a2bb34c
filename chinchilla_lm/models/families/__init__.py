"""The families: one literal table, by Hugging Face model_type."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from chinchilla_lm.errors import InputError
from chinchilla_lm.models.families import (
    bert,
    camembert,
    deberta_v2,
    distilbert,
    electra,
    exaone4,
    gemma2,
    gemma3_text,
    gpt2,
    granite,
    hunyuan_v1_dense,
    llama,
    ministral,
    modernbert,
    mpnet,
    olmo2,
    phi3,
    qwen2,
    qwen3,
    qwen3_5_text,
    roberta,
    smollm3,
)
from chinchilla_lm.models.families.base import Family

FAMILIES: dict[str, Family] = {
    "bert": bert.FAMILY,
    "roberta": roberta.FAMILY,
    "xlm-roberta": roberta.FAMILY,
    "camembert": camembert.FAMILY,
    "distilbert": distilbert.FAMILY,
    "electra": electra.FAMILY,
    "mpnet": mpnet.FAMILY,
    "modernbert": modernbert.FAMILY,
    "deberta-v2": deberta_v2.FAMILY,
    "gpt2": gpt2.FAMILY,
    "llama": llama.FAMILY,
    "mistral": llama.FAMILY,
    "qwen2": qwen2.FAMILY,
    "qwen3": qwen3.FAMILY,
    "gemma3_text": gemma3_text.FAMILY,
    "smollm3": smollm3.FAMILY,
    "phi3": phi3.FAMILY,
    "olmo2": olmo2.FAMILY,
    "olmo3": olmo2.FAMILY,
    "granite": granite.FAMILY,
    "gemma2": gemma2.FAMILY,
    "exaone4": exaone4.FAMILY,
    "hunyuan_v1_dense": hunyuan_v1_dense.FAMILY,
    "qwen3_5_text": qwen3_5_text.FAMILY,
    "ministral": ministral.FAMILY,
}


def family_of(hf: Mapping[str, Any]) -> Family:
    """The family of a config.json. Raises InputError for a model_type that is not in the table."""
    model_type = hf.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise InputError(
            f"model_type {model_type!r} is not one of {', '.join(FAMILIES)}; use a model of these families"
        )
    return FAMILIES[model_type]
