"""Rounding a matrix so that its products change least: GPTQ (Frantar et al. 2023), and scales fitted to its codes.

A product's squared error over the calibration inputs X is tr((W − Ŵ) H (W − Ŵ)ᵀ) with H = XᵀX. Inputs are rounded one
after another, those with the largest H[k, k] first, and what one column's rounding does wrong is taken from the columns
that are still to come: with U the upper Cholesky factor of H⁻¹, w[j] −= e · U[k, j] for e = (w[k] − ŵ[k]) / U[k, k].

Scales are chosen before, so that the order of the columns and the groups of inputs have nothing to do with each other:
of several shrunken spans the one with the least error, each input counted by H[k, k]. Then they and the codes take
turns. The codes being fixed, the error is a quadratic function of scales and minima, and its minimum a small linear
system for every output. The scales being fixed, each input in turn gets the code that is best beside all others
(coordinate descent, as in QuantEase, Behdin et al. 2023), which never raises the error.

N outputs, K inputs, G groups of inputs. Products in float32, factors in float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from chinchilla_lm.pack.hessian import as_half, conditioned, error_of, inverse_factor, least_squares
from chinchilla_lm.pack.quantized import Quantized
from chinchilla_lm.pack.uniform import Uniform

# Columns that are rounded before the error of all of them is taken from the rest.
BLOCK = 64
# Outputs that are solved at a time, at most, so that what lies between stays in the cache, and floats of their systems.
OUTPUTS, SYSTEM = 2048, 1 << 26
# Of a group's span, what a scale may cover.
SHRINKS = tuple(1.0 - 0.02 * step for step in range(18))
# Turns of scales and codes.
ROUNDS = 2


@dataclass(frozen=True, slots=True)
class _Inputs:
    """What calibration says of K inputs: H with its diagonal, the order in which they are rounded, and, in that order,
    the upper Cholesky factor of H⁻¹. float32 [K, K] and [K]; int64 [K]."""

    hessian: Tensor
    diagonal: Tensor
    order: Tensor
    factor: Tensor


@dataclass(frozen=True, slots=True)
class _Grid:
    """Scales [N, G] and minima [N, G] (None where symmetric), float32 with values that float16 has."""

    how: Uniform
    scales: Tensor
    minima: Tensor | None

    def at(self, columns: Tensor) -> tuple[Tensor, Tensor | None]:
        """Of some inputs, [N, columns]."""
        groups = columns // self.how.group if self.how.group else torch.zeros_like(columns)
        return self.scales[:, groups], None if self.minima is None else self.minima[:, groups]


def gptq(weight_NK: Tensor, hessian_KK: Tensor, how: Uniform) -> Quantized:
    """The codes, scales and minima of a matrix that serve the inputs of `hessian_KK` best, as far as GPTQ finds them.

    weight_NK: float32 [N, K]; hessian_KK: XᵀX of the inputs, of any scale. Raises InputError for one that is not finite
    or has no factor however much is added to its diagonal.
    """
    hessian = conditioned(hessian_KK)
    diagonal = hessian.diagonal()
    order = torch.argsort(diagonal, descending=True, stable=True)
    factor = inverse_factor(hessian[order][:, order])
    inputs = _Inputs(hessian.float(), diagonal.float(), order, factor)
    unknown = (-(-weight_NK.shape[1] // how.group) if how.group else 1) * (2 if how.asymmetric else 1)
    together = max(1, min(OUTPUTS, SYSTEM // unknown**2))
    solved = [_solve(rows, inputs, how) for rows in weight_NK.split(together)]
    codes, scales = torch.cat([codes for codes, _ in solved]), torch.cat([grid.scales for _, grid in solved])
    minima = [grid.minima for _, grid in solved if grid.minima is not None]
    stored = torch.float16 if how.group else torch.float32
    return Quantized(
        codes.to(torch.uint8).numpy(),
        scales.to(stored).numpy(),
        torch.cat(minima).to(stored).numpy() if minima else None,
        how.group,
        how.middle,
    )


def _solve(weight_NK: Tensor, inputs: _Inputs, how: Uniform) -> tuple[Tensor, _Grid]:
    """Codes [N, K], and their grid, of some outputs, which do not depend on the others."""
    hessian = inputs.hessian
    best = _nearest(weight_NK, how)  # where nothing is better, as for an input that is never seen
    least = _error(weight_NK, *best, hessian)
    grid = _spans(weight_NK, inputs.diagonal, how)
    codes = _round_in_order(weight_NK, inputs, grid)
    error = _error(weight_NK, codes, grid, hessian)
    best, least = _chosen(error < least, (codes, grid), best), torch.minimum(error, least)
    for _ in range(ROUNDS):
        codes, grid = best
        fitted = _fitted(weight_NK, codes, grid, hessian)
        error = _error(weight_NK, codes, fitted, hessian)
        codes, grid = _chosen(error < least, (codes, fitted), best)
        best = _descended(weight_NK, codes, grid, hessian), grid
        least = _error(weight_NK, *best, hessian)
    return best


def _nearest(weight_NK: Tensor, how: Uniform) -> tuple[Tensor, _Grid]:
    """Each weight by itself."""
    rounded = how.round(weight_NK.numpy())
    minima = None if rounded.minima_NG is None else torch.from_numpy(rounded.minima_NG).float()
    return torch.from_numpy(rounded.codes_NV).float(), _Grid(how, torch.from_numpy(rounded.scales_NG).float(), minima)


def _spans(weight_NK: Tensor, diagonal_K: Tensor, how: Uniform) -> _Grid:
    """Scales and minima of the span of each group that rounds with the least error."""
    outputs, inputs = weight_NK.shape
    wide = how.group or inputs
    missing = -inputs % wide
    groups = torch.nn.functional.pad(weight_NK, (0, missing)).view(outputs, -1, wide)
    counted = torch.nn.functional.pad(diagonal_K, (0, missing)).view(1, -1, wide)
    high, low = groups.amax(2), groups.amin(2)
    peak = torch.maximum(high, -low)
    signed = torch.where(high >= -low, high, low)
    best: tuple[Tensor, Tensor, Tensor | None] | None = None
    for shrink in SHRINKS:
        spans: list[tuple[Tensor, Tensor | None]]
        if how.asymmetric:
            spans = [((high - low) * shrink / how.most, low * shrink)]
        else:
            spans = [(peak * shrink / (how.most - how.middle), None)]
            if how.bits < 8:
                spans.append((signed * shrink / -how.middle, None))
        for scales, minima in spans:
            scales, minima = _stored(scales, how), None if minima is None else _stored(minima, how)
            at = None if minima is None else minima[..., None]
            codes = _codes(groups, scales[..., None], at, how)
            error = ((_meant(codes, scales[..., None], at, how) - groups).square() * counted).sum(2)
            if best is None:
                best = error, scales, minima
                continue
            better = error < best[0]
            lows = None if minima is None or best[2] is None else torch.where(better, minima, best[2])
            best = torch.where(better, error, best[0]), torch.where(better, scales, best[1]), lows
    assert best is not None
    return _Grid(how, best[1], best[2])


def _stored(values: Tensor, how: Uniform) -> Tensor:
    """As the format keeps them: float16 where there are groups."""
    return as_half(values) if how.group else values


def _codes(values: Tensor, scales: Tensor, minima: Tensor | None, how: Uniform) -> Tensor:
    shifted = values if minima is None else values - minima
    steps = shifted / torch.where(scales != 0, scales, torch.ones_like(scales))
    return steps.round_().add_(how.middle).clamp_(how.least, how.most)


def _meant(codes: Tensor, scales: Tensor, minima: Tensor | None, how: Uniform) -> Tensor:
    values = (codes - how.middle) * scales
    return values if minima is None else values + minima


def _round_in_order(weight_NK: Tensor, inputs: _Inputs, grid: _Grid) -> Tensor:
    """Codes [N, K] in the matrix's own order of inputs, float32."""
    order_K, factor_KK = inputs.order, inputs.factor
    rest = weight_NK[:, order_K].clone()
    codes = torch.empty_like(rest)
    for first in range(0, rest.shape[1], BLOCK):
        columns = order_K[first : first + BLOCK]
        scales_NB, minima_NB = grid.at(columns)
        block = rest[:, first : first + BLOCK].T.contiguous()  # a column is a row here
        upper = factor_KK[first : first + BLOCK, first : first + BLOCK]
        errors = torch.empty_like(block)
        for k in range(len(columns)):
            scales, minima = scales_NB[:, k], None if minima_NB is None else minima_NB[:, k]
            found = _codes(block[k], scales, minima, grid.how)
            codes[:, first + k] = found
            errors[k] = (block[k] - _meant(found, scales, minima, grid.how)) / upper[k, k]
            block[k + 1 :].addr_(upper[k, k + 1 :], errors[k], alpha=-1)
        rest[:, first + BLOCK :] -= errors.T @ factor_KK[first : first + BLOCK, first + BLOCK :]
    found = torch.empty_like(codes)
    found[:, order_K] = codes
    return found


