"""Rotary positions (Su et al. 2021, RoFormer), in the half-split layout of Hugging Face's Llama.

T positions, H heads, P head features. Tables are float32: bfloat16 angles lose whole positions past 256.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from chinchilla_lm.errors import InputError
from chinchilla_lm.models.config import RopeConfig


def inverse_frequencies(config: RopeConfig, head_dim: int, device: torch.device) -> Tensor:
    """float32 [head_dim / 2], in radians a position, with the `linear` or `llama3` scaling applied."""
    steps = torch.arange(0, head_dim, 2, dtype=torch.int64, device=device).float() / head_dim
    frequencies = 1.0 / (config.theta**steps)
    scaling = dict(config.scaling)
    if not scaling:
        return frequencies
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind == "default":
        return frequencies
    if kind == "linear":
        return frequencies / float(scaling["factor"])
    if kind == "llama3":
        return _llama3(frequencies, scaling)
    raise InputError(f"rope scaling {kind!r} is not one of default, linear, llama3; use a model without it")


def _llama3(frequencies: Tensor, scaling: dict[str, float | str]) -> Tensor:
    """Long waves are slowed by `factor`, short ones kept, those between blended (Llama 3.1's model code)."""
    factor, low, high, old = (
        float(scaling[key])
        for key in ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    )
    wavelength = 2 * math.pi / frequencies
    smooth = ((old / wavelength - low) / (high - low)).clamp(0.0, 1.0)
    blended = (1 - smooth) * frequencies / factor + smooth * frequencies
    slowed = torch.where(wavelength > old / low, frequencies / factor, blended)
    return torch.where(wavelength < old / high, frequencies, slowed)


def rotation_table(config: RopeConfig, head_dim: int, positions_T: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine, float32 [T, head_dim], for integer positions [T]."""
    angles = positions_T.float()[:, None] * inverse_frequencies(config, head_dim, positions_T.device)[None, :]
    both = torch.cat((angles, angles), dim=-1)
    return both.cos(), both.sin()


def rotate(x_BHTP: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate each head's features by its position's angle; shape and dtype are kept."""
    cosine, sine = (part.to(x_BHTP.dtype) for part in table)
    first, second = x_BHTP.chunk(2, dim=-1)
    return x_BHTP * cosine + torch.cat((-second, first), dim=-1) * sine
