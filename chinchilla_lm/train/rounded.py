"""A rounded matrix whose scales, minima and codebook are trained, while its codes and its mask stay as they are.

    w[n, k] = level[n, k] · scales[n, g] + minima[n, g],   level = codebook[code] or code − middle, 0 where masked

Autograd of that expression would keep the levels, and what each step between makes, in float32. Here only the small
parts are kept, and the backward pass looks the levels up again, some rows at a time:

    ∂scales[n, g] = Σ_k ∂w · level,    ∂minima[n, g] = Σ_k ∂w,    ∂codebook[e, d] = Σ over its codes of ∂w · scales

What is trained are steps θ from where the solver left off, each in a unit of its own (a scale in parts of itself, an
entry in parts of the codebook's spread, a minimum in steps of its group), so that one rate serves all matrices.

N outputs, K inputs, G groups of inputs, V codes of d inputs, E entries.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chinchilla_lm.pack.codebook import LARGEST
from chinchilla_lm.pack.quantized import Quantized
from chinchilla_lm.pack.sides import finite_half

# Weights that are looked up at a time, so that what lies between stays in the cache.
PIECE = 1 << 20


@dataclass(frozen=True, slots=True)
class _Codes:
    """What stays: codes uint8 [N, V], mask bool [N, K] or None, the code of zero, inputs of a group (0: all), and K."""

    codes_NV: Tensor
    mask_NK: Tensor | None
    middle: int
    group: int
    inputs: int

    def take(self, rows: Tensor) -> _Codes:
        """Those of some outputs, int64."""
        return replace(self, codes_NV=self.codes_NV[rows], mask_NK=None if self.mask_NK is None else self.mask_NK[rows])

    def pieces(self) -> Iterator[slice]:
        """Its outputs, some at a time."""
        outputs, step = len(self.codes_NV), max(1, PIECE // self.inputs)
        for first in range(0, outputs, step):
            yield slice(first, min(first + step, outputs))

    def levels(self, rows: slice, book_ED: Tensor | None, dtype: torch.dtype) -> Tensor:
        """What the codes of some outputs mean before they are scaled, [n, K]."""
        codes = self.codes_NV[rows]
        if book_ED is None:
            levels = codes.to(dtype).sub_(self.middle)
        elif book_ED.shape[1] == 1:
            levels = torch.index_select(book_ED[:, 0], 0, codes.int().view(-1)).view(codes.shape)
        else:  # `pack.quantized.inputs_of` says where the numbers of a code stand
            index, dims = codes.int().view(-1), book_ED.shape[1]
            blocks = book_ED.new_empty(len(codes), codes.shape[1] // 4, dims, 4)
            for place in range(dims):
                numbers = torch.index_select(book_ED[:, place].contiguous(), 0, index)
                blocks[:, :, place] = numbers.view(len(codes), -1, 4)
            levels = blocks.view(len(codes), -1)[:, : self.inputs]
        return levels if self.mask_NK is None else levels.masked_fill(~self.mask_NK[rows], 0)

    def entry_sums(self, values_NK: Tensor, rows: slice, book_ED: Tensor) -> Tensor:
        """The sum of what stands where each number of each entry does, over some outputs, [E, d]."""
        codes, (entries, dims) = self.codes_NV[rows], book_ED.shape
        if self.mask_NK is not None:
            values_NK = values_NK.masked_fill(~self.mask_NK[rows], 0)
        index = codes.long().view(-1)
        if dims == 1:
            return torch.zeros_like(book_ED[:, 0]).scatter_add_(0, index, values_NK.reshape(-1))[:, None]
        padded = F.pad(values_NK, (0, codes.shape[1] * dims - self.inputs))
        blocks = padded.view(len(codes), -1, dims, 4)
        sums = [book_ED.new_zeros(entries).scatter_add_(0, index, blocks[:, :, d].reshape(-1)) for d in range(dims)]
        return torch.stack(sums, dim=1)

    def by_group(self, values_NK: Tensor) -> Tensor:
        """[n, G, inputs of a group], the last group filled up with zeros."""
        wide = self.group or self.inputs
        return F.pad(values_NK, (0, -self.inputs % wide)).view(len(values_NK), -1, wide)


class RoundedMatrix(nn.Module):
    """`rounded`, to be trained. learned: whether the entries of its codebook are, or only what stands beside them.

    In evaluation mode the weights are those of `quantized`: what is judged is what will be packed.
    """

    codes_NV: Tensor
    mask_NK: Tensor | None
    start_scales: Tensor
    start_minima: Tensor | None
    start_codebook: Tensor | None
    unit_codebook: Tensor | None

    def __init__(self, rounded: Quantized, learned: bool = True) -> None:
        super().__init__()
        self.rounded = rounded
        scales = torch.from_numpy(rounded.scales_NG).float()
        mask, minima, book = rounded.mask_NK, rounded.minima_NG, rounded.codebook_ED
        entries = None if book is None else torch.from_numpy(book).float()
        unit = None
        if entries is not None and learned:
            unit = entries.square().mean().sqrt().expand_as(entries).clone()
            if mask is not None:
                unit[0] = 0.0  # the code of zero, with which blocks are filled up
        parts = {
            "codes_NV": torch.from_numpy(rounded.codes_NV),
            "mask_NK": None if mask is None else torch.from_numpy(mask),
            "start_scales": scales,
            "start_minima": None if minima is None else torch.from_numpy(minima).float(),
            "start_codebook": entries,
            "unit_codebook": unit,
        }
        for name, part in parts.items():
            self.register_buffer(name, part, persistent=False)
        self.scales = nn.Parameter(torch.zeros_like(scales))
        self.minima = None if minima is None else nn.Parameter(torch.zeros_like(scales))
        self.codebook = None if unit is None or entries is None else nn.Parameter(torch.zeros_like(entries))

    def forward(self, dtype: torch.dtype | None = None, rows: Tensor | None = None) -> Tensor:
        """The matrix, [N, K], in `dtype` or that of its parameters. rows: of which outputs, all where it is None."""
        scales, minima, book = self._parts() if self.training else self._stored()
        about = self.rounded
        codes = _Codes(self.codes_NV, self.mask_NK, about.middle, about.group, about.shape[1])
        if rows is not None:
            codes, scales, minima = codes.take(rows), scales[rows], None if minima is None else minima[rows]
        found: Tensor = _Weight.apply(codes, dtype or scales.dtype, scales, minima, book)
        return found

    def quantized(self) -> Quantized:
        """What it is now: scales and minima as they are stored, entries as bytes, the largest number among them 127.
        The matrix that it began with, where no step has been taken."""
        if not any(bool(steps.any()) for steps in self.parameters()):
            return self.rounded
        scales, minima, book = self._stored()
        kind = self.rounded.scales_NG.dtype
        return replace(
            self.rounded,
            scales_NG=scales.numpy().astype(kind),
            minima_NG=None if minima is None else minima.numpy().astype(kind),
            codebook_ED=None if book is None else book.to(torch.int8).numpy(),
        )

    def _parts(self) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Scales [N, G], minima [N, G] and codebook [E, d] as they are trained."""
        scales, minima, book = self.start_scales * (1 + self.scales), self.start_minima, self.start_codebook
        if minima is not None and self.minima is not None:
            minima = minima + self.start_scales.abs() * self.minima
        if book is not None and self.codebook is not None and self.unit_codebook is not None:
            book = book + self.unit_codebook * self.codebook
        return scales, minima, book

    @torch.no_grad()
    def _stored(self) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The same as they are stored. The scales take over how large the entries have become, so that these have all
        of their 8 bits."""
        scales, minima, book = self._parts()
        if book is not None and self.codebook is not None and bool(self.codebook.any()):
            largest = book.abs().max() / LARGEST
            scales, book = scales * largest, (book / largest).round().clamp(-LARGEST, LARGEST)
        return self._as_stored(scales), None if minima is None else self._as_stored(minima), book

    def _as_stored(self, values_NG: Tensor) -> Tensor:
        kind = self.rounded.scales_NG.dtype
        stored = finite_half(values_NG.numpy()) if kind == "float16" else values_NG.numpy().astype(kind)
        return torch.from_numpy(stored).to(values_NG.dtype)


class _Weight(torch.autograd.Function):
    """[N, K] of scales, minima and codebook."""

    @staticmethod
    def forward(
        ctx: Any,
        codes: _Codes,
        dtype: torch.dtype,
        scales_NG: Tensor,
        minima_NG: Tensor | None,
        book_ED: Tensor | None,
    ) -> Tensor:
        ctx.codes = codes
        ctx.save_for_backward(scales_NG, minima_NG, book_ED)
        found = torch.empty(len(scales_NG), codes.inputs, dtype=dtype)
        for rows in codes.pieces():
            values = codes.by_group(codes.levels(rows, book_ED, scales_NG.dtype)) * scales_NG[rows, :, None]
            if minima_NG is not None:
                values += minima_NG[rows, :, None]
            found[rows] = values.view(len(values), -1)[:, : codes.inputs]
        return found

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        codes: _Codes = ctx.codes
        scales_NG, minima_NG, book_ED = ctx.saved_tensors
        of_scales = torch.empty_like(scales_NG)
        of_minima = None if minima_NG is None else torch.empty_like(minima_NG)
        of_book = torch.zeros_like(book_ED) if ctx.needs_input_grad[4] else None
        for rows in codes.pieces():
            grouped = codes.by_group(gradients[0][rows].to(scales_NG.dtype))
            levels = codes.by_group(codes.levels(rows, book_ED, scales_NG.dtype))
            of_scales[rows] = (grouped * levels).sum(2)
            if of_minima is not None:
                of_minima[rows] = grouped.sum(2)
            if of_book is not None:
                scaled = (grouped * scales_NG[rows, :, None]).view(len(grouped), -1)[:, : codes.inputs]
                of_book += codes.entry_sums(scaled, rows, book_ED)
        return None, None, of_scales, of_minima, of_book
