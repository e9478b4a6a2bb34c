"""Codes of a codebook that change a matrix's products least: GPTVQ (van Baalen et al. 2024), with the exact update.

As `pack/gptq.py`, d inputs at a time. The published code takes what d columns' rounding does wrong from the rest by the
diagonal of U's block alone; here all of it counts. With D the inputs of a vector, in the order of rounding, its code is
the entry c with the least ‖(w − s·c) U_DD⁻¹‖², and w[rest] −= (w − s·c) U_DD⁻¹ U_D,rest. For d = 1 that is GPTQ.

Codebook, scales and codes then take turns, each of which lowers the error (but for the codebook's rounding to whole
numbers at last): the error is a quadratic function of the codebook's numbers (a few steps of conjugate gradients) and
of the scales (`hessian.least_squares`), and every vector in turn gets the entry that is best beside all others. With a
mask the weights that it drops stay zero.

N outputs, K inputs (a multiple of 4·d, padded with inputs that are nearly never seen), V vectors of d inputs, E
entries.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from chinchilla_lm.pack.alps import alps
from chinchilla_lm.pack.codebook import Codebook
from chinchilla_lm.pack.gptq import SYSTEM, gptq
from chinchilla_lm.pack.hessian import (
    as_half,
    conditioned,
    error_of,
    group_sums,
    inverse_factor,
    least_squares,
)
from chinchilla_lm.pack.panels import LANES
from chinchilla_lm.pack.quantized import Codes, Quantized, inputs_of, vectors_of
from chinchilla_lm.pack.sparse import Sparse

BLOCK = 64  # inputs that are rounded before the error of all of them is taken from the rest
OUTPUTS = 2048  # that are solved at a time, once there is a codebook
LEARNED = 4096  # outputs that a codebook is learned from, at most
POINTS, MEANS = 1 << 14, 10  # vectors of them that k-means begins with, and its rounds
GRADIENTS = 6  # steps of conjugate gradients for a codebook
ROUNDS = 3  # turns of codebook, scales and codes
# How much further than the weights themselves a first codebook reaches, for each bit of a weight: what is taken from
# weights that are still to come spreads them. Found on normally distributed weights with 1 to 1.6 for 2 to 4 bits.
REACH = 0.1
EIGHT_BITS = torch.arange(-127.0, 128.0)[:, None]


@dataclass(frozen=True, slots=True)
class _Inputs:
    """What calibration says of K inputs. hessian: float32 [K, K]; places: the inputs of each vector, [V, d]; order: of
    the vectors, in which they are rounded; factor: upper Cholesky factor of H⁻¹ in that order, [K, K]; wide: inputs of
    a group."""

    hessian: Tensor
    places: Tensor
    order: Tensor
    factor: Tensor
    wide: int


@dataclass(frozen=True, slots=True)
class _Rows:
    """Some outputs: weights [N, K], codes [N, V], scales [N, G] with values that float16 has, mask [N, K] or None."""

    weight: Tensor
    codes: Tensor
    scales: Tensor
    mask: Tensor | None


def solve_codes(weight_NK: Tensor, hessian_KK: Tensor, how: Codebook | Sparse) -> Quantized:
    """The codes, scales, codebook and mask of a matrix that serve the inputs of `hessian_KK` best.

    weight_NK: float32 [N, K]; hessian_KK: XᵀX of the inputs, of any scale. Raises InputError for one that is not finite
    or has no factor however much is added to its diagonal.
    """
    if isinstance(how, Codebook) and how.even:
        return how.of_even(gptq(weight_NK, hessian_KK, how.as_uniform()))
    columns = weight_NK.shape[1]
    missing = -columns % (4 * how.dims)
    weight = torch.nn.functional.pad(weight_NK, (0, missing))
    hessian = conditioned(torch.nn.functional.pad(hessian_KK, (0, missing, 0, missing)))
    mask = torch.from_numpy(alps(weight, hessian, how)) if isinstance(how, Sparse) else None
    inputs = _seen(hessian, how)
    book = torch.from_numpy(how.begun()).float() if how.entries else EIGHT_BITS
    most = max(LANES, SYSTEM // (-(-columns // inputs.wide)) ** 2)  # outputs whose systems of scales fit
    if not how.entries:
        done = _all(weight, mask, inputs, book, min(OUTPUTS, most))
    else:
        done, book = _with_codebook(weight, mask, inputs, book, most)
    codes, scales = (np.concatenate([one[place] for one in done]) for place in (0, 1))
    codes = codes[:, : vectors_of(columns, how.dims)]
    kept = None if mask is None else mask[:, :columns].numpy()
    if how.entries:
        entries = book.round().to(torch.int8).numpy()
        return Quantized(codes, scales, None, how.group, 0, entries, kept, columns)
    return Quantized(codes + np.uint8(1), scales, None, how.group, 128, None, kept)


Solved = tuple[Codes, NDArray[np.float16]]  # codes [N, V] and scales [N, G]


def _with_codebook(
    weight: Tensor, mask: Tensor | None, inputs: _Inputs, book: Tensor, most: int
) -> tuple[list[Solved], Tensor]:
    """Learn a codebook from some outputs, then the codes of all."""
    every = -(-len(weight) // min(LEARNED, most))
    sample = _start(weight[::every], None if mask is None else mask[::every], inputs, book)
    learned, book = _learn(sample, inputs, book)
    if every == 1:
        return [_compact(learned)], book
    return _all(weight, mask, inputs, book, min(OUTPUTS, most)), book


def _all(weight: Tensor, mask: Tensor | None, inputs: _Inputs, book: Tensor, together: int) -> list[Solved]:
    """The codes of all outputs, the codebook being fixed."""
    done = []
    for first in range(0, len(weight), together):
        rows = slice(first, first + together)
        begun = _start(weight[rows], None if mask is None else mask[rows], inputs, book)
        done.append(_compact(_solve(begun, inputs, book)))
    return done


def _compact(rows: _Rows) -> Solved:
    return rows.codes.to(torch.uint8).numpy(), rows.scales.half().numpy()


def _seen(hessian: Tensor, how: Codebook | Sparse) -> _Inputs:
    places = torch.from_numpy(inputs_of(len(hessian), how.dims))
    order = torch.argsort(hessian.diagonal()[places].sum(1), descending=True, stable=True)
    columns = places[order].reshape(-1)
    factor = inverse_factor(hessian[columns][:, columns])
    return _Inputs(hessian.float(), places, order, factor, how.group or len(hessian))


def _start(weight: Tensor, mask: Tensor | None, inputs: _Inputs, book: Tensor) -> _Rows:
    """Scales that give each group the spread that the codebook has and some more, or with even steps its reach."""
    kept = weight if mask is None else torch.where(mask, weight, 0.0)
    if len(book) == len(EIGHT_BITS):
        padded = torch.nn.functional.pad(kept, (0, -kept.shape[1] % inputs.wide))
        scales = padded.view(len(kept), -1, inputs.wide).abs().amax(2) / book.max()
    else:
        counted = inputs.hessian.diagonal().expand_as(weight)
        counted = counted if mask is None else counted * mask
        spread = group_sums(counted * kept**2, inputs.wide) / group_sums(counted, inputs.wide).clamp_min(1e-20)
        reach = 1 + REACH * math.log2(len(book)) / book.shape[1]
        scales = reach * (spread / book.square().mean()).sqrt()
    return _Rows(weight, torch.zeros(len(weight), len(inputs.places), dtype=torch.int64), as_half(scales), mask)


def _solve(rows: _Rows, inputs: _Inputs, book: Tensor) -> _Rows:
    """Codes and scales, the codebook being fixed."""
    rows = _round_in_order(rows, inputs, book)
    for _ in range(ROUNDS):
        rows = _descended(_with_scales(rows, inputs, book), inputs, book)
    return rows


def _learn(rows: _Rows, inputs: _Inputs, book: Tensor) -> tuple[_Rows, Tensor]:
    """Codes, scales and codebook, whose numbers are whole at last."""
    fixed = 1 if rows.mask is not None else 0  # entries that stay as they are: zero
    book = _means(rows, inputs, book, fixed)
    rows = _round_in_order(rows, inputs, book)
    for _ in range(ROUNDS):
        book = _with_gradients(rows, inputs, book, fixed)
        rows = _descended(_with_scales(rows, inputs, book), inputs, book)
    step = book.abs().max() / 127
    book = (book / step).round()
    rows = replace(rows, scales=as_half(rows.scales * step))
    return _descended(_with_scales(rows, inputs, book), inputs, book), book


def _levels(rows: _Rows, book: Tensor) -> Tensor:
    """What the codes mean before they are scaled, [N, K]."""
    levels = _spread(book[rows.codes])
    return levels if rows.mask is None else levels * rows.mask


def _along(rows: _Rows, inputs: _Inputs) -> Tensor:
    """Each input's scale, [N, K]."""
    return rows.scales.repeat_interleave(inputs.wide, 1)[:, : rows.weight.shape[1]]


