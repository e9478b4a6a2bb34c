"""Every kernel of every instruction set that this CPU has, against float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from chinchilla_lm.pack.bf16 import from_halves, to_halves
from chinchilla_lm.pack.formats import FORMATS, Format

engine = pytest.importorskip("chinchilla_lm.native._engine", reason="the engine is not built")

SETS = engine.kernel_names()
# Outputs × inputs: one, less than a panel, whole panels, ends within a panel and within a step.
SHAPES = [(1, 1), (9, 5), (16, 64), (33, 100), (48, 192), (70, 577), (17, 1100)]
ROWS = [1, 2, 3, 5, 8, 13, 27, 40]


def aligned(data: NDArray) -> NDArray[np.uint8]:
    """The same bytes, beginning on 64."""
    flat = np.ascontiguousarray(data).reshape(-1).view(np.uint8)
    room = np.zeros(flat.size + 64, np.uint8)
    start = -room.ctypes.data % 64
    room[start : start + flat.size] = flat
    return room[start : start + flat.size]


def padded(rows: NDArray) -> NDArray[np.float32]:
    """Rows padded with 99, which no kernel may take for data, to 16 floats."""
    width = -(-rows.shape[-1] // 16) * 16
    made = np.full((*rows.shape[:-1], width), 99.0, np.float32)
    made[..., : rows.shape[-1]] = rows
    return made


def header(form: Format, outputs: int, inputs: int) -> dict:
    return {"format": form.kind, "outputs": outputs, "inputs": inputs, "offset": 0, "bias": None, **form.options}


def clear_of_ties(form: Format, x: NDArray[np.float32]) -> NDArray[np.float32]:
    """x without numbers that lie between two integers once they are scaled: instruction sets round those either way."""
    if "group" not in form.options:
        return x
    group = form.options["group"] or x.shape[1]
    wide = np.pad(x, ((0, 0), (0, -x.shape[1] % group))).reshape(len(x), -1, group)
    scaled = wide.astype(np.float64) * 127 / np.maximum(np.abs(wide).max(2, keepdims=True), 1e-9)
    near = np.abs(scaled - np.floor(scaled) - 0.5) < 1e-3
    return np.where(near, wide * np.float32(0.99), wide).reshape(len(x), -1)[:, : x.shape[1]]


def as_multiplied(form: Format, x: NDArray[np.float32]) -> NDArray[np.float64]:
    """What a product sees of its inputs: rounded to the format's kind of number."""
    if form.kind == "f32":
        return x.astype(np.float64)
    if form.kind == "bf16":
        return from_halves(to_halves(x)).astype(np.float64)
    group = form.options["group"] or x.shape[1]
    wide = np.pad(x, ((0, 0), (0, -x.shape[1] % group))).reshape(len(x), -1, group)
    peak = np.abs(wide).max(2, keepdims=True)
    factor = np.where(peak > 0, np.float32(127.0) / np.where(peak > 0, peak, np.float32(1.0)), np.float32(0.0))
    rounded = np.rint(wide * factor).astype(np.float64) * (peak / np.float32(127.0))
    return rounded.reshape(len(x), -1)[:, : x.shape[1]]


@pytest.mark.parametrize("isa", SETS)
@pytest.mark.parametrize("name", ["int8", "int8-row"])
def test_the_largest_bytes_have_room(isa: str, name: str):
    form, scales = FORMATS[name], 64
    packed = aligned(form.pack(np.ones((16, 64), np.float32)))
    packed[scales:] = 0  # weights of -128, which a file may hold though none is packed so
    meant = form.unpack(packed, 16, 64)
    for x in (np.ones((9, 64), np.float32), -np.ones((9, 64), np.float32)):
        got = engine.multiply(isa, header(form, 16, 64), packed, padded(x))
        assert np.allclose(got, x @ meant.T, rtol=1e-5)


