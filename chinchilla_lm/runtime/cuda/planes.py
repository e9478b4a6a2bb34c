"""Codes as a GPU reads them: words of 32 bits, outputs side by side, so that a warp's loads are one stretch of memory.

A code of 3 or 6 bits is parted over two planes, of 2 and 1 or of 4 and 2 bits, so that no bit is wasted. A matrix with
a mask has its kept codes block by block, as many in each, behind a bit for each weight.

N outputs, K inputs, G groups, V codes of an output, E entries of d inputs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from chinchilla_lm.pack.panels import LANES, round_up
from chinchilla_lm.pack.quantized import Codes, Entries, Quantized
from chinchilla_lm.pack.sparse import BLOCK_INPUTS

Words = NDArray[np.int32]
# Inputs are padded to a multiple of it: the most that a kernel reads at a time.
STEP = 128
# Widths of the planes of a code of so many bits; the first has the low bits.
WIDTHS = {8: (8,), 6: (4, 2), 4: (4,), 3: (2, 1)}


@dataclass(frozen=True, slots=True)
class Planes:
    """A rounded matrix.

    planes: int32 [words, N], or of kept codes int32 [words]. scales_GN, minima_GN: float16 or float32, and float16.
    book: int32 [E], an entry's numbers its bytes, the first the lowest. mask: int32 [steps, panels, 2], bit 16 t + q of
    a block of 16 outputs q and 4 inputs t. kept: codes of a block.
    """

    planes: tuple[Words, ...]
    bits: int
    scales_GN: NDArray[np.floating]
    minima_GN: NDArray[np.floating] | None
    group: int
    middle: int
    dims: int
    book: Words | None
    mask: Words | None
    kept: int


def planes_of(rounded: Quantized) -> Planes:
    """The planes of a rounded matrix."""
    book, mask = rounded.codebook_ED, rounded.mask_NK
    middle = rounded.middle
    bits = len(book).bit_length() - 1 if book is not None else 8 if rounded.middle == 128 else 4
    dims = 1 if book is None else book.shape[1]
    if book is not None and dims == 1 and mask is None and (np.diff(book[:, 0].astype(int)) == 1).all():
        middle = -int(book[0, 0])  # even steps are sooner computed than looked up
        book = None
    kept, words = 0, None
    if mask is None:
        codes_VN = np.ascontiguousarray(_padded(rounded.codes_NV, round_up(rounded.shape[1], STEP) // dims).T)
    else:
        codes_VN, kept, words = _kept(rounded.codes_NV, mask)
    return Planes(
        planes=_parted(codes_VN, bits),
        bits=bits,
        scales_GN=np.ascontiguousarray(rounded.scales_NG.T),
        minima_GN=None if rounded.minima_NG is None else np.ascontiguousarray(rounded.minima_NG.T),
        group=rounded.group,
        middle=middle,
        dims=dims,
        book=None if book is None else _entries(book),
        mask=words,
        kept=kept,
    )


def _padded(codes_NV: Codes, width: int) -> Codes:
    return np.pad(codes_NV, ((0, 0), (0, width - codes_NV.shape[1])))


def _parted(codes: Codes, bits: int) -> tuple[Words, ...]:
    """Codes [V, ...] as the words of each plane, [V · width / 32, ...]."""
    planes, below = [], 0
    for width in WIDTHS[bits]:
        part = codes >> below & (1 << width) - 1
        each = part.reshape(-1, 32 // width, *codes.shape[1:]).astype(np.uint32)
        shifts = np.arange(0, 32, width, dtype=np.uint32).reshape(1, -1, *[1] * (codes.ndim - 1))
        planes.append(np.bitwise_or.reduce(each << shifts, axis=1).view(np.int32))
        below += width
    return tuple(planes)


def _entries(book_ED: Entries) -> Words:
    """Each entry in one word."""
    return np.ascontiguousarray(np.pad(book_ED, ((0, 0), (0, 4 - book_ED.shape[1])))).view("<i4").astype(np.int32)[:, 0]


def _kept(codes_NK: Codes, mask_NK: NDArray[np.bool_]) -> tuple[Codes, int, Words]:
    """The kept codes of all blocks, one after another, [blocks · kept]; kept; the masks, [steps, panels, 2]."""
    outputs, inputs = mask_NK.shape
    room = ((0, -outputs % LANES), (0, -inputs % STEP))

    def blocks(matrix: NDArray) -> NDArray:
        padded = np.pad(matrix, room).reshape(-1, LANES, (inputs + room[1][1]) // BLOCK_INPUTS, BLOCK_INPUTS)
        return np.ascontiguousarray(padded.transpose(2, 0, 3, 1)).reshape(-1, LANES * BLOCK_INPUTS)

    masks, codes = blocks(mask_NK), blocks(codes_NK)
    kept = round_up(max(1, int(masks.sum(1).max())), 8)  # whole words, whatever a code's width
    found = np.zeros((len(masks), kept), np.uint8)
    block, bit = np.nonzero(masks)
    found[block, masks.cumsum(1)[block, bit] - 1] = codes[block, bit]
    words = np.packbits(masks, axis=1, bitorder="little").view("<i4").astype(np.int32)
    return found.reshape(-1), kept, words.reshape((inputs + room[1][1]) // BLOCK_INPUTS, -1, 2)