def _lost(rows: _Rows, inputs: _Inputs, book: Tensor) -> Tensor:
    return rows.weight - _levels(rows, book) * _along(rows, inputs)


def _choose(target_dN: Tensor, scales_N: Tensor, metric_dd: Tensor, book: Tensor) -> Tensor:
    """The entry of least ‖(target − scale · entry) metric‖² for each output, [N]."""
    scales = torch.where(scales_N != 0, scales_N, 1.0)
    if len(book) == len(EIGHT_BITS):
        return (target_dN[0] / scales).round().clamp(-127, 127).long() + 127
    points = metric_dd.T @ (target_dN / scales)
    entries = book @ metric_dd
    return (points.T @ entries.T).sub_(0.5 * entries.square().sum(1)).argmax(1)


def _round_in_order(rows: _Rows, inputs: _Inputs, book: Tensor) -> _Rows:
    """Vector after vector, what is done wrong taken from those that are still to come."""
    dims = book.shape[1]
    columns = inputs.places[inputs.order].reshape(-1)
    rest = rows.weight.T[columns].contiguous()  # an input is a row here
    masks = None if rows.mask is None else rows.mask.T[columns].float()
    codes = torch.empty_like(rows.codes.T)
    for first in range(0, len(rest), BLOCK):
        block = rest[first : first + BLOCK]
        upper = inputs.factor[first : first + BLOCK, first : first + BLOCK]
        errors = torch.empty_like(block)
        for k in range(0, len(block), dims):
            vector = inputs.order[(first + k) // dims]
            own = slice(k, k + dims)
            inverse = torch.linalg.inv(upper[own, own]) if dims > 1 else 1 / upper[own, own]
            scales = rows.scales[:, inputs.places[vector, 0] // inputs.wide]
            found = _choose(block[own], scales, inverse, book)
            meant = book[found].T * scales
            if masks is not None:
                meant = meant * masks[first + k]
            codes[vector] = found
            errors[own] = inverse.T @ (block[own] - meant)
            block[k + dims :] -= upper[own, k + dims :].T @ errors[own]
        rest[first + BLOCK :] -= inputs.factor[first : first + BLOCK, first + BLOCK :].T @ errors
    return _masked(replace(rows, codes=codes.T.contiguous()), book)


def _descended(rows: _Rows, inputs: _Inputs, book: Tensor) -> _Rows:
    """Each vector was given the entry that is best beside all others, once."""
    dims, hessian = book.shape[1], inputs.hessian
    slope = (_lost(rows, inputs, book) @ hessian).T.contiguous()
    codes = rows.codes.T.contiguous()
    masks = None if rows.mask is None else rows.mask.T.float()
    for first in range(0, len(slope), BLOCK):
        vectors = range(first // dims, min(first + BLOCK, len(slope)) // dims)
        columns = inputs.places[vectors.start : vectors.stop].reshape(-1)
        square = hessian[columns][:, columns]
        block = slope[columns]
        changes = torch.empty_like(block)
        for k, vector in zip(range(0, len(block), dims), vectors, strict=True):
            own = slice(k, k + dims)
            scales = rows.scales[:, inputs.places[vector, 0] // inputs.wide]
            root = _root(square[own, own])
            meant = book[codes[vector]].T * scales
            step = torch.cholesky_solve(block[own], root)
            codes[vector] = _choose(meant + step, scales, root, book)
            changes[own] = book[codes[vector]].T * scales - meant
            if masks is not None:
                changes[own] *= masks[first + k]
            block -= square[:, own] @ changes[own]
        after = first + BLOCK
        slope[after:] -= hessian[after:, columns] @ changes
    return _masked(replace(rows, codes=codes.T.contiguous()), book)


def _root(square_dd: Tensor) -> Tensor:
    """The lower Cholesky factor of a vector's part of H; of its diagonal alone where rounding left it none."""
    root, failed = torch.linalg.cholesky_ex(square_dd)
    return square_dd.diagonal().sqrt().diag() if failed else root


def _masked(rows: _Rows, book: Tensor) -> _Rows:
    """What a mask drops has the code of zero; nothing else looks at it."""
    if rows.mask is None:
        return rows
    zero = int(book[:, 0].abs().argmin())
    return replace(rows, codes=torch.where(rows.mask, rows.codes, zero))


def _with_scales(rows: _Rows, inputs: _Inputs, book: Tensor) -> _Rows:
    """The scales with the least error, of each output where they do lower it."""
    levels = _levels(rows, book)
    solved = least_squares([levels], rows.weight, inputs.hessian, rows.scales, inputs.wide)
    fitted = replace(rows, scales=as_half(solved))
    errors = [error_of(_lost(one, inputs, book), inputs.hessian) for one in (fitted, rows)]
    return replace(rows, scales=torch.where((errors[0] < errors[1])[:, None], fitted.scales, rows.scales))


def _spread(vectors: Tensor) -> Tensor:
    """Of each input its number, [N, K] from [N, V, d]."""
    outputs, _, dims = vectors.shape
    return vectors.view(outputs, -1, 4, dims).transpose(2, 3).reshape(outputs, -1)


def _gathered(values: Tensor, dims: int) -> Tensor:
    """Of each vector its numbers, [N, V, d] from [N, K]."""
    return values.view(len(values), -1, dims, 4).transpose(2, 3).reshape(len(values), -1, dims)


def _means(rows: _Rows, inputs: _Inputs, book: Tensor, fixed: int) -> Tensor:
    """k-means of some vectors from a first codebook, each number counted by its scale and the size of its input."""
    dims = book.shape[1]
    scales = torch.where(_along(rows, inputs) != 0, _along(rows, inputs), 1.0)
    counted = scales.square() * inputs.hessian.diagonal()
    if rows.mask is not None:
        counted = counted * rows.mask
    points = _gathered(rows.weight / scales, dims).reshape(-1, dims)
    weights = _gathered(counted, dims).reshape(-1, dims)
    some = torch.from_numpy(np.random.default_rng(0).permutation(len(points))[:POINTS].copy())
    points, weights = points[some], weights[some] / weights[some].mean().clamp_min(1e-20)
    for _ in range(MEANS):
        codes = (weights * points @ book.T - 0.5 * (weights @ book.square().T)).argmax(1)
        sums, total = (torch.zeros_like(book).index_add_(0, codes, one) for one in (weights * points, weights))
        moved = torch.where(total > 1e-9, sums / total.clamp_min(1e-9), book)
        book = torch.cat((book[:fixed], moved[fixed:]))
    return book


def _with_gradients(rows: _Rows, inputs: _Inputs, book: Tensor, fixed: int) -> Tensor:
    """The codebook after some steps of conjugate gradients towards the one with the least error for these codes."""
    dims, scales = book.shape[1], _along(rows, inputs)
    if rows.mask is not None:
        scales = scales * rows.mask
    flat = rows.codes.reshape(-1)

    def collected(values_NK: Tensor) -> Tensor:
        vectors = _gathered(values_NK * scales, dims).reshape(-1, dims)
        sums = torch.zeros_like(book).index_add_(0, flat, vectors)
        sums[:fixed] = 0
        return sums

    def applied(change: Tensor) -> Tensor:
        return collected((_spread(change[rows.codes]) * scales) @ inputs.hessian)

    shape = collected(scales * inputs.hessian.diagonal()).clamp_min(1e-12)
    left = collected(_lost(rows, inputs, book) @ inputs.hessian)
    way = left / shape
    size = (left * way).sum()
    for _ in range(GRADIENTS):
        seen = applied(way)
        curve = (way * seen).sum()
        if not bool(curve > 0):
            break
        book = book + size / curve * way
        left = left - size / curve * seen
        next_size = (left * left / shape).sum()
        way = left / shape + next_size / size * way
        size = next_size
    return book
