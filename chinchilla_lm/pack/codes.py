"""Codes of a codebook, and sparse matrices, as bytes: a shared codebook, then panels.

    codebook   [d][E] bytes, an entry's number + 128, E at least 16, up to a multiple of 64 bytes; none for eight bits
    panel      float16 scales [G][16], or [16] where all of a row share one; then blocks of codes

Codes stand as vectors of 64, four of each of the panel's 16 outputs (`quantized.inputs_of` says of which inputs). A
block holds as many vectors as it takes to fill bytes:

    8 bits     one vector
    4 bits     two: the low nibbles, the high ones
    6 bits     four: their low 4 bits as two of 4 bits, then one of bytes that hold 2 bits of each
    3 bits     eight: their low 2 bits in two vectors of four each, then one of bytes that hold 1 bit of each

A sparse matrix has for every 64 inputs 16 masks of 64 bits, one for 4 inputs, a bit for each byte of a vector, and then
what they keep, in order: bytes, or nibbles, the low ones of as many bytes for one mask, the high ones for the next.
"""

from __future__ import annotations

import numpy as np

from chinchilla_lm.errors import InputError
from chinchilla_lm.pack.codebook import Codebook
from chinchilla_lm.pack.panels import ALIGNMENT, LANES, Bytes, from_panels, pad, round_up, rows_of, to_panels
from chinchilla_lm.pack.quantized import Entries, Mask, Quantized, vectors_of
from chinchilla_lm.pack.sides import from_side, side_bytes, to_side
from chinchilla_lm.pack.sparse import BLOCK, BLOCK_INPUTS, Sparse

STEP = 64
MASKS = STEP // BLOCK_INPUTS  # of 64 inputs
LEAST_ENTRIES = 16  # that a table of the CPU's look-up holds


def step(how: Codebook | Sparse) -> int:
    """K is padded to a multiple of this."""
    return max(STEP, how.group)


def codebook_bytes(how: Codebook | Sparse) -> int:
    """In front of the panels."""
    return round_up(how.dims * max(how.entries, LEAST_ENTRIES), ALIGNMENT) if how.entries else 0


