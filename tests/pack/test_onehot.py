"""VectorQuantize(OneHotEncode(SparseMatrix(M))): the identity, and the product by tables beside the unpacked one."""

import numpy as np
import pytest

from chinchilla_lm.pack.codebook import Codebook
from chinchilla_lm.pack.formats import FORMATS
from chinchilla_lm.pack.onehot import one_hot, product_by_tables
from chinchilla_lm.pack.quantized import spread_out
from chinchilla_lm.pack.sparse import Sparse

BOOKS = {name: form.rounding for name, form in FORMATS.items() if isinstance(form.rounding, Codebook)}


def drawn(outputs: int, inputs: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((outputs, inputs)).astype(np.float32)


@pytest.mark.parametrize("name", BOOKS)
def test_one_hot_codes_times_the_codebook_are_a_look_up(name):
    how = BOOKS[name]
    rounded = how.round(drawn(24, 100))
    assert rounded.codebook_ED is not None
    book = rounded.codebook_ED.astype(np.float32)
    encoded = one_hot(rounded.codes_NV, how.entries)
    assert (encoded.sum(2) == 1).all()
    assert ((encoded @ book) == book[rounded.codes_NV]).all()
    assert (spread_out(encoded @ book, 100) == rounded.levels()).all()


@pytest.mark.parametrize("name", BOOKS)
@pytest.mark.parametrize("inputs", [64, 100, 300])
def test_the_product_by_tables_is_that_of_the_matrix(name, inputs):
    rounded, x = BOOKS[name].round(drawn(24, inputs)), drawn(5, inputs)
    expected = x.astype(np.float64) @ rounded.values().astype(np.float64).T
    np.testing.assert_allclose(product_by_tables(rounded, x), expected, rtol=1e-6, atol=1e-5)


def test_a_sparse_matrix_of_one_hot_codes_is_the_formula():
    """Prune, encode what is left as one-hot codes, give them the codebook's values."""
    how = FORMATS["sparse-50-codebook"].rounding
    assert isinstance(how, Sparse)
    matrix = drawn(32, 128)
    rounded = how.round(matrix)
    assert rounded.mask_NK is not None
    assert rounded.codebook_ED is not None
    kept = np.abs(matrix).reshape(2, 16, 32, 4).transpose(0, 2, 1, 3).reshape(2, 32, 64)
    least = np.sort(kept, axis=2)[:, :, 32, None]
    largest = (kept >= least).reshape(2, 32, 16, 4).transpose(0, 2, 1, 3).reshape(32, 128)
    assert (rounded.mask_NK == largest).all()
    values = (one_hot(rounded.codes_NV, 16) @ rounded.codebook_ED.astype(np.float32))[:, :, 0]
    scales = np.repeat(rounded.scales_NG.astype(np.float32), 64, axis=1)
    assert (rounded.values() == np.where(largest, values * scales, 0)).all()
    assert np.square(rounded.values() - matrix).mean() < 0.12
