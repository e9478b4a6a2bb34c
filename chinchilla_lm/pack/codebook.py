"""Vector quantisation: each code stands for d weights, a row of a codebook, times a scale.

Rounding without data uses a codebook that is made once, for numbers that are normally distributed (as HIGGS does,
Malinovskii et al. 2024, arXiv 2411.17525), since weights within a group nearly are. Solvers learn one for each matrix
from there. Entries are bytes, so that a product of codes is a product of bytes once they have been looked up.

N outputs, K inputs, G groups of J inputs, V codes of d inputs, E entries.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np

from chinchilla_lm.native import engine_module
from chinchilla_lm.pack.panels import Floats
from chinchilla_lm.pack.quantized import Codes, Entries, Quantized, Scales, gathered, spread_out
from chinchilla_lm.pack.sides import finite_half
from chinchilla_lm.pack.uniform import Uniform

LARGEST = 127  # of an entry: as far above zero as below it, as files of other programs want eight bits
# The codebook for normally distributed numbers: of so many vectors, in so many rounds of k-means.
DRAWN, ROUNDS = 1 << 14, 40
# Codes that are compared with all entries at a time, so that the distances stay in the cache.
TOGETHER = 1 << 12


@dataclass(frozen=True, slots=True)
class Codebook:
    """dims: weights a code stands for, d; entries: vectors in the codebook, E, a power of two; group: inputs that share
    a scale, 0: all of a row do; even: entries at equal steps, −E/2 … E/2 − 1, which are not learned (d = 1)."""

    dims: int
    entries: int
    group: int
    even: bool = False

    @property
    def bits(self) -> int:
        """Of a code."""
        return self.entries.bit_length() - 1

    @property
    def middle(self) -> int:
        """The code that stands for zero in a row of zeros, whose scale is zero."""
        return 0

    @property
    def options(self) -> dict[str, Any]:
        """What a program's header says of it."""
        group = self.group or 64  # that inputs are rounded in
        return {"bits": self.bits, "dims": self.dims, "kept": 0, "group": group, "row_scales": not self.group}

    def begun(self) -> Entries:
        """The codebook that is used without data, and from which solvers learn. int8 [E, d]."""
        if self.even:
            return np.arange(-self.entries // 2, self.entries // 2, dtype=np.int8)[:, None]
        return normal_codebook(self.dims, self.entries)

    def as_uniform(self) -> Uniform:
        """Rounding to entries that are at even steps."""
        return Uniform(self.bits, self.group)

    def of_even(self, rounded: Quantized) -> Quantized:
        """What rounding to even steps made, as codes of this codebook."""
        return replace(rounded, middle=0, codebook_ED=self.begun(), columns=rounded.shape[1])

    def round(self, matrix_NK: Floats) -> Quantized:
        """The nearest entry to each vector, the scale of each group fitted to it. float32 [N, K]."""
        if self.even:
            return self.of_even(self.as_uniform().round(matrix_NK))
        matrix = np.asarray(matrix_NK, np.float32)
        inputs, book = matrix.shape[1], self.begun().astype(np.float32)
        wide = self.group or inputs
        counts = group_sums(np.ones((1, inputs), np.float32), wide)
        spread = np.sqrt(group_sums(matrix**2, wide) / counts)
        scales = finite_half(spread / np.float32(book_spread(self.dims, self.entries)))
        codes = nearest(gathered(matrix / along(no_zeros(scales), wide, inputs), self.dims), book)
        levels = spread_out(book[codes], inputs)
        scales = finite_half(group_sums(levels * matrix, wide) / np.maximum(group_sums(levels**2, wide), 1e-12))
        codes = nearest(gathered(matrix / along(no_zeros(scales), wide, inputs), self.dims), book)
        return Quantized(codes, scales, None, self.group, 0, self.begun(), None, inputs)


def along(values_NG: Scales, wide: int, inputs: int) -> Floats:
    """A number of each group for each of its inputs, float32 [N, K]."""
    return np.repeat(values_NG.astype(np.float32), wide, axis=1)[:, :inputs]


def group_sums(values_NK: Floats, wide: int) -> Floats:
    """[N, G]."""
    outputs, inputs = values_NK.shape
    sums: Floats = np.pad(values_NK, ((0, 0), (0, -inputs % wide))).reshape(outputs, -1, wide).sum(2)
    return sums


def nearest(vectors_NVD: Floats, book_ED: Floats) -> Codes:
    """The entry nearest to each vector, the first of several. uint8 [N, V]."""
    flat = np.ascontiguousarray(vectors_NVD, np.float32).reshape(-1, vectors_NVD.shape[2])
    if (engine := engine_module()) is not None:
        found = np.empty(len(flat), np.uint8)
        engine.nearest(flat, np.ascontiguousarray(book_ED.T, np.float32), found)
        return found.reshape(vectors_NVD.shape[:2])
    half_squares = 0.5 * (book_ED**2).sum(1)
    codes = np.empty(len(flat), np.uint8)
    for first in range(0, len(flat), TOGETHER):
        some = flat[first : first + TOGETHER]
        codes[first : first + TOGETHER] = (some @ book_ED.T - half_squares).argmax(1)
    return codes.reshape(vectors_NVD.shape[:2])


@lru_cache
def normal_codebook(dims: int, entries: int) -> Entries:
    """Entries for normally distributed numbers, int8 [E, d], the largest number among them 127."""
    return _normal(dims, entries)[0]


@lru_cache
def book_spread(dims: int, entries: int) -> float:
    """What a standard deviation of 1 is in the steps of `normal_codebook`."""
    return _normal(dims, entries)[1]


@lru_cache
def _normal(dims: int, entries: int) -> tuple[Entries, float]:
    random = np.random.default_rng(0)
    drawn = random.standard_normal((DRAWN, dims)).astype(np.float32)
    if dims == 1:
        drawn.sort(axis=0)
        book = drawn[DRAWN // (2 * entries) :: DRAWN // entries].copy()
    else:
        book = drawn[:entries].copy()
    for _ in range(ROUNDS):
        codes = nearest(drawn[None], book)[0]
        counts = np.bincount(codes, minlength=entries)
        sums = np.stack([np.bincount(codes, drawn[:, d], entries) for d in range(dims)], axis=1)
        seen = counts > 0
        book[seen] = sums[seen] / counts[seen, None]
    steps = float(LARGEST / np.abs(book).max())
    return np.rint(book * steps).astype(np.int8), steps


def no_zeros(scales: Scales) -> Scales:
    """1 in place of each zero, to divide by."""
    return np.where(scales != 0, scales, np.float16(1.0))
