"""Codes by themselves: what they mean, in any order of outputs, and that every layout keeps all of them."""

import numpy as np
import pytest

from chinchilla_lm.pack.formats import FORMATS
from chinchilla_lm.pack.quantized import Quantized

ROUNDING = [name for name, form in FORMATS.items() if form.rounding is not None]


def drawn(name: str, outputs: int, inputs: int) -> Quantized:
    """Codes, scales and minima that no rounding would choose."""
    how = FORMATS[name].rounding
    assert how is not None
    random = np.random.default_rng(7)
    groups = -(-inputs // how.group) if how.group else 1
    kind = np.float16 if how.group else np.float32
    return Quantized(
        random.integers(how.least, how.most + 1, (outputs, inputs)).astype(np.uint8),
        random.standard_normal((outputs, groups)).astype(kind),
        random.standard_normal((outputs, groups)).astype(kind) if how.asymmetric else None,
        how.group,
        how.middle,
    )


@pytest.mark.parametrize("shape", [(1, 1), (16, 64), (33, 100), (40, 300)])
@pytest.mark.parametrize("name", ROUNDING)
def test_a_layout_keeps_every_code(name, shape):
    form, rounded = FORMATS[name], drawn(name, *shape)
    packed = form.lay(rounded)
    assert packed.size == form.bytes(*shape)
    again = form.rounded(packed, *shape)
    assert (again.codes_NV == rounded.codes_NV).all()
    assert (again.scales_NG == rounded.scales_NG).all()
    assert (again.minima_NG is None) == (rounded.minima_NG is None)
    if rounded.minima_NG is not None:
        np.testing.assert_array_equal(again.minima_NG, rounded.minima_NG)
    assert (form.unpack(packed, *shape) == rounded.values()).all()
    room = np.full(packed.size, 255, np.uint8)
    form.pack_into(rounded, room)
    assert (room == packed).all()


def test_what_codes_mean():
    """By hand: (code − 8) · scale, and code · scale + minimum, with three inputs a group and a short last one."""
    codes = np.array([[8, 9, 0, 15]], np.uint8)
    scales, minima = np.array([[0.5, 2.0]], np.float16), np.array([[-1.0, 3.0]], np.float16)
    assert Quantized(codes, scales, None, 3, 8).values().tolist() == [[0.0, 0.5, -4.0, 14.0]]
    assert Quantized(codes, scales, minima, 3, 0).values().tolist() == [[3.0, 3.5, -1.0, 33.0]]
    assert Quantized(codes, np.array([[0.5]], np.float32), None, 0, 8).values().tolist() == [[0.0, 0.5, -4.0, 3.5]]


@pytest.mark.parametrize("name", ROUNDING)
def test_outputs_in_another_order_with_zeros_between(name):
    rounded = drawn(name, 4, 70)
    taken = rounded.take(np.array([2, -1, 0, 2])).values()
    meant = rounded.values()
    assert (taken == np.stack([meant[2], np.zeros(70), meant[0], meant[2]])).all()
    assert (rounded.values() == meant).all(), "the given one stays as it was"