def _descended(weight_NK: Tensor, codes_NK: Tensor, grid: _Grid, hessian_KK: Tensor) -> Tensor:
    """Codes [N, K] after each input was given the best one beside all others, once."""
    every = torch.arange(weight_NK.shape[1])
    codes, slope = codes_NK.clone(), (weight_NK - _meant(codes_NK, *grid.at(every), grid.how)) @ hessian_KK
    for first in range(0, len(every), BLOCK):
        columns = every[first : first + BLOCK]
        scales_NB, minima_NB = grid.at(columns)
        square = hessian_KK[first : first + BLOCK, first : first + BLOCK]
        block = slope[:, first : first + BLOCK].T.contiguous()  # a column is a row here
        changes = torch.empty_like(block)
        for k in range(len(columns)):
            scales, minima = scales_NB[:, k], None if minima_NB is None else minima_NB[:, k]
            meant = _meant(codes[:, first + k], scales, minima, grid.how)
            found = _codes(meant + block[k] / square[k, k], scales, minima, grid.how)
            codes[:, first + k] = found
            changes[k] = _meant(found, scales, minima, grid.how) - meant
            block.addr_(square[k], changes[k], alpha=-1)
        slope[:, first + BLOCK :] -= changes.T @ hessian_KK[first : first + BLOCK, first + BLOCK :]
    return codes


