"""Rotary positions (Su et al. 2021, RoFormer), in the half-split layout of Hugging Face's Llama.

B rows, T positions, H heads, P head features, R of them that turn. Tables are float32: bfloat16 angles lose whole
positions past 256.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from chinchilla_lm.errors import InputError
from chinchilla_lm.models.config import RopeConfig

Scaling = dict[str, float | str | tuple[float, ...]]


def rotary_dim(config: RopeConfig, head_dim: int) -> int:
    """How many of a head's features turn; an odd one has a partner of its own."""
    return int(head_dim * config.share)


def inverse_frequencies(config: RopeConfig, head_dim: int, device: torch.device, long: bool = False) -> Tensor:
    """float32 [rotary_dim / 2], in radians a position, with the scaling applied; `long`: LongRoPE's for long texts."""
    turned = rotary_dim(config, head_dim)
    steps = torch.arange(0, turned, 2, dtype=torch.int64, device=device).float() / turned
    scaling = dict(config.scaling)
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind == "longrope":
        factors = torch.tensor(scaling["long_factor" if long else "short_factor"], dtype=torch.float32, device=device)
        return 1.0 / (factors * config.theta**steps)
    frequencies = 1.0 / (config.theta**steps)
    if kind == "default":
        return frequencies
    if kind == "linear":
        return frequencies / _number(scaling, "factor")
    if kind == "llama3":
        return _llama3(frequencies, scaling)
    if kind == "yarn":
        return _yarn(frequencies, scaling, config.theta, turned)
    raise InputError(f"rope scaling {kind!r} is not one of default, linear, llama3, longrope, yarn; use another model")


def attention_factor(config: RopeConfig) -> float:
    """What LongRoPE and YaRN multiply cosine and sine by; 1 for the others."""
    return _number(dict(config.scaling), "attention_factor", 1.0)


def _number(scaling: Scaling, key: str, default: float | None = None) -> float:
    value = scaling[key] if default is None else scaling.get(key, default)
    assert not isinstance(value, tuple)
    return float(value)


def _llama3(frequencies: Tensor, scaling: Scaling) -> Tensor:
    """Long waves are slowed by `factor`, short ones kept, those between blended (Llama 3.1's model code)."""
    factor, low, high, old = (
        _number(scaling, key)
        for key in ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    )
    wavelength = 2 * math.pi / frequencies
    smooth = ((old / wavelength - low) / (high - low)).clamp(0.0, 1.0)
    blended = (1 - smooth) * frequencies / factor + smooth * frequencies
    slowed = torch.where(wavelength > old / low, frequencies / factor, blended)
    return torch.where(wavelength < old / high, frequencies, slowed)


def _yarn(frequencies: Tensor, scaling: Scaling, theta: float, turned: int) -> Tensor:
    """Waves of more than beta_fast turns in the old length are kept, those of fewer than beta_slow slowed by `factor`,
    those between blended by their place (Peng et al. 2023, YaRN, section 3.2)."""
    factor, old, fast, slow = (
        _number(scaling, key) for key in ("factor", "original_max_position_embeddings", "beta_fast", "beta_slow")
    )

    def place(turns: float) -> float:
        return turned * math.log(old / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = max(math.floor(place(fast)), 0), min(math.ceil(place(slow)), turned - 1)
    places = torch.arange(len(frequencies), dtype=torch.float32, device=frequencies.device)
    slowed = ((places - low) / (high - low if high != low else 0.001)).clamp(0.0, 1.0)
    return frequencies / factor * slowed + frequencies * (1 - slowed)


def rotation_table(
    config: RopeConfig, head_dim: int, positions_T: Tensor, lengths_B: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Cosine and sine, float32, for integer positions [T]: [T, R], or of ropes that switch [B, 1, T, R].

    lengths_B: how long each text is with all that this pass reads, which says by which angles it is read, as
    transformers has it of a text that is read alone; None where all are as long as the last position says.
    """
    short, switch = _angles(config, head_dim, positions_T, long=False), config.switch
    if switch is not None:
        lengths = positions_T[-1:] + 1 if lengths_B is None else lengths_B
        long = _angles(config, head_dim, positions_T, long=True)
        short = torch.where((lengths > switch)[:, None, None, None], long, short)
    both, factor = torch.cat((short, short), dim=-1), attention_factor(config)
    return both.cos() * factor, both.sin() * factor


def _angles(config: RopeConfig, head_dim: int, positions_T: Tensor, long: bool) -> Tensor:
    frequencies = inverse_frequencies(config, head_dim, positions_T.device, long)
    return positions_T.float()[:, None] * frequencies[None, :]


def rotate(x_BHTP: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate the first features of each head by their position's angle; shape and dtype are kept."""
    cosine, sine = (part.to(x_BHTP.dtype) for part in table)
    turned, rest = x_BHTP[..., : cosine.shape[-1]], x_BHTP[..., cosine.shape[-1] :]
    first, second = turned.chunk(2, dim=-1)
    turned = turned * cosine + torch.cat((-second, first), dim=-1) * sine
    return torch.cat((turned, rest), dim=-1) if rest.shape[-1] else turned
