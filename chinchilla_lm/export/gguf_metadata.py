"""What a GGUF file says of a model's shape, and whether that is all there is to say.

The keys are llama.cpp's (gguf-py/gguf/constants.py). What has been put down is read again by our own reader,
`models/gguf.py`, and a model whose config does not come back is refused: so a window, an activation or a rotation that
the architecture has no key for can never be lost in silence. By hand stand here only the places where llama.cpp's
loader takes less than a file can say.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from chinchilla_lm.errors import InputError
from chinchilla_lm.models.config import ModelConfig, RopeConfig
from chinchilla_lm.models.families import family_of
from chinchilla_lm.models.gguf import ARCHITECTURES, LONG_FACTORS, ROPE_FACTORS, SHORT_FACTORS, read_config
from chinchilla_lm.models.gguf_file import TensorInfo
from chinchilla_lm.models.rope import attention_factor, inverse_frequencies, rotary_dim

# Whose loaders know biases of query, key, value and output (llama.cpp, src/llama-model.cpp, load_tensors).
BIASED = ("llama", "qwen2", "granite")
# Which have no decoder of their own, and which must have one.
TIED, UNTIED = ("gemma2",), ("olmo2",)
# Which are run without their window, whatever the file says.
WINDOWLESS = ("phi3",)
# Numbers are float32 in the file, and read with the fewest digits that give the same one.
CLOSE = 1e-6


@dataclass(slots=True)
class Sheet:
    """What a file will say: its metadata, the shapes of its tensors, and the tables among them, float32."""

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, TensorInfo]
    tables: dict[str, Tensor]

    def read(self, name: str, rows: slice | None = None) -> Tensor:
        """A table."""
        return self.tables[name][rows or slice(None)]


def architecture_of(model_type: str) -> str:
    """What llama.cpp calls models of this type. Raises InputError for one that is not written."""
    for name, one in ARCHITECTURES.items():
        if model_type in (one.model_type, *one.others):
            return name
    known = ", ".join(name for one in ARCHITECTURES.values() for name in (one.model_type, *one.others))
    raise InputError(f"model_type {model_type} is not one of {known}, which GGUF files are written of; pass --to hf")


def describe(config: ModelConfig, hf: Mapping[str, Any], architecture: str) -> dict[str, Any]:
    """The metadata of a model's shape, key by key: texts, true or false, whole numbers, and floats."""
    values: dict[str, Any] = {
        "context_length": config.max_positions,
        "embedding_length": config.hidden_size,
        "block_count": config.num_blocks,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_heads,
        "attention.head_count_kv": config.num_kv_heads,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        "attention.layer_norm_rms_epsilon": float(config.norm_eps),
        "vocab_size": config.vocab_size,
    }
    values |= _rope(config) | OWN.get(architecture, _nothing)(config, hf)
    keys = {f"{architecture}.{key}": value for key, value in values.items()}
    return {"general.architecture": architecture} | keys


def _rope(config: ModelConfig) -> dict[str, Any]:
    rope = _everywhere(config)
    if rope is None:
        return {"rope.dimension_count": config.head_dim}
    scaling = dict(rope.scaling)
    found: dict[str, Any] = {
        "rope.dimension_count": rotary_dim(rope, config.head_dim),
        "rope.freq_base": float(rope.theta),
    }
    if scaling.get("rope_type") == "linear":
        found |= {"rope.scaling.type": "linear", "rope.scaling.factor": scaling["factor"]}
    return found


def _everywhere(config: ModelConfig) -> RopeConfig | None:
    """The rope of blocks that see everything, where there are both kinds; None where no block turns."""
    windows = config.windows or (None,) * config.num_blocks
    full = [rope for rope, window in zip(config.ropes, windows, strict=True) if rope is not None and window is None]
    return full[0] if full else next((rope for rope in config.ropes if rope is not None), None)


def _windows(config: ModelConfig) -> dict[str, Any]:
    window = next((one for one in config.windows if one is not None), 0)
    return {"attention.sliding_window": window}


