"""Codes as what they are in algebra: one-hot vectors, whose product with the codebook is a look-up.

    Ŵ = S ∘ (OneHot(codes) · codebook),   and with a mask   Ŵ = S ∘ mask ∘ (OneHot(codes) · codebook)

so that a product needs no weights at all: the codebook's products with the inputs are made once, and every code then
looks its own up (as in AQLM, Egiazarian et al. 2024, and T-MAC, Wei et al. 2024). That costs E products for each vector
of inputs and one addition a code, where N outputs would cost N products: it saves work where N is far above E. The
engine makes bytes of codes in registers instead (native/codes.h); this is a reference to hold it against.

N outputs, K inputs, T tokens, V vectors of d inputs, E entries.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from chinchilla_lm.pack.quantized import Quantized, gathered

Floats64 = NDArray[np.float64]


def one_hot(codes_NV: NDArray[np.uint8], entries: int) -> NDArray[np.float32]:
    """[N, V, E]: a one where the code is. Raises IndexError for a code that is no entry."""
    made: NDArray[np.float32] = np.eye(entries, dtype=np.float32)[codes_NV]
    return made


def product_by_tables(rounded: Quantized, x_TK: NDArray[np.floating]) -> Floats64:
    """x Ŵᵀ, [T, N], of a matrix with a codebook and no mask: its products with all entries, then a look-up a code."""
    assert rounded.codebook_ED is not None
    assert rounded.mask_NK is None
    book, (_, inputs) = rounded.codebook_ED.astype(np.float64), rounded.shape
    dims = book.shape[1]
    tables_TVE = gathered(x_TK.astype(np.float64), dims) @ book.T
    vectors = np.arange(rounded.codes_NV.shape[1])
    found_TNV = tables_TVE[:, vectors, rounded.codes_NV]
    groups = vectors // 4 * 4 * dims // (rounded.group or inputs)  # a vector's inputs all share a scale
    products: Floats64 = (found_TNV * rounded.scales_NG.astype(np.float64)[:, groups]).sum(2)
    return products