@pytest.mark.parametrize("isa", SETS)
@pytest.mark.parametrize("name", FORMATS)
def test_a_product_is_that_of_the_rounded_numbers(isa: str, name: str):
    form = FORMATS[name]
    random = np.random.default_rng(0)
    for outputs, inputs in SHAPES:
        weights = random.standard_normal((outputs, inputs)).astype(np.float32)
        packed = aligned(form.pack(weights))
        assert packed.size == form.bytes(outputs, inputs)
        meant = form.unpack(packed, outputs, inputs)
        for rows in ROWS:
            x = clear_of_ties(form, random.standard_normal((rows, inputs)).astype(np.float32))
            got = engine.multiply(isa, header(form, outputs, inputs), packed, padded(x))
            expected = as_multiplied(form, x) @ meant.astype(np.float64).T
            bound = np.abs(x).astype(np.float64) @ np.abs(meant).astype(np.float64).T
            assert got.shape == (rows, outputs)
            assert (np.abs(got - expected) <= 3e-6 * bound + 1e-6).all(), (isa, name, outputs, inputs, rows)


@pytest.mark.parametrize("isa", SETS)
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("rows", [1, 2, 3, 8, 20])
def test_the_largest_numbers_have_room(isa: str, name: str, rows: int):
    form = FORMATS[name]
    signs = np.sign(np.random.default_rng(2).standard_normal((33, 256))).astype(np.float32)
    weights = np.concatenate((np.ones((16, 256), np.float32), -np.ones((16, 256), np.float32), signs))
    weights[:, ::32] *= 0.999  # not all alike: an asymmetric group of one number is its minimum and nothing else
    packed = aligned(form.pack(weights))
    meant = form.unpack(packed, *weights.shape).astype(np.float64)
    for x in (np.ones((rows, 256), np.float32), -np.ones((rows, 256), np.float32), signs[:rows]):
        got = engine.multiply(isa, header(form, *weights.shape), packed, padded(x))
        assert np.abs(got - x.astype(np.float64) @ meant.T).max() < 3e-6 * 256, (isa, name)


@pytest.mark.parametrize("isa", SETS)
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("size", [0.0, 1e-45, 1e-38, 1e-31, 1e-29])
def test_the_smallest_inputs_are_next_to_nothing(isa: str, name: str, size: float):
    form = FORMATS[name]
    weights = np.random.default_rng(3).standard_normal((20, 128)).astype(np.float32)
    packed = aligned(form.pack(weights))
    x = np.full((9, 128), size, np.float32)
    x[:, ::3] *= -1
    got = engine.multiply(isa, header(form, 20, 128), packed, padded(x))
    assert np.abs(got - x.astype(np.float64) @ weights.astype(np.float64).T).max() <= 100 * size * 0.2 + 1e-28


@pytest.mark.parametrize("isa", SETS)
@pytest.mark.parametrize("name", FORMATS)
def test_a_row_comes_out_as_it_was_packed(isa: str, name: str):
    form = FORMATS[name]
    weights = np.random.default_rng(1).standard_normal((35, 83)).astype(np.float32)
    packed = aligned(form.pack(weights))
    got = engine.unpack(isa, header(form, 35, 83), packed)
    np.testing.assert_allclose(got, form.unpack(packed, 35, 83), rtol=1e-6, atol=1e-7)


def exactly(what: str, x: NDArray[np.float64]) -> NDArray[np.float64]:
    error = np.vectorize(math.erf)
    functions = {
        "gelu": lambda: 0.5 * x * (1 + error(x / math.sqrt(2))),
        "gelu_tanh": lambda: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
        "relu": lambda: np.maximum(x, 0),
        "silu": lambda: x / (1 + np.exp(-np.maximum(x, -700))),
        "tanh": lambda: np.tanh(x),
    }
    result: NDArray[np.float64] = functions[what]()
    return result


@pytest.mark.parametrize("isa", SETS)
@pytest.mark.parametrize("what", ["gelu", "gelu_tanh", "relu", "silu", "tanh"])
def test_activations(isa: str, what: str):
    extremes = [0.0, -0.0, 60, -60, 1e4, -1e4, 1e-6, -1e-6]
    x = np.concatenate((np.linspace(-12, 12, 1608), extremes)).astype(np.float32)
    got = engine.transform(isa, what, x, x.size, 0.0)[0]
    np.testing.assert_allclose(got, exactly(what, x.astype(np.float64)), rtol=2e-6, atol=4e-7)
    assert np.isnan(engine.transform(isa, what, np.full(16, np.nan, np.float32), 16, 0.0)).all()


