"""Rounding to equal steps: w ≈ (q − middle) · s, or q · s + m with a minimum m, for each group of inputs of an output.

8 bits are symmetric, q in −127 … 127, as many steps below zero as above it. 4 bits are in 0 … 15, and 3 in 0 … 7
likewise: symmetric groups map their largest magnitude to 7 (or to −8 with its own sign, as ggml's Q4_0 does, whichever
is nearer in squares); asymmetric ones their span to 0 … 15, as Q4_1. A matrix that Q4_1 made therefore comes back as it
was.

N outputs, G groups of J inputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from chinchilla_lm.pack.panels import Floats
from chinchilla_lm.pack.quantized import Codes, Quantized, Scales
from chinchilla_lm.pack.sides import finite_half


@dataclass(frozen=True, slots=True)
class Uniform:
    """bits: 8, 4 or 3; group: inputs that share a scale, 0: all of a row do; asymmetric: with minima (4 bits only)."""

    bits: int
    group: int
    asymmetric: bool = False

    @property
    def options(self) -> dict[str, Any]:
        """What a program's header says of it."""
        return {"group": self.group, "asymmetric": self.asymmetric}

    @property
    def middle(self) -> int:
        """The code of zero, where there are no minima."""
        return 0 if self.asymmetric else 1 << (self.bits - 1)

    @property
    def least(self) -> int:
        """The smallest code: kernels rely on it that 8 bits never hold −128."""
        return 1 if self.bits == 8 else 0

    @property
    def most(self) -> int:
        """The largest code."""
        return (1 << self.bits) - 1

    def round(self, matrix_NK: Floats) -> Quantized:
        """The nearest of each weight, by itself. float32 [N, K]; a short last group counts as filled up with zeros."""
        outputs, inputs = matrix_NK.shape
        wide = self.group or inputs
        missing = -inputs % wide
        padded = np.pad(matrix_NK, ((0, 0), (0, missing))) if missing else matrix_NK
        codes, scales, minima = self.grouped(np.asarray(padded, np.float32).reshape(outputs, -1, wide))
        return Quantized(codes.reshape(outputs, -1)[:, :inputs], scales, minima, self.group, self.middle)

    def grouped(self, groups_NGJ: Floats) -> tuple[Codes, Scales, Scales | None]:
        """Codes [N, G, J], scales [N, G], and minima [N, G] where there are any."""
        if self.asymmetric:
            low, high = groups_NGJ.min(2), groups_NGJ.max(2)
            scales, minima = finite_half((high - low) / np.float32(self.most)), finite_half(low)
            return self.codes(groups_NGJ, scales, minima), scales, minima
        if self.bits == 8:
            peaks = np.abs(groups_NGJ).max(2) / np.float32(self.most - self.middle)
            scales = finite_half(peaks) if self.group else peaks
            return self.codes(groups_NGJ, scales), scales, None
        return *self._nearer(groups_NGJ), None

    def codes(self, groups_NGJ: Floats, scales_NG: Scales, minima_NG: Scales | None = None) -> Codes:
        """The code that is nearest to each weight, [N, G, J], with scales and minima as they are given."""
        scales = scales_NG.astype(np.float32)[..., None]
        shifted = groups_NGJ if minima_NG is None else groups_NGJ - minima_NG.astype(np.float32)[..., None]
        steps = shifted / np.where(scales != 0, scales, np.float32(1.0))
        np.rint(steps, out=steps)
        steps += np.float32(self.middle)
        np.clip(steps, self.least, self.most, out=steps)  # a scale that was rounded down to float16 leads beyond
        return steps.astype(np.uint8)

    def _nearer(self, groups_NGJ: Floats) -> tuple[Codes, Scales]:
        """The nearer of two scales for each group: its largest magnitude as the last step (of 4 bits 7), or with its
        sign as the first one (−8)."""
        at = np.abs(groups_NGJ).argmax(2)[..., None]
        peak = np.take_along_axis(groups_NGJ, at, 2)[..., 0]
        found = []
        for scales in (finite_half(np.abs(peak) / (self.most - self.middle)), finite_half(peak / -self.middle)):
            codes = self.codes(groups_NGJ, scales)
            meant = (codes.astype(np.float32) - self.middle) * scales.astype(np.float32)[..., None]
            found.append((((meant - groups_NGJ) ** 2).sum(2), codes, scales))
        (first, codes, scales), (second, other_codes, other_scales) = found
        nearer = second < first
        return np.where(nearer[..., None], other_codes, codes), np.where(nearer, other_scales, scales)
