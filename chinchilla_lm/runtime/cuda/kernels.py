"""Triton kernels of packed matrices: a product with few rows, and the matrix written out for many.

A product of few rows takes as long as the weights take to be read, so codes become levels in registers. Levels are
whole numbers of eight bits at most, which bfloat16 holds as they are; sums of products are float32, and are scaled
group by group. Each program sums a stretch of the inputs, and the sums of stretches are added in a fixed order, so that
the result is the same each time.

The road not taken: one row by multiplying and adding without the matrix units. On an H200 4096 × 4096 of 4 bits took
15 to 54 µs so, by tiles of any shape, where this takes 15.

T rows, N outputs, K inputs.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _plane(words, first, n, N, WIDTH: tl.constexpr, ROWS: tl.constexpr, OUTPUTS: tl.constexpr):
    """Parts of `WIDTH` bits of the codes from row `first` on, int32 [ROWS, OUTPUTS]."""
    EACH: tl.constexpr = 32 // WIDTH
    rows = first // EACH + tl.arange(0, ROWS // EACH)
    found = tl.load(words + rows[:, None] * N + n[None, :], mask=n[None, :] < N, other=0)
    shifts = (tl.arange(0, EACH) * WIDTH)[None, :, None]
    return tl.reshape(found[:, None, :] >> shifts & (1 << WIDTH) - 1, (ROWS, OUTPUTS))


@triton.jit
def _codes(first_plane, second_plane, first, n, N, BITS: tl.constexpr, ROWS: tl.constexpr, OUTPUTS: tl.constexpr):
    """int32 [ROWS, OUTPUTS]."""
    LOW: tl.constexpr = 8 if BITS == 8 else 2 if BITS == 3 else 4
    codes = _plane(first_plane, first, n, N, LOW, ROWS, OUTPUTS)
    if BITS > LOW:
        codes += _plane(second_plane, first, n, N, BITS - LOW, ROWS, OUTPUTS) << LOW
    return codes


@triton.jit
def _ones(words):
    """How many bits of int32 words are one."""
    bits = words.to(tl.uint32, bitcast=True)
    bits = bits - (bits >> 1 & 0x55555555)
    bits = (bits & 0x33333333) + (bits >> 2 & 0x33333333)
    return (((bits + (bits >> 4) & 0x0F0F0F0F) * 0x01010101) >> 24).to(tl.int32)


@triton.jit
def _number(entries, place):
    """One of the four numbers in each word."""
    return entries << 24 - 8 * place >> 24


@triton.jit
def _kept_levels(
    codes, mask, book, first, n, N,
    BITS: tl.constexpr, KEPT: tl.constexpr, MIDDLE: tl.constexpr, BOOK: tl.constexpr,
    INPUTS: tl.constexpr, OUTPUTS: tl.constexpr,
):  # fmt: skip
    """Levels where the mask is one, else 0; int32 [INPUTS, OUTPUTS]."""
    k = (first + tl.arange(0, INPUTS))[:, None]
    panels = (N + 15) // 16
    block = k // 4 * panels + n[None, :] // 16
    inside = n[None, :] < N
    bit = k % 4 * 16 + n[None, :] % 16
    low = tl.load(mask + 2 * block, mask=inside, other=0)
    high = tl.load(mask + 2 * block + 1, mask=inside, other=0)
    word = tl.where(bit < 32, low, high)
    one = inside & ((word >> bit % 32 & 1) == 1)
    place = block * KEPT + _ones(word & (1 << bit % 32) - 1) + tl.where(bit < 32, 0, _ones(low))
    EACH: tl.constexpr = 32 // BITS
    code = tl.load(codes + place // EACH, mask=one, other=0) >> place % EACH * BITS & (1 << BITS) - 1
    if BOOK:
        level = _number(tl.load(book + code, mask=one, other=0), 0)
    else:
        level = code - MIDDLE
    return tl.where(one, level, 0)


@triton.jit
def _levels(
    first_plane, second_plane, mask, book, first, n, N,
    BITS: tl.constexpr, DIMS: tl.constexpr, KEPT: tl.constexpr, MIDDLE: tl.constexpr, BOOK: tl.constexpr,
    INPUTS: tl.constexpr, OUTPUTS: tl.constexpr,
):  # fmt: skip
    """What the codes of some inputs, from `first` on, stand for before they are scaled, int32 [INPUTS, OUTPUTS]."""
    if KEPT > 0:
        levels = _kept_levels(
            first_plane, mask, book, first, n, N, BITS, KEPT, MIDDLE, BOOK, INPUTS, OUTPUTS
        )  # fmt: skip
    else:
        codes = _codes(first_plane, second_plane, first // DIMS, n, N, BITS, INPUTS // DIMS, OUTPUTS)
        if BOOK:
            entries = tl.reshape(tl.load(book + codes), (INPUTS // DIMS // 4, 1, 4, OUTPUTS))
            levels = tl.reshape(_number(entries, tl.arange(0, DIMS)[None, :, None, None]), (INPUTS, OUTPUTS))
        else:
            levels = codes - MIDDLE
    return levels


@triton.jit
def product(
    x, out, first_plane, second_plane, scales, minima, mask, book, T, N, K, x_stride,
    BITS: tl.constexpr, DIMS: tl.constexpr, KEPT: tl.constexpr, MIDDLE: tl.constexpr, BOOK: tl.constexpr,
    GROUP: tl.constexpr, MINIMA: tl.constexpr,
    ROWS: tl.constexpr, OUTPUTS: tl.constexpr, INPUTS: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """out [SPLIT, T, N] float32: x Ŵᵀ of a stretch of the inputs each; x [T, K], its rows `x_stride` apart.

    GROUP: inputs that share a scale, 0: all; INPUTS, which divides it, and ROWS and OUTPUTS: of a tile.
    """
    t = tl.arange(0, ROWS)
    n = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    part = tl.program_id(1)
    tiles = (K + INPUTS - 1) // INPUTS
    each = (tiles + SPLIT - 1) // SPLIT
    total = tl.zeros((ROWS, OUTPUTS), tl.float32)
    for tile in range(part * each, tl.minimum(part * each + each, tiles)):
        first = tile * INPUTS
        k = first + tl.arange(0, INPUTS)
        rows = tl.load(x + t[:, None] * x_stride + k[None, :], mask=(t[:, None] < T) & (k[None, :] < K), other=0.0)
        levels = _levels(
            first_plane, second_plane, mask, book, first, n, N, BITS, DIMS, KEPT, MIDDLE, BOOK, INPUTS, OUTPUTS
        )  # fmt: skip
        sums = tl.dot(rows, levels.to(rows.dtype), input_precision="ieee")
        if GROUP > 0:
            place = first // GROUP * N + n
            sums *= tl.load(scales + place, mask=n < N, other=0.0).to(tl.float32)[None, :]
            if MINIMA:
                least = tl.load(minima + place, mask=n < N, other=0.0).to(tl.float32)
                sums += tl.sum(rows.to(tl.float32), axis=1)[:, None] * least[None, :]
        total += sums
    if GROUP == 0:
        total *= tl.load(scales + n, mask=n < N, other=0.0).to(tl.float32)[None, :]
    place = (part * T + t[:, None]) * N + n[None, :]
    tl.store(out + place, total, mask=(t[:, None] < T) & (n[None, :] < N))


@triton.jit
def written_out(
    out, first_plane, second_plane, scales, minima, mask, book, N, K,
    BITS: tl.constexpr, DIMS: tl.constexpr, KEPT: tl.constexpr, MIDDLE: tl.constexpr, BOOK: tl.constexpr,
    GROUP: tl.constexpr, MINIMA: tl.constexpr, OUTPUTS: tl.constexpr, INPUTS: tl.constexpr,
):  # fmt: skip
    """out [N, K]: what the codes mean."""
    n = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    first = tl.program_id(1) * INPUTS
    k = first + tl.arange(0, INPUTS)
    values = _levels(
        first_plane, second_plane, mask, book, first, n, N, BITS, DIMS, KEPT, MIDDLE, BOOK, INPUTS, OUTPUTS
    ).to(tl.float32)  # fmt: skip
    place = n if GROUP == 0 else first // GROUP * N + n
    values *= tl.load(scales + place, mask=n < N, other=0.0).to(tl.float32)[None, :]
    if MINIMA:
        values += tl.load(minima + place, mask=n < N, other=0.0).to(tl.float32)[None, :]
    inside = (n[None, :] < N) & (k[:, None] < K)
    tl.store(out + n[None, :] * K + k[:, None], values.to(out.dtype.element_ty), mask=inside)
