"""Matrices in ggml's blocks of 32 weights, codes as they are (ggml/src/ggml-common.h and ggml-quants.c).

    q8_0   a float16 scale, 32 bytes                     (code − 128) · scale
    q4_0   a float16 scale, 16 bytes                     (code − 8) · scale
    q4_1   a float16 scale, a float16 minimum, 16 bytes  code · scale + minimum

The low nibbles of a block's bytes are its first 16 weights, the high ones the others. A group of 64 or 128 weights is
several blocks of the same scale, so every code stays; a row that has one float32 scale has it rounded to float16.

N outputs, K inputs, B blocks of a row.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from numpy.typing import NDArray

from chinchilla_lm.pack.bf16 import from_halves, to_halves
from chinchilla_lm.pack.panels import Bytes, Floats
from chinchilla_lm.pack.quantized import Quantized, Scales
from chinchilla_lm.pack.sides import finite_half
from chinchilla_lm.pack.uniform import Uniform

BLOCK = 32


@dataclass(frozen=True, slots=True)
class Kind:
    """One type of a tensor. file_type: general.file_type of a model of it (llama.h, llama_ftype); rounding: how weights
    become codes, where they do."""

    name: str
    code: GGMLQuantizationType
    file_type: int
    rounding: Uniform | None = None


KINDS = {
    one.name: one
    for one in (
        Kind("f32", GGMLQuantizationType.F32, 0),
        Kind("f16", GGMLQuantizationType.F16, 1),
        Kind("bf16", GGMLQuantizationType.BF16, 32),
        Kind("q8_0", GGMLQuantizationType.Q8_0, 7, Uniform(8, BLOCK)),
        Kind("q4_0", GGMLQuantizationType.Q4_0, 2, Uniform(4, BLOCK)),
        Kind("q4_1", GGMLQuantizationType.Q4_1, 3, Uniform(4, BLOCK, asymmetric=True)),
    )
}


def kind_of_codes(codes: Quantized) -> Kind:
    """The kind that holds these codes as they are."""
    if codes.middle == 128:
        return KINDS["q8_0"]
    return KINDS["q4_0" if codes.minima_NG is None else "q4_1"]


def exact_kind(values: Floats) -> Kind:
    """The kind of the fewest bits that holds these floats exactly. Zeros are nobody's codes, and take no more."""
    if not values.any():
        return KINDS["q4_0" if values.shape[-1] % BLOCK == 0 else "bf16"]
    if np.array_equal(from_halves(to_halves(values)), values):
        return KINDS["bf16"]
    with np.errstate(over="ignore"):
        return KINDS["f16" if np.array_equal(values.astype(np.float16).astype(np.float32), values) else "f32"]


def row_bytes(kind: Kind, inputs: int) -> int:
    """Bytes of a row of so many weights."""
    block, size = GGML_QUANT_SIZES[kind.code]
    return inputs // block * int(size)


def encode(kind: Kind, values: Floats | Quantized) -> Bytes:
    """The bytes of a matrix, uint8 [N, bytes of a row]. Codes of the same kind are kept, all else is rounded anew."""
    if kind.rounding is None:
        floats = values.values() if isinstance(values, Quantized) else values
        return _floats(kind, np.ascontiguousarray(floats, np.float32))
    kept = isinstance(values, Quantized) and kind_of_codes(values) is kind
    if isinstance(values, Quantized):
        return _blocks(values if kept else kind.rounding.round(values.values()))
    return _blocks(kind.rounding.round(values))


def _floats(kind: Kind, values: Floats) -> Bytes:
    if kind.name == "f32":
        return values.view(np.uint8)
    if kind.name == "f16":
        return finite_half(values).view(np.uint8)
    return to_halves(values).view(np.uint8)


def _blocks(rounded: Quantized) -> Bytes:
    outputs, inputs = rounded.shape
    codes_NBJ = rounded.codes_NV.reshape(outputs, -1, BLOCK)
    if rounded.middle == 128:
        weights: NDArray[np.uint8] = (codes_NBJ ^ 128).view(np.uint8)  # code − 128 as a signed byte
    else:
        low, high = codes_NBJ[..., : BLOCK // 2], codes_NBJ[..., BLOCK // 2 :]
        weights = low | np.left_shift(high, 4, dtype=np.uint8)
    sides = (rounded.scales_NG,) if rounded.minima_NG is None else (rounded.scales_NG, rounded.minima_NG)
    heads = [_of_blocks(one, rounded.group or inputs, inputs)[..., None].view(np.uint8) for one in sides]
    return np.concatenate((*heads, weights), axis=2).reshape(outputs, -1)


def _of_blocks(values_NG: Scales, group: int, inputs: int) -> NDArray[np.float16]:
    """float16 [N, B], of each block what its group has."""
    return np.ascontiguousarray(finite_half(values_NG)[:, np.arange(inputs // BLOCK) * BLOCK // group])