@pytest.mark.parametrize("isa", SETS)
@pytest.mark.parametrize("size", [1, 15, 16, 47, 384])
def test_norms(isa: str, size: int):
    x = (np.random.default_rng(size).standard_normal(size) * 3 + 5).astype(np.float32)
    exact = x.astype(np.float64)
    got = engine.transform(isa, "norm", padded(x[None])[0], size, 1e-5)[0, :size]
    np.testing.assert_allclose(got, (exact - exact.mean()) / np.sqrt(exact.var() + 1e-5), rtol=1e-5, atol=2e-5)
    got = engine.transform(isa, "rms", padded(x[None])[0], size, 1e-5)[0, :size]
    np.testing.assert_allclose(got, exact / np.sqrt((exact**2).mean() + 1e-5), rtol=1e-6)


@pytest.mark.parametrize("isa", SETS)
@pytest.mark.parametrize("size", [1, 7, 16, 45, 300])
def test_softmax_sees_only_its_part(isa: str, size: int):
    x = (np.random.default_rng(size).standard_normal(size) * 20).astype(np.float32)
    got = engine.transform(isa, "softmax", padded(x[None])[0], size, 0.3)[0]
    exact = np.exp(0.3 * (x.astype(np.float64) - x.max()))
    np.testing.assert_allclose(got[:size], exact / exact.sum(), rtol=3e-5, atol=1e-9)
    assert (got[size:] == 0).all()


@pytest.mark.parametrize("isa", SETS)
@pytest.mark.parametrize("size", [1, 7, 16, 45, 300])
def test_a_bias_reaches_all_of_its_part(isa: str, size: int):
    x = np.random.default_rng(size).standard_normal(size).astype(np.float32)
    got = engine.transform(isa, "shift", padded(x[None])[0], size, 0.37)[0]
    np.testing.assert_allclose(got[:size], x.astype(np.float64) * 1.37, rtol=1e-6)


@pytest.mark.parametrize("isa", SETS)
def test_soft_cap(isa: str):
    x = np.linspace(-300.0, 300.0, 640, dtype=np.float32)
    for cap in (0.5, 30.0, 50.0):
        got = engine.transform(isa, "cap", x, x.size, cap)[0]
        np.testing.assert_allclose(got, cap * np.tanh(x.astype(np.float64) / cap), rtol=0, atol=3e-7 * cap)
    assert np.isnan(engine.transform(isa, "cap", x * np.float32(np.nan), x.size, 30.0)).all()


@pytest.mark.parametrize("isa", SETS)
@pytest.mark.parametrize("size", [2, 12, 32, 64, 80])
def test_rotation(isa: str, size: int):
    x = np.random.default_rng(size).standard_normal(size).astype(np.float32)
    got = engine.transform(isa, "rotate", padded(x[None])[0], size, 0.37)[0, :size]
    angle = 0.37 * np.arange(size // 2)
    first, second = x[: size // 2].astype(np.float64), x[size // 2 :].astype(np.float64)
    cosine, sine = np.cos(angle), np.sin(angle)
    exact = np.concatenate((first * cosine - second * sine, second * cosine + first * sine))
    np.testing.assert_allclose(got, exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", FORMATS)
def test_the_engine_counts_the_bytes_of_a_matrix_as_python_does(name: str, shape: tuple[int, int]):
    """There are two tables of formats, one a side: as many bytes are enough for the other, and one less is not."""
    form = FORMATS[name]
    packed = aligned(form.pack(np.ones(shape, np.float32)))
    assert packed.size == form.bytes(*shape)
    engine.unpack(SETS[0], header(form, *shape), packed)
    with pytest.raises(ValueError, match="outside the program's bytes"):
        engine.unpack(SETS[0], header(form, *shape), packed[:-1])
