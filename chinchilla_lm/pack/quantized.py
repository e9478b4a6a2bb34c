"""A rounded matrix, whatever runs it: what rounding and solvers make, and what every layout is derived from."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from chinchilla_lm.pack.panels import Floats

Codes = NDArray[np.uint8]
Scales = NDArray[np.floating]  # float16; float32 of int8 with one scale a row
Entries = NDArray[np.int8]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Quantized:
    """A matrix of N outputs × K inputs, of which `group` of an output share a scale, the last ones maybe fewer; 0: all.

        w[n, k] = level[n, k] · scales[n, g] + minima[n, g],   g = k // group

    A level is codes[n, k] − middle. With a codebook of E vectors of d entries, a code stands for the levels of d inputs
    (`inputs_of`); with a mask, levels are zero where it is false.

    codes_NV: uint8 [N, V], V = K without a codebook; scales_NG: [N, G]; minima_NG: float16 [N, G] or None; codebook_ED:
    int8 [E, d] or None; mask_NK: bool [N, K] or None; columns: K, where there is a codebook.
    """

    codes_NV: Codes
    scales_NG: Scales
    minima_NG: Scales | None
    group: int
    middle: int
    codebook_ED: Entries | None = None
    mask_NK: Mask | None = None
    columns: int = 0

    @property
    def shape(self) -> tuple[int, int]:
        """Outputs and inputs."""
        outputs, inputs = self.codes_NV.shape
        return outputs, inputs if self.codebook_ED is None else self.columns

    @property
    def is_plain(self) -> bool:
        """Whether its codes are levels, without codebook and mask."""
        return self.codebook_ED is None and self.mask_NK is None

    def levels(self) -> Floats:
        """What codes mean before they are scaled, float32 [N, K]."""
        if self.codebook_ED is None:
            levels = self.codes_NV.astype(np.float32)
            if self.middle:
                levels -= np.float32(self.middle)
        else:
            levels = spread_out(self.codebook_ED.astype(np.float32)[self.codes_NV], self.columns)
        if self.mask_NK is not None:
            levels[~self.mask_NK] = 0.0
        return levels

    def values(self) -> Floats:
        """What it means, float32 [N, K]."""
        outputs, inputs = self.shape
        wide = self.group or inputs
        values = np.pad(self.levels(), ((0, 0), (0, -inputs % wide))).reshape(outputs, -1, wide)
        values *= self.scales_NG.astype(np.float32)[..., None]
        if self.minima_NG is not None:
            values += self.minima_NG.astype(np.float32)[..., None]
        return values.reshape(outputs, -1)[:, :inputs]

    def plain(self) -> Quantized:
        """The same numbers without codebook and mask: what they mean are levels of eight bits."""
        if self.is_plain:
            return self
        codes = (self.levels() + 128).astype(np.uint8)
        return Quantized(codes, self.scales_NG, None, self.group, 128)

    def take(self, rows: NDArray[np.intp]) -> Quantized:
        """Its outputs in another order. rows: which one each is; −1: one of zeros."""
        none = rows < 0
        codes, scales = self.codes_NV[rows], self.scales_NG[rows]
        minima = None if self.minima_NG is None else self.minima_NG[rows]
        mask = None if self.mask_NK is None else self.mask_NK[rows]
        if none.any():
            codes[none], scales[none] = self.middle, 0
            if minima is not None:
                minima[none] = 0
            if mask is not None:
                mask[none] = False
        return replace(self, codes_NV=codes, scales_NG=scales, minima_NG=minima, mask_NK=mask)

    def part(self, rows: slice) -> Quantized:
        """Some of its outputs, without a copy."""
        minima = None if self.minima_NG is None else self.minima_NG[rows]
        mask = None if self.mask_NK is None else self.mask_NK[rows]
        return replace(
            self, codes_NV=self.codes_NV[rows], scales_NG=self.scales_NG[rows], minima_NG=minima, mask_NK=mask
        )


def vectors_of(inputs: int, dims: int) -> int:
    """Codes of an output of K inputs: those of the last block may stand for inputs that are not there."""
    return inputs if dims == 1 else -(-inputs // (4 * dims)) * 4


def inputs_of(inputs: int, dims: int) -> NDArray[np.intp]:
    """Which inputs each code stands for, [V, d].

    Of every block of 4·d inputs, code t = 0 … 3 stands for t, 4 + t, 8 + t …: four codes of an output that lie side by
    side then give its levels of four inputs side by side, which is what a dot product of bytes multiplies.
    """
    codes = np.arange(vectors_of(inputs, dims))
    return (codes // 4 * 4 * dims + codes % 4)[:, None] + 4 * np.arange(dims)


def spread_out(vectors_NVD: NDArray, inputs: int) -> NDArray:
    """The vectors of all codes as numbers of each input, [N, K] from [N, V, d]."""
    outputs, _, dims = vectors_NVD.shape
    if dims == 1:
        return vectors_NVD[:, :, 0]
    blocks = vectors_NVD.reshape(outputs, -1, 4, dims).transpose(0, 1, 3, 2)
    return np.ascontiguousarray(blocks).reshape(outputs, -1)[:, :inputs]


def gathered(matrix_NK: NDArray, dims: int) -> NDArray:
    """The numbers that each code stands for, [N, V, d]; zeros where there is no input. The inverse of `spread_out`."""
    outputs, inputs = matrix_NK.shape
    if dims == 1:
        return matrix_NK[:, :, None]
    padded = np.pad(matrix_NK, ((0, 0), (0, -inputs % (4 * dims))))
    blocks = padded.reshape(outputs, -1, dims, 4).transpose(0, 1, 3, 2)
    return np.ascontiguousarray(blocks).reshape(outputs, -1, dims)
