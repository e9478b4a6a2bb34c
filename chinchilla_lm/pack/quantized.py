"""A rounded matrix, whatever runs it: what rounding and solvers make, and what every layout is derived from."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from chinchilla_lm.pack.panels import Floats

Codes = NDArray[np.uint8]
Scales = NDArray[np.floating]  # float16 with groups, float32 with one a row


@dataclass(frozen=True, slots=True)
class Quantized:
    """A matrix of N outputs × K inputs, of which `group` of an output share a scale, the last ones maybe fewer; 0: all.

        w[n, k] = (codes[n, k] − middle) · scales[n, g] + minima[n, g],   g = k // group

    codes_NK: uint8 [N, K]; scales_NG: float16 [N, G], or float32 [N, 1] without groups; minima_NG: float16 [N, G] or
    None.
    """

    codes_NK: Codes
    scales_NG: Scales
    minima_NG: Scales | None
    group: int
    middle: int

    @property
    def shape(self) -> tuple[int, int]:
        """Outputs and inputs."""
        outputs, inputs = self.codes_NK.shape
        return outputs, inputs

    def values(self) -> Floats:
        """What it means, float32 [N, K]."""
        outputs, inputs = self.shape
        wide = self.group or inputs
        values = np.pad(self.codes_NK.astype(np.float32), ((0, 0), (0, -inputs % wide))).reshape(outputs, -1, wide)
        if self.middle:
            values -= np.float32(self.middle)
        values *= self.scales_NG.astype(np.float32)[..., None]
        if self.minima_NG is not None:
            values += self.minima_NG.astype(np.float32)[..., None]
        return values.reshape(outputs, -1)[:, :inputs]

    def take(self, rows: NDArray[np.intp]) -> Quantized:
        """Its outputs in another order. rows: which one each is; −1: one of zeros."""
        none = rows < 0
        codes, scales = self.codes_NK[rows], self.scales_NG[rows]
        minima = None if self.minima_NG is None else self.minima_NG[rows]
        if none.any():
            codes[none], scales[none] = self.middle, 0
            if minima is not None:
                minima[none] = 0
        return replace(self, codes_NK=codes, scales_NG=scales, minima_NG=minima)

    def part(self, rows: slice) -> Quantized:
        """Some of its outputs, without a copy."""
        minima = None if self.minima_NG is None else self.minima_NG[rows]
        return replace(self, codes_NK=self.codes_NK[rows], scales_NG=self.scales_NG[rows], minima_NG=minima)
