"""Blocks of 32 weights, against the decoder of the gguf package."""

from __future__ import annotations

import numpy as np
import pytest
from gguf.quants import dequantize

from chinchilla_lm.export.ggml import KINDS, encode, exact_kind, kind_of_codes, row_bytes
from chinchilla_lm.pack.formats import FORMATS
from chinchilla_lm.pack.uniform import Uniform

SHAPE = 37, 160  # of groups of 64 and 128 the last one is short


def matrix(shape: tuple[int, int] = SHAPE, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    return (random.standard_normal(shape) * (0.2 + random.gamma(1.0, 1.0, (shape[0], 1)))).astype(np.float32)


@pytest.mark.parametrize("name", [name for name, one in FORMATS.items() if one.rounding and one.rounding.group])
def test_codes_of_every_format_in_groups_mean_the_same_there(name: str) -> None:
    how = FORMATS[name].rounding
    assert how is not None
    rounded = how.round(matrix())
    codes = rounded.plain()
    kind = kind_of_codes(codes)
    raw = encode(kind, codes)
    assert raw.shape == (SHAPE[0], row_bytes(kind, SHAPE[1]))
    np.testing.assert_array_equal(dequantize(raw, kind.code), rounded.values())


def test_a_scale_for_a_row_is_rounded_and_its_codes_are_kept() -> None:
    codes = Uniform(8, 0).round(matrix())
    found = dequantize(encode(KINDS["q8_0"], codes), KINDS["q8_0"].code)
    halves = codes.scales_NG.astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(found, (codes.codes_NV.astype(np.float32) - 128) * halves)
    assert not np.array_equal(halves, codes.scales_NG)


@pytest.mark.parametrize("name", KINDS)
def test_floats_are_rounded_to_the_nearest(name: str) -> None:
    values, kind = matrix(), KINDS[name]
    found = dequantize(encode(kind, values), kind.code)
    # Half a step, of a scale that is float16; Q4_0 may cut an eighth off the peak of the other sign.
    steps = {"f32": 0.0, "f16": 2.0**-11, "bf16": 2.0**-8, "q8_0": 0.57 / 127, "q4_0": 0.13, "q4_1": 0.51 * 2 / 15}
    peaks = np.abs(values).reshape(SHAPE[0], -1, 32).max(2, keepdims=True).repeat(32, 2).reshape(SHAPE)
    assert (np.abs(found - values) <= steps[name] * peaks).all()
    assert (name == "f32") == np.array_equal(found, values)


@pytest.mark.parametrize("name", ["q8_0", "q4_0", "q4_1"])
def test_what_a_file_held_comes_back_byte_by_byte(name: str) -> None:
    kind = KINDS[name]
    raw = encode(kind, matrix())
    np.testing.assert_array_equal(encode(kind, dequantize(raw, kind.code)), raw)


def test_codes_of_another_kind_are_rounded_anew() -> None:
    codes, kind = Uniform(8, 64).round(matrix()), KINDS["q4_1"]
    np.testing.assert_array_equal(encode(kind, codes), encode(kind, codes.values()))


def test_floats_have_the_fewest_bits_that_hold_them() -> None:
    halves = matrix().astype(np.float16).astype(np.float32)
    upper = (matrix().view(np.uint32) & 0xFFFF0000).view(np.float32)
    cases = {"f32": matrix(), "f16": halves, "bf16": upper, "q4_0": np.zeros(SHAPE, np.float32)}
    for name, values in cases.items():
        assert exact_kind(values).name == name
        np.testing.assert_array_equal(dequantize(encode(KINDS[name], values), KINDS[name].code), values)
    assert exact_kind(np.full(SHAPE, 1e6 + 1, np.float32)).name == "f32"  # beyond float16
    assert exact_kind(np.zeros((2, 5), np.float32)).name == "bf16"  # no whole block