def _error(weight_NK: Tensor, codes_NK: Tensor, grid: _Grid, hessian_KK: Tensor) -> Tensor:
    """Of each output, [N]."""
    columns = torch.arange(weight_NK.shape[1])
    return error_of(weight_NK - _meant(codes_NK, *grid.at(columns), grid.how), hessian_KK)


def _chosen(better_N: Tensor, new: tuple[Tensor, _Grid], old: tuple[Tensor, _Grid]) -> tuple[Tensor, _Grid]:
    """Of each output the new codes, scales and minima where they are better."""
    (codes, grid), (old_codes, old_grid) = new, old
    where = better_N[:, None]
    scales, minima = torch.where(where, grid.scales, old_grid.scales), None
    if grid.minima is not None and old_grid.minima is not None:
        minima = torch.where(where, grid.minima, old_grid.minima)
    return torch.where(where, codes, old_codes), _Grid(grid.how, scales, minima)


def _fitted(weight_NK: Tensor, codes_NK: Tensor, grid: _Grid, hessian_KK: Tensor) -> _Grid:
    """The scales and minima with the least error for these codes."""
    steps, how = codes_NK - grid.how.middle, grid.how
    kinds = [steps] if grid.minima is None else [steps, torch.ones_like(steps)]
    old = grid.scales if grid.minima is None else torch.cat((grid.scales, grid.minima), 1)
    wide, groups = how.group or weight_NK.shape[1], grid.scales.shape[1]
    solved = least_squares(kinds, weight_NK, hessian_KK, old, wide)
    minima = None if grid.minima is None else _stored(solved[:, groups:], how)
    return _Grid(how, _stored(solved[:, :groups], how), minima)
