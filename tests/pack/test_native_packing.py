"""What the engine packs and decodes is what NumPy does, bit by bit."""

from __future__ import annotations

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from gguf.quants import dequantize

from chinchilla_lm.native import engine_module
from chinchilla_lm.pack import bf16, codebook
from chinchilla_lm.pack.formats import FORMATS

ENGINE = engine_module()
pytestmark = pytest.mark.skipif(ENGINE is None, reason="the engine is not built")


@pytest.mark.parametrize("shape", [(1, 1), (16, 32), (17, 33), (830, 545), (40, 64)])
def test_bfloat16(shape: tuple[int, int]) -> None:
    bits = np.random.default_rng(0).integers(0, 1 << 32, shape, np.uint32)  # every exponent, infinities and NaN too
    bits.flat[:4] = 0x3F808000, 0x3F818000, 0x7F7FFFFF, 0x00000001  # ties, overflow, a subnormal
    matrix = bits.view(np.float32)
    room = np.full(FORMATS["bf16"].bytes(*shape), 7, np.uint8)
    FORMATS["bf16"].pack_into(matrix, room)
    assert np.array_equal(room, bf16.lay(matrix))


def test_q8_0() -> None:
    """All scales, subnormal ones and zeros of both signs; those that are no numbers stay none."""
    assert ENGINE is not None
    raw = np.random.default_rng(0).integers(0, 256, (1 << 16, 34), np.uint8)
    raw[:, :2] = np.arange(1 << 16, dtype="<u2").view(np.uint8).reshape(-1, 2)
    values = np.empty(raw.shape[0] * 32, np.float32)
    ENGINE.decode_q8_0(raw.reshape(-1), values)
    with np.errstate(invalid="ignore"):
        expected = dequantize(raw.reshape(1, -1), GGMLQuantizationType.Q8_0)[0]
    assert np.array_equal(values, expected, equal_nan=True)


def test_rooms_that_do_not_fit_are_refused() -> None:
    assert ENGINE is not None
    with pytest.raises(ValueError, match="room"):
        ENGINE.decode_q8_0(np.zeros(34, np.uint8), np.zeros(31, np.float32))
    with pytest.raises(ValueError, match="room"):
        ENGINE.pack_bf16(np.zeros((2, 2), np.float32), np.zeros(64, np.uint8))


@pytest.mark.parametrize(("dims", "entries"), [(1, 8), (1, 16), (2, 64), (4, 256)])
def test_the_nearest_entry_is_that_of_numpy(dims, entries, monkeypatch):
    """Whole numbers: distances are exact, and of several that are as near the first one is found."""
    random = np.random.default_rng(0)
    x = random.integers(-9, 10, (3, 500, dims)).astype(np.float32)
    book = random.integers(-9, 10, (entries, dims)).astype(np.float32)
    found = codebook.nearest(x, book)
    distances = np.square(x[..., None, :] - book).sum(3)
    assert (found == distances.argmin(2)).all()
    monkeypatch.setattr(codebook, "engine_module", lambda: None)
    assert (codebook.nearest(x, book) == found).all()


@pytest.mark.parametrize(
    ("x", "book", "room"),
    [((5, 2), (4, 16), 5), ((5, 2), (2, 12), 5), ((5, 2), (2, 16), 4), ((5, 5), (5, 16), 5)],
)
def test_vectors_that_do_not_fit_a_codebook_are_refused(x, book, room):
    assert ENGINE is not None
    with pytest.raises(ValueError, match=r"do not fit together|none of ours"):
        ENGINE.nearest(np.zeros(x, np.float32), np.zeros(book, np.float32), np.zeros(room, np.uint8))
