"""Matrices of a packed model on a GPU, in place of torch's own modules.

T rows, N outputs, K inputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
import triton
from torch import Tensor, nn

from chinchilla_lm.models.transformer import Transformer
from chinchilla_lm.pack.panels import LANES
from chinchilla_lm.pack.quantized import Quantized
from chinchilla_lm.runtime.cuda import kernels
from chinchilla_lm.runtime.cuda.planes import STEP, planes_of

# Rows up to which codes are multiplied as they are; more are worth writing the matrix out for.
FEW = 64
# Outputs and programs of a product of few rows, and outputs of a tile that is written out. On an H200, 4096 × 4096 of
# 4 bits: 14.7 µs; with 32 outputs 20.5, with 128 15.0.
OUTPUTS, PROGRAMS, WRITTEN = 64, 512, 64
TOKENS = "embedding.tokens.weight"


class PackedMatrix(nn.Module):
    """A rounded matrix, its codes and scales buffers. dtype: of what comes out of it."""

    first: Tensor
    second: Tensor
    scales: Tensor
    minima: Tensor
    mask: Tensor
    book: Tensor

    def __init__(self, rounded: Quantized, dtype: torch.dtype) -> None:
        super().__init__()
        planes = planes_of(rounded)
        self.out_features, self.in_features = rounded.shape
        self.dtype = dtype
        none = torch.empty(0, dtype=torch.int32)
        for place, name in enumerate(("first", "second")):
            words = torch.from_numpy(planes.planes[place]) if place < len(planes.planes) else none
            self.register_buffer(name, words, persistent=False)
        for name, values in (
            ("scales", planes.scales_GN), ("minima", planes.minima_GN), ("mask", planes.mask), ("book", planes.book),
        ):  # fmt: skip
            self.register_buffer(name, none if values is None else torch.from_numpy(values), persistent=False)
        self.group = planes.group
        self.inputs = min(planes.group or STEP, STEP)  # of a tile
        self.meaning = {
            "BITS": planes.bits,
            "DIMS": planes.dims,
            "KEPT": planes.kept,
            "MIDDLE": planes.middle,
            "BOOK": planes.book is not None,
            "GROUP": planes.group,
            "MINIMA": planes.minima_GN is not None,
        }

    def product(self, x_TK: Tensor) -> Tensor:
        """x Ŵᵀ, [T, N], in the dtype of x."""
        if len(x_TK) > FEW:
            return F.linear(x_TK, self.values().to(x_TK.dtype))
        rows, outputs = len(x_TK), self.out_features
        columns, tiles = -(-outputs // OUTPUTS), -(-self.in_features // self.inputs)
        split = min(tiles, max(1, PROGRAMS // columns))
        sums = torch.empty(split, rows, outputs, dtype=torch.float32, device=x_TK.device)
        height = max(16, triton.next_power_of_2(rows))
        with _device_of(x_TK):
            kernels.product[(columns, split)](
                x_TK, sums, *self._codes(), rows, outputs, self.in_features, x_TK.stride(0),
                **self.meaning, ROWS=height, OUTPUTS=OUTPUTS, INPUTS=self.inputs, SPLIT=split, num_warps=4,
            )  # fmt: skip
        return (sums[0] if split == 1 else sums.sum(0)).to(x_TK.dtype)

    def values(self) -> Tensor:
        """What it means, [N, K]."""
        return self._written(self._codes(), self.out_features)

    def rows(self, outputs_T: Tensor) -> Tensor:
        """What some of its outputs mean, [T, K]."""
        if self.mask.numel() == 0:
            chosen = [part[:, outputs_T].contiguous() if part.ndim == 2 else part for part in self._codes()]
            return self._written(chosen, len(outputs_T))
        panels, steps = outputs_T // LANES, self.mask.shape[0]
        masks = self.mask[:, panels].contiguous()
        codes = self.first.view(steps, self.mask.shape[1], -1)[:, panels].contiguous().view(-1)
        members = (panels[:, None] * LANES + torch.arange(LANES, device=panels.device)).view(-1)
        scales = self.scales[:, members.clamp_max(self.out_features - 1)].contiguous()
        written = self._written((codes, self.second, scales, self.minima, masks, self.book), len(members))
        return written.view(-1, LANES, self.in_features)[torch.arange(len(panels)), outputs_T % LANES]

    def _written(self, codes: Sequence[Tensor], outputs: int) -> Tensor:
        found = torch.empty(outputs, self.in_features, dtype=self.dtype, device=self.scales.device)
        grid = (-(-outputs // WRITTEN), -(-self.in_features // self.inputs))
        with _device_of(found):
            kernels.written_out[grid](
                found, *codes, outputs, self.in_features, **self.meaning, OUTPUTS=WRITTEN, INPUTS=self.inputs
            )  # fmt: skip
        return found

    def _codes(self) -> tuple[Tensor, ...]:
        return self.first, self.second, self.scales, self.minima, self.mask, self.book


def _device_of(tensor: Tensor) -> AbstractContextManager[object]:
    """Triton runs on the current device, whichever a tensor is on."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


class PackedLinear(PackedMatrix):
    """In place of `nn.Linear`."""

    bias: Tensor | None

    def __init__(self, rounded: Quantized, bias_N: Tensor | None, dtype: torch.dtype) -> None:
        super().__init__(rounded, dtype)
        self.register_buffer("bias", bias_N, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """[..., N] of [..., K]."""
        found = self.product(x.reshape(-1, self.in_features))
        if self.bias is not None:
            found = found + self.bias
        return found.view(*x.shape[:-1], self.out_features)


class PackedEmbedding(nn.Module):
    """The rows of a packed decoder as token embeddings."""

    def __init__(self, decoder: PackedMatrix) -> None:
        super().__init__()
        self.decoder = decoder
        # Says in which dtype the stream begins, and where; it has no rows.
        self.register_buffer("weight", torch.empty(0, decoder.in_features, dtype=decoder.dtype), persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        """[..., K] of ids [...]."""
        found: Tensor = self.decoder.rows(ids.reshape(-1)).view(*ids.shape, -1)
        return found


def pack_into(model: Transformer, codes: Mapping[str, Quantized], dtype: torch.dtype) -> None:
    """Put the codes of a packed model in place of its rounded matrices, which are on the CPU and prepared
    without folding.

    codes: by the name of the parameter, as `unpack_with_codes` has them.
    """
    for name, rounded in codes.items():
        path = name.removesuffix(".weight")
        if path == TOKENS.removesuffix(".weight"):
            continue  # the decoder's
        parent, _, place = path.rpartition(".")
        linear = model.get_submodule(path)
        assert isinstance(linear, nn.Linear)
        assert torch.equal(linear.weight, torch.from_numpy(rounded.values()).to(linear.weight.dtype)), name
        bias = None if linear.bias is None else linear.bias.detach()
        setattr(model.get_submodule(parent), place, PackedLinear(rounded, bias, dtype))
    if TOKENS in codes:
        decoder = model.head.get_submodule("output")
        assert isinstance(decoder, PackedMatrix)
        setattr(model.embedding, "tokens", PackedEmbedding(decoder))  # noqa: B010 (another type than the model's own)