def _gemma2(config: ModelConfig, hf: Mapping[str, Any]) -> dict[str, Any]:
    caps = {"attn_logit_softcapping": config.attention_softcap, "final_logit_softcapping": config.logit_softcap}
    return _windows(config) | {key: float(cap) for key, cap in caps.items() if cap is not None}


def _gemma3(config: ModelConfig, hf: Mapping[str, Any]) -> dict[str, Any]:
    near = [rope for rope, window in zip(config.ropes, config.windows, strict=False) if rope and window is not None]
    return _windows(config) | ({"rope.freq_base_swa": float(near[0].theta)} if near else {})


def _granite(config: ModelConfig, hf: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "attention.scale": float(config.head_dim**-0.5 if config.attention_scale is None else config.attention_scale),
        "embedding_scale": float(config.embedding_scale),
        "residual_scale": float(config.residual_scale),
        "logit_scale": 1.0 / config.logit_scale,
    }


def _phi3(config: ModelConfig, hf: Mapping[str, Any]) -> dict[str, Any]:
    rope = _everywhere(config)
    found = _windows(config)
    found["rope.scaling.original_context_length"] = int(
        hf.get("original_max_position_embeddings") or config.max_positions
    )
    if rope is not None and rope.switch is not None:
        found["rope.scaling.original_context_length"] = rope.switch
        found["rope.scaling.attn_factor"] = attention_factor(rope)
    return found


def _nothing(config: ModelConfig, hf: Mapping[str, Any]) -> dict[str, Any]:
    return {}


OWN = {"gemma2": _gemma2, "gemma3": _gemma3, "granite": _granite, "phi3": _phi3}


def tables(config: ModelConfig) -> dict[str, Tensor]:
    """Tensors of factors that frequencies are divided by, float32 [features that turn / 2], where the rope has any."""
    rope = _everywhere(config)
    if rope is None:
        return {}
    kind, cpu = dict(rope.scaling).get("rope_type"), torch.device("cpu")
    plain = inverse_frequencies(RopeConfig(rope.theta, share=rope.share), config.head_dim, cpu)
    if kind == "llama3":
        return {ROPE_FACTORS: plain / inverse_frequencies(rope, config.head_dim, cpu)}
    if kind == "longrope":
        given = dict(rope.scaling)
        names = {SHORT_FACTORS: "short_factor", LONG_FACTORS: "long_factor"}
        return {name: torch.tensor(given[key], dtype=torch.float32) for name, key in names.items()}
    return {}


def check(sheet: Sheet, config: ModelConfig, architecture: str) -> None:
    """Raise InputError for what does not come back when a file's description is read again, or llama.cpp refuses."""
    if config.qkv_bias and architecture not in BIASED:
        raise InputError(f"llama.cpp loads no {architecture} with biases of its attention; pass --to hf")
    if not config.head.tied and architecture in TIED:
        raise InputError(f"llama.cpp loads no {architecture} with a decoder of its own; pass --to hf")
    hf = read_config(sheet, architecture)
    found = family_of(hf).read(hf)
    found = replace(found, family=config.family, head=replace(found.head, tied=config.head.tied))
    for one in fields(ModelConfig):
        said, wanted = getattr(found, one.name), getattr(config, one.name)
        if one.name == "windows":  # none at all, or none for each
            said, wanted = (None if not any(both) else both for both in (said, wanted))
        if not _same(said, wanted):
            raise InputError(
                f"GGUF files of architecture {architecture} have no key for {one.name} {wanted!r:.70}, but mean "
                f"{said!r:.70}; pass --to hf"
            )


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, float | int) and isinstance(other, float | int):
        return abs(one - other) <= CLOSE * max(abs(one), abs(other))
    if is_dataclass(one) and not isinstance(one, type) and type(one) is type(other):
        return all(_same(getattr(one, part.name), getattr(other, part.name)) for part in fields(one))
    if isinstance(one, tuple) and isinstance(other, tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    return bool(one == other)
