"""A model as a Hugging Face folder: what `checkpoint.save` writes, file by file."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from chinchilla_lm.errors import InputError
from chinchilla_lm.files import json_text
from chinchilla_lm.models.config import HeadConfig
from chinchilla_lm.models.families import family_of
from chinchilla_lm.models.families.base import Family
from chinchilla_lm.models.families.reading import PROBLEM_TYPES, Fields
from chinchilla_lm.models.filling import spread
from chinchilla_lm.models.stock import for_both
from chinchilla_lm.models.transformer import Transformer
from chinchilla_lm.models.weight_files import SINGLE

# A model_type that stock transformers does not know, so that it refuses a model with gaps instead of filling them.
OWN_TYPE = "chinchilla"
# Where a model was and what wrote it: untrue of the copy.
DROPPED_KEYS = ("_name_or_path", "transformers_version", "torch_dtype", "auto_map")
LABEL_KEYS = ("num_labels", "id2label", "label2id", "problem_type")


def write_weights(model: Transformer, family: Family, folder: Path) -> None:
    """`model.safetensors` under Hugging Face names. Raises InputError where the disk refuses."""
    write_tensors(spread(model, family), folder)


def write_tensors(tensors: dict[str, Tensor], folder: Path) -> None:
    """`model.safetensors` of tensors that share no memory. Raises InputError where the disk refuses."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(tensors, folder / SINGLE, metadata={"format": "pt"})
    except (SafetensorError, OSError) as error:
        raise InputError(f"cannot write {folder / SINGLE} ({error}); free room or pass another -o") from error


def write_config(model: Transformer, hf: Mapping[str, Any], folder: Path) -> None:
    """`config.json`, stock where transformers can load the model, our own where it cannot."""
    config = config_to_write(model, hf)
    path = folder / "config.json"
    path.write_text(json_text(config, indent=2) + "\n", encoding="utf-8")
    if (folder / SINGLE).exists():  # safetensors 0.8 makes files that their owner alone may read
        shutil.copymode(path, folder / SINGLE)


def config_to_write(model: Transformer, hf: Mapping[str, Any]) -> dict[str, Any]:
    """The Hugging Face config of a model as it stands."""
    family, head = family_of(hf), model.config.head
    dtype = next(iter(model.parameters())).dtype
    name = family.architecture(hf["model_type"], head.kind)
    config = {key: value for key, value in hf.items() if key not in DROPPED_KEYS + LABEL_KEYS}
    config = for_both(config, str(dtype).removeprefix("torch."), family.rope_bases) | {"architectures": [name]}
    if head.labels:
        config["id2label"] = {str(index): label for index, label in enumerate(head.labels)}
        config["label2id"] = {label: index for index, label in enumerate(head.labels)}
    if head.kind in ("text-classification", "ranking"):
        config |= _problem_type(hf, head)
    if head.kind == "language-modeling":
        config["tie_word_embeddings"] = head.tied
    if head.kind == "token-classification" and not head.bias:
        config["token_classification_bias"] = False
    if model.dropped or head.kind in family.ours_only:
        config["chinchilla_model_type"] = config.pop("model_type")
        config["chinchilla_architectures"] = config.pop("architectures")
        config = {"model_type": OWN_TYPE} | config
    return config


def _problem_type(hf: Mapping[str, Any], head: HeadConfig) -> dict[str, str]:
    """What a classifier's outputs mean, where a config without it would say otherwise, or said it before."""
    if head.scores == "softmax" and len(head.labels) < 2:  # transformers refuses that, and it means nothing
        return {}
    usual = "problem_type" not in hf and head.scores == Fields({}).scores(len(head.labels))
    return {} if usual else {"problem_type": PROBLEM_TYPES[head.scores]}
