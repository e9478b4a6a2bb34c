"""Formats by themselves: bytes, round trips, and how far a rounded weight may be from what it was."""

import numpy as np
import pytest

from chinchilla_lm.errors import InputError
from chinchilla_lm.pack.formats import FORMATS, format_named

# Those whose scales follow from the largest weights, so that rounding what was rounded changes nothing.
EVEN = [name for name, form in FORMATS.items() if form.kind != "codes"]
SHAPES = [(1, 1), (16, 64), (33, 100), (83, 545)]


def weights(outputs: int, inputs: int, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    return (random.standard_normal((outputs, inputs)) * random.uniform(0.01, 3, (outputs, 1))).astype(np.float32)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", EVEN)
def test_what_was_packed_once_is_packed_to_the_same_bytes(name, shape):
    form = FORMATS[name]
    packed = form.pack(weights(*shape))
    meant = form.unpack(packed, *shape)
    assert packed.dtype == np.uint8
    assert packed.size == form.bytes(*shape)
    again = form.pack(meant)
    if name in ("f32", "bf16"):
        assert (again == packed).all()
    # A scale is found again up to the rounding of its own float16; the weights are the same to that.
    np.testing.assert_allclose(form.unpack(again, *shape), meant, rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize("name", EVEN)
def test_a_rounded_weight_is_within_half_a_step(name):
    form = FORMATS[name]
    original = weights(40, 300)
    meant = form.unpack(form.pack(original), 40, 300)
    assert meant.shape == original.shape
    if name == "f32":
        assert (meant == original).all()
        return
    if name == "bf16":
        np.testing.assert_allclose(meant, original, rtol=2**-8)
        return
    group = form.options["group"] or 300
    for start in range(0, 300, group):
        part = original[:, start : start + group]
        if form.kind == "int8":
            step = np.abs(part).max(1) / 127
        elif form.options["asymmetric"]:
            step = np.maximum(part.max(1) - np.minimum(part.min(1), 0), -np.minimum(part.min(1), 0)) / 15
        else:
            step = np.abs(part).max(1) / 4  # the other end of −8 … 7 may be cut by a whole eighth
        error = np.abs(meant[:, start : start + group] - part).max(1)
        assert (error <= 0.5 * step * 1.01 + 2e-3 * np.abs(part).max(1)).all(), (name, start)


def test_q4_1_comes_back_as_it_was():
    random = np.random.default_rng(3)
    codes = random.integers(0, 16, (32, 8, 32))
    codes[..., 0], codes[..., 1] = 0, 15
    scales = random.uniform(0.01, 0.1, (32, 8, 1)).astype(np.float16).astype(np.float32)
    minima = random.uniform(-1, -0.1, (32, 8, 1)).astype(np.float16).astype(np.float32)
    original = (codes * scales + minima).astype(np.float32).reshape(32, 256)
    form = FORMATS["int4"]
    meant = form.unpack(form.pack(original), 32, 256)
    np.testing.assert_allclose(meant, original, rtol=2e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["int8", "int8-row"])
def test_int8_never_holds_minus_128(name):
    """Kernels rely on it. Scales that float16 rounds down, or cannot hold, would lead there."""
    random = np.random.default_rng(5)
    original = weights(48, 256) * np.float32(10.0) ** random.integers(-9, 9, (48, 1)).astype(np.float32)
    original[0], original[1], original[2] = -1.0, -1e-6, -1e9
    original[3, ::2] = -np.abs(original[3]).max()
    form = FORMATS[name]
    panels = form.pack(original).reshape(3, -1)
    codes = panels[:, panels.shape[1] - 16 * 256 :].astype(int) - 128
    assert (codes.min(), codes.max()) == (-127, 127)


@pytest.mark.parametrize("shape", [*SHAPES, (830, 545), (70, 5000)])
@pytest.mark.parametrize("name", FORMATS)
def test_packing_in_pieces_gives_the_same_bytes(name, shape, monkeypatch):
    form, original = FORMATS[name], weights(*shape)
    whole = form.pack(original)
    for piece in (1, 16 * shape[1] * 3, 1 << 30):
        monkeypatch.setattr("chinchilla_lm.pack.formats.PIECE", piece)
        room = np.full(form.bytes(*shape), 255, np.uint8)
        form.pack_into(original, room)
        assert (room == whole).all()


def test_zeros_stay_zeros():
    for form in FORMATS.values():
        packed = form.pack(np.zeros((5, 70), np.float32))
        assert (form.unpack(packed, 5, 70) == 0).all()


def test_an_unknown_format_is_refused():
    with pytest.raises(InputError, match="format 'int5' is not one of f32, bf16, int8"):
        format_named("int5")
