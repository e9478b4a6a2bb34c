"""Sparse matrices: of every block of 16 outputs × 4 inputs so many weights are kept, the others are zero.

The blocks are those that one step of a product takes (`pack/panels.py`), so that each has as many bytes as every other:
a mask of 64 bits and the values that are kept, which the kernel spreads over the mask. Within a block the pattern is
free, which is much more freedom than two of four (Mishra et al. 2021) leave; N of M is the same with a narrower choice.
With a codebook for what is kept, the matrix is VectorQuantize(OneHotEncode(SparseMatrix(M))).

N outputs, K inputs, G groups.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chinchilla_lm.pack.codebook import Codebook, along, group_sums, nearest, no_zeros
from chinchilla_lm.pack.panels import LANES, Floats
from chinchilla_lm.pack.quantized import Mask, Quantized
from chinchilla_lm.pack.sides import finite_half

BLOCK_INPUTS = 4
BLOCK = LANES * BLOCK_INPUTS
EIGHT_BITS = 127  # the largest level of what is kept without a codebook


@dataclass(frozen=True, slots=True)
class Sparse:
    """kept: of the 64 weights of a block; of_four: of four inputs of an output, where N of M is asked for; entries: of
    the codebook for what is kept, the first of them zero; 0: eight bits; group: inputs that share a scale."""

    kept: int
    group: int
    entries: int = 0
    of_four: int = 0

    @property
    def bits(self) -> int:
        """Of what is kept of one weight."""
        return self.entries.bit_length() - 1 if self.entries else 8

    @property
    def dims(self) -> int:
        """Weights that a code stands for."""
        return 1

    @property
    def middle(self) -> int:
        """The code of zero."""
        return 0 if self.entries else 128

    @property
    def options(self) -> dict[str, Any]:
        """What a program's header says of it."""
        return {"bits": self.bits, "dims": 1, "kept": self.kept, "group": self.group, "row_scales": False}

    def mask(self, importance_NK: Floats) -> Mask:
        """The weights that are kept: those with the largest importance. bool [N, K]."""
        outputs, inputs = importance_NK.shape
        padded = np.pad(
            importance_NK, ((0, -outputs % LANES), (0, -inputs % BLOCK_INPUTS)), constant_values=-np.inf
        ).reshape(-(-outputs // LANES), LANES, -1, BLOCK_INPUTS)
        blocks = np.ascontiguousarray(padded.transpose(0, 2, 1, 3))  # [panels, steps, 16, 4]
        if self.of_four:
            chosen = _largest(blocks, self.of_four)
        else:
            chosen = _largest(blocks.reshape(*blocks.shape[:2], BLOCK), self.kept).reshape(blocks.shape)
        mask = chosen.transpose(0, 2, 1, 3).reshape(padded.shape[0] * LANES, -1)
        return np.ascontiguousarray(mask[:outputs, :inputs])

    def fits(self, mask_NK: Mask) -> bool:
        """Whether no block of a mask keeps more than it may."""
        outputs, inputs = mask_NK.shape
        padded = np.pad(mask_NK, ((0, -outputs % LANES), (0, -inputs % BLOCK_INPUTS)))
        blocks = padded.reshape(-(-outputs // LANES), LANES, -1, BLOCK_INPUTS)
        return bool((blocks.sum((1, 3)) <= self.kept).all())

    def codebook(self) -> Codebook | None:
        """Of what is kept, where there is one."""
        return Codebook(1, self.entries, self.group) if self.entries else None

    def begun(self) -> NDArray[np.int8] | None:
        """The codebook that is used without data, its first entry zero."""
        book = self.codebook()
        return None if book is None else with_zero(book.begun())

    def round(self, matrix_NK: Floats) -> Quantized:
        """The largest weights of each block, each rounded by itself. float32 [N, K]."""
        matrix = np.asarray(matrix_NK, np.float32)
        return self.round_kept(matrix, self.mask(np.abs(matrix)))

    def round_kept(self, matrix_NK: Floats, mask_NK: Mask) -> Quantized:
        """What the mask keeps, each weight rounded by itself."""
        inputs = matrix_NK.shape[1]
        kept = np.where(mask_NK, matrix_NK, np.float32(0.0))
        book, wide = self.begun(), self.group
        if book is None:
            padded = np.pad(kept, ((0, 0), (0, -inputs % wide))).reshape(len(kept), -1, wide)
            scales = finite_half(np.abs(padded).max(2) / EIGHT_BITS)
            steps = np.rint(kept / along(no_zeros(scales), wide, inputs))
            codes = (np.clip(steps, -EIGHT_BITS, EIGHT_BITS) + 128).astype(np.uint8)
            return Quantized(codes, scales, None, wide, 128, None, mask_NK)
        counts = np.maximum(group_sums(mask_NK.astype(np.float32), wide), 1.0)
        levels = book.astype(np.float32)
        spread = np.sqrt(group_sums(kept**2, wide) / counts)
        scales = finite_half(spread / np.float32(np.sqrt((levels**2).mean())))
        for last in (False, True):
            steps = (kept / along(no_zeros(scales), wide, inputs)).astype(np.float32)
            codes = nearest(steps[:, :, None], levels)
            if last:
                break
            meant = np.where(mask_NK, levels[codes, 0], np.float32(0.0))
            scales = finite_half(group_sums(meant * kept, wide) / np.maximum(group_sums(meant**2, wide), 1e-12))
        codes[~mask_NK] = 0
        return Quantized(codes, scales, None, wide, 0, book, mask_NK, inputs)


def with_zero(book_ED: NDArray[np.int8]) -> NDArray[np.int8]:
    """A codebook of single weights whose entry nearest to zero is zero, and its first."""
    at = int(np.abs(book_ED[:, 0].astype(np.int64)).argmin())
    rest = np.delete(book_ED, at, axis=0)
    return np.concatenate((np.zeros((1, 1), np.int8), rest))


def _largest(values: Floats, count: int) -> Mask:
    """Which numbers along the last axis are the `count` largest."""
    chosen = np.zeros(values.shape, np.bool_)
    np.put_along_axis(chosen, np.argpartition(-values, count - 1, axis=-1)[..., :count], True, -1)
    return chosen & (values != -np.inf)