def panel_bytes(inputs: int, how: Codebook | Sparse) -> int:
    """Of 16 outputs with a padded K."""
    side = side_bytes(inputs // how.group if how.group else 1)
    if isinstance(how, Codebook):
        return side + inputs * LANES * how.bits // (8 * how.dims)
    return side + inputs // STEP * MASKS * (8 + how.kept * how.bits // 8)


def lay_codebook(book_ED: Entries | None, how: Codebook | Sparse) -> Bytes:
    """The bytes of the codebook."""
    room = np.zeros(codebook_bytes(how), np.uint8)
    if book_ED is not None:
        entries = max(how.entries, LEAST_ENTRIES)
        for place, numbers in enumerate(book_ED.T):
            room[place * entries : place * entries + len(numbers)] = (numbers.astype(np.int16) + 128).astype(np.uint8)
    return room


def lay(rounded: Quantized, how: Codebook | Sparse) -> Bytes:
    """The bytes of the panels. Raises InputError for a mask that keeps more of a block than the format has room for."""
    inputs = round_up(rounded.shape[1], step(how))
    groups = inputs // how.group if how.group else 1
    side = to_side(pad(rounded.scales_NG, 1), groups)
    if isinstance(how, Codebook):
        codes = pad(_with_vectors(rounded.codes_NV, inputs // how.dims), 1)
        blocks = _blocks(to_panels(codes, 4).reshape(len(codes) // LANES, -1, 4 * LANES), how.bits)
    else:
        blocks = _kept(rounded, inputs, how)
    return np.concatenate((side, blocks.reshape(len(side), -1)), axis=1).reshape(-1)


def read(packed: Bytes, outputs: int, inputs: int, how: Codebook | Sparse) -> Quantized:
    """The rounded matrix of codebook and panels. Raises InputError for masks that do not add up."""
    book = _read_codebook(packed[: codebook_bytes(how)], how)
    panels = rows_of(packed[codebook_bytes(how) :], outputs)
    padded = round_up(inputs, step(how))
    groups = padded // how.group if how.group else 1
    side = side_bytes(groups)
    scales = from_side(panels[:, :side], -(-inputs // how.group) if how.group else 1)[:outputs]
    blocks = np.ascontiguousarray(panels[:, side:])
    if isinstance(how, Codebook):
        vectors = _vectors(blocks, how.bits).reshape(len(panels), -1, LANES, 4)
        codes = from_panels(vectors)[:outputs, : vectors_of(inputs, how.dims)]
        return Quantized(codes, scales, None, how.group, 0, book, None, inputs)
    kept, mask = _spread(blocks, how)
    kept, mask = kept[:outputs, :inputs], mask[:outputs, :inputs]
    return Quantized(kept, scales, None, how.group, how.middle, book, mask, inputs if how.entries else 0)


def _with_vectors(codes: Bytes, vectors: int) -> Bytes:
    return np.pad(codes, ((0, 0), (0, vectors - codes.shape[1])))


def _read_codebook(packed: Bytes, how: Codebook | Sparse) -> Entries | None:
    if not how.entries:
        return None
    numbers = packed[: how.dims * max(how.entries, LEAST_ENTRIES)].reshape(how.dims, -1)[:, : how.entries]
    return np.ascontiguousarray((numbers.astype(np.int16) - 128).astype(np.int8).T)


def _blocks(vectors: Bytes, bits: int) -> Bytes:
    """Vectors of 64 codes, [panels, vectors, 64], as blocks, [panels, bytes]."""
    panels = len(vectors)
    if bits == 8:
        return vectors.reshape(panels, -1)
    if bits == 4:
        both = vectors.reshape(panels, -1, 2, BLOCK)
        return _one_byte(both[:, :, 0], both[:, :, 1]).reshape(panels, -1)
    if bits == 6:
        four = vectors.reshape(panels, -1, 4, BLOCK)
        nibbles: Bytes = np.bitwise_and(four, 15)
        low = _one_byte(nibbles[:, :, 0::2], nibbles[:, :, 1::2])
        high = np.bitwise_or.reduce([(four[:, :, [u]] >> 4) << 2 * u for u in range(4)])
    else:
        eight = vectors.reshape(panels, -1, 2, 4, BLOCK)
        low = np.bitwise_or.reduce([(eight[:, :, :, u] & 3) << 2 * u for u in range(4)])
        bits_of = vectors.reshape(panels, -1, 8, BLOCK)
        high = np.bitwise_or.reduce([(bits_of[:, :, [u]] >> 2) << u for u in range(8)])
    return np.concatenate((low, high), axis=2).reshape(panels, -1)


def _vectors(blocks: Bytes, bits: int) -> Bytes:
    """What `_blocks` was given."""
    panels = len(blocks)
    if bits == 8:
        return blocks.reshape(panels, -1, BLOCK)
    if bits == 4:
        both = blocks.reshape(panels, -1, 1, BLOCK)
        return np.concatenate((both & 15, both >> 4), axis=2).reshape(panels, -1, BLOCK)
    parts = blocks.reshape(panels, -1, 3, BLOCK)
    low, high = parts[:, :, :2], parts[:, :, 2:]
    if bits == 6:
        nibbles = np.stack((low & 15, low >> 4), axis=3).reshape(panels, -1, 4, BLOCK)
        found = [nibbles[:, :, u] | (high[:, :, 0] >> 2 * u & 3) << 4 for u in range(4)]
    else:
        found = [(low[:, :, u // 4] >> 2 * (u % 4) & 3) | (high[:, :, 0] >> u & 1) << 2 for u in range(8)]
    return np.stack(found, axis=2).reshape(panels, -1, BLOCK)


def _kept(rounded: Quantized, inputs: int, how: Sparse) -> Bytes:
    """Masks, and the codes that they keep, [panels, bytes]."""
    assert rounded.mask_NK is not None
    mask = to_panels(pad(rounded.mask_NK, STEP), 4)
    codes = to_panels(pad(rounded.codes_NV, STEP, how.middle), 4)
    missing = inputs // 4 - mask.shape[1]
    mask = np.pad(mask, ((0, 0), (0, missing), (0, 0), (0, 0))).reshape(-1, BLOCK)
    codes = np.pad(codes, ((0, 0), (0, missing), (0, 0), (0, 0)), constant_values=how.middle).reshape(-1, BLOCK)
    if (most := int(mask.sum(1).max())) > how.kept:
        raise InputError(
            f"a mask keeps {most} of the 64 weights of a block, more than the {how.kept} of its format; "
            "pack this matrix in a format without a mask"
        )
    # A block that keeps fewer is filled up with zeros, which are codes like others.
    codes = np.where(mask, codes, how.middle).astype(np.uint8)
    order = np.argsort(~mask, axis=1, kind="stable")[:, : how.kept]
    order.sort(axis=1)
    full = np.zeros_like(mask)
    np.put_along_axis(full, order, True, 1)
    bits = np.packbits(full, axis=1, bitorder="little").reshape(-1, MASKS * 8)
    values = np.take_along_axis(codes, order, 1)
    if how.bits == 4:
        values = _nibbles(values.reshape(-1, how.kept))
    panels = len(pad(rounded.mask_NK, 1)) // LANES
    return np.concatenate((bits, values.reshape(len(bits), -1)), axis=1).reshape(panels, -1)


def _nibbles(values: Bytes) -> Bytes:
    """Those of two masks in one: low nibbles of the first, high ones of the second."""
    both = values.reshape(-1, 2, values.shape[1])
    return _one_byte(both[:, 0], both[:, 1])


def _one_byte(low: Bytes, high: Bytes) -> Bytes:
    made: Bytes = np.bitwise_or(low, np.left_shift(high, 4))
    return made


def _spread(blocks: Bytes, how: Sparse) -> tuple[Bytes, Mask]:
    """Codes and mask, [N, K] with padding, of blocks [panels, bytes]."""
    panels, size = len(blocks), MASKS * (8 + how.kept * how.bits // 8)
    parts = blocks.reshape(-1, size)
    mask = np.unpackbits(np.ascontiguousarray(parts[:, : MASKS * 8]), axis=1, bitorder="little").reshape(-1, BLOCK)
    if (mask.sum(1) != how.kept).any():
        raise InputError(f"a mask does not keep {how.kept} of its 64 weights: the file is damaged; pack it again")
    values = np.ascontiguousarray(parts[:, MASKS * 8 :]).reshape(-1, how.kept)
    if how.bits == 4:
        values = np.stack((values & 15, values >> 4), axis=1).reshape(-1, how.kept)
    codes = np.full(mask.shape, how.middle, np.uint8)
    codes[mask.astype(np.bool_)] = values.reshape(-1)
    shape = (panels, -1, LANES, 4)
    return from_panels(codes.reshape(shape)), from_panels(mask.astype(np.bool_).reshape(shape))
