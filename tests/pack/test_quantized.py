"""Codes by themselves: what they mean, in any order of outputs, and that every layout keeps all of them."""

import numpy as np
import pytest

from chinchilla_lm.errors import InputError
from chinchilla_lm.pack.codebook import Codebook
from chinchilla_lm.pack.formats import FORMATS
from chinchilla_lm.pack.quantized import Quantized, gathered, inputs_of, spread_out, vectors_of
from chinchilla_lm.pack.uniform import Uniform

ROUNDING = [name for name, form in FORMATS.items() if form.rounding is not None]


def drawn(name: str, outputs: int, inputs: int) -> Quantized:
    """Codes, scales and minima that no rounding would choose."""
    how = FORMATS[name].rounding
    assert how is not None
    random = np.random.default_rng(7)
    groups = -(-inputs // how.group) if how.group else 1
    scales = random.standard_normal((outputs, groups))
    scales = scales.astype(np.float32) if name == "int8-row" else scales.astype(np.float16)
    if isinstance(how, Uniform):
        codes = random.integers(how.least, how.most + 1, (outputs, inputs)).astype(np.uint8)
        minima = random.standard_normal((outputs, groups)).astype(np.float16) if how.asymmetric else None
        return Quantized(codes, scales, minima, how.group, how.middle)
    codes = random.integers(0, 1 << how.bits, (outputs, vectors_of(inputs, how.dims))).astype(np.uint8)
    book = random.integers(-127, 128, (how.entries, how.dims)).astype(np.int8) if how.entries else None
    if isinstance(how, Codebook):
        return Quantized(codes, scales, None, how.group, 0, book, None, inputs)
    if book is not None:
        book[0] = 0
    mask = how.mask(random.standard_normal((outputs, inputs), np.float32))
    mask[:, ::7] = False  # blocks that keep fewer than they may
    codes[~mask] = how.middle
    return Quantized(codes, scales, None, how.group, how.middle, book, mask, inputs if how.entries else 0)


@pytest.mark.parametrize("shape", [(1, 1), (16, 64), (33, 100), (40, 300)])
@pytest.mark.parametrize("name", ROUNDING)
def test_a_layout_keeps_every_code(name, shape):
    form, rounded = FORMATS[name], drawn(name, *shape)
    packed = np.full(form.bytes(*shape), 255, np.uint8)
    form.pack_into(rounded, packed)
    again = form.rounded(packed, *shape)
    kept = slice(None) if rounded.mask_NK is None else rounded.mask_NK
    assert (again.codes_NV[kept] == rounded.codes_NV[kept]).all()
    if rounded.codebook_ED is not None:
        np.testing.assert_array_equal(again.codebook_ED, rounded.codebook_ED)
    assert (again.scales_NG == rounded.scales_NG).all()
    assert (again.minima_NG is None) == (rounded.minima_NG is None)
    if rounded.minima_NG is not None:
        np.testing.assert_array_equal(again.minima_NG, rounded.minima_NG)
    assert (form.unpack(packed, *shape) == rounded.values()).all()


def test_what_codes_mean():
    """By hand: (code − 8) · scale, and code · scale + minimum, with three inputs a group and a short last one."""
    codes = np.array([[8, 9, 0, 15]], np.uint8)
    scales, minima = np.array([[0.5, 2.0]], np.float16), np.array([[-1.0, 3.0]], np.float16)
    assert Quantized(codes, scales, None, 3, 8).values().tolist() == [[0.0, 0.5, -4.0, 14.0]]
    assert Quantized(codes, scales, minima, 3, 0).values().tolist() == [[3.0, 3.5, -1.0, 33.0]]
    assert Quantized(codes, np.array([[0.5]], np.float32), None, 0, 8).values().tolist() == [[0.0, 0.5, -4.0, 3.5]]


def test_what_codes_of_a_codebook_mean():
    """By hand: of eight inputs code 0 stands for the first and the fifth, code 3 for the fourth and the eighth."""
    book = np.array([[1, 2], [-3, 4]], np.int8)
    codes = np.array([[0, 1, 1, 0]], np.uint8)
    rounded = Quantized(codes, np.array([[0.5, 2.0]], np.float16), None, 4, 0, book, None, 7)
    assert rounded.values().tolist() == [[0.5, -1.5, -1.5, 0.5, 4.0, 8.0, 8.0]]
    mask = np.array([[True, False, True, True, True, True, False]])
    kept = Quantized(codes, np.array([[0.5, 2.0]], np.float16), None, 4, 0, book, mask, 7)
    assert kept.values().tolist() == [[0.5, 0.0, -1.5, 0.5, 4.0, 8.0, 0.0]]


@pytest.mark.parametrize("dims", [1, 2, 4])
@pytest.mark.parametrize("inputs", [1, 7, 16, 35])
def test_each_input_has_one_place_in_one_code(dims, inputs):
    matrix = np.arange(2 * inputs, dtype=np.float32).reshape(2, inputs) + 1
    vectors = gathered(matrix, dims)
    assert vectors.shape == (2, vectors_of(inputs, dims), dims)
    assert (spread_out(vectors, inputs) == matrix).all()
    places = inputs_of(inputs, dims)
    padded = np.pad(matrix, ((0, 0), (0, places.max() + 1 - inputs)))
    assert (padded[:, places] == vectors).all()


def test_masks_that_keep_too_much_are_refused():
    form, mask = FORMATS["sparse-50"], np.zeros((16, 64), np.bool_)
    mask[:, :4] = True
    rounded = Quantized(np.ones((16, 64), np.uint8), np.ones((16, 1), np.float16), None, 64, 128, None, mask)
    with pytest.raises(InputError, match="a mask keeps 64 of the 64 weights of a block, more than the 32"):
        form.lay(rounded)


def test_masks_that_do_not_add_up_are_refused():
    form = FORMATS["sparse-50-codebook"]
    packed = form.pack(np.random.default_rng(0).standard_normal((16, 64)).astype(np.float32))
    packed[form.front + 64] ^= 1  # behind the codebook and the scales stand the masks
    with pytest.raises(InputError, match="a mask does not keep 32 of its 64 weights"):
        form.unpack(packed, 16, 64)


@pytest.mark.parametrize("name", ROUNDING)
def test_outputs_in_another_order_with_zeros_between(name):
    rounded = drawn(name, 4, 70)
    taken = rounded.take(np.array([2, -1, 0, 2])).values()
    meant = rounded.values()
    assert (taken == np.stack([meant[2], np.zeros(70), meant[0], meant[2]])).all()
    assert (rounded.values() == meant).all(), "the given one stays as it was"
