"""Rounding a whole model on calibration text, link after link, each on what the rounded links in front of it leave.

Of a link only two matrices are large: the one its norm is for, and the one that writes into the stream. The inputs of
the second are those that the rounded first one gives. Only the streams of all calibration windows, one matrix's
products XᵀX and what its solution takes are in memory besides the model.

D hidden features, K inputs of a matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from chinchilla_lm.errors import InputError
from chinchilla_lm.models.batch import Batch
from chinchilla_lm.models.layers import Link
from chinchilla_lm.models.transformer import Transformer
from chinchilla_lm.pack.formats import Rounding
from chinchilla_lm.pack.gptq import gptq
from chinchilla_lm.pack.gptvq import solve_codes
from chinchilla_lm.pack.mixed import Mixed
from chinchilla_lm.pack.quantized import Quantized
from chinchilla_lm.pack.unfinished import Unfinished
from chinchilla_lm.pack.uniform import Uniform

PART = 4096  # outputs of a decoder that are rounded at a time


def solved(weight_NK: Tensor, hessian_KK: Tensor, how: Rounding) -> Quantized:
    """A matrix rounded for the inputs of `hessian_KK`: `gptq` or `solve_codes`. Raises InputError for a weight that is
    NaN or infinite, and as they do."""
    if not bool(torch.isfinite(weight_NK).all()):
        raise InputError("a matrix has a weight that is NaN or infinite; restore the checkpoint")
    if isinstance(how, Uniform):
        return gptq(weight_NK, hessian_KK, how)
    return solve_codes(weight_NK, hessian_KK, how)


class _Seen(Exception):
    """A pass that has come to the matrix in question need not go on."""


@dataclass(slots=True)
class _Stream:
    """One batch on its way through the links."""

    batch: Batch
    x_BTD: Tensor


class Solver:
    """Rounds the matrices of `model` in place; `rounded` has them by the name of the parameter.

    batches: of calibration text. formats: of every large matrix; those that do not round stay as they are. dtype: of
    the products of passes, float32 or bfloat16; sums stay in float32. unfinished: keeps what is done, and has what was
    done before. on_matrix: is told the name of each matrix that is done.
    """

    def __init__(
        self,
        model: Transformer,
        batches: Sequence[Batch],
        formats: Mixed,
        *,
        dtype: torch.dtype = torch.float32,
        unfinished: Unfinished | None = None,
        on_matrix: Callable[[str], None] = lambda name: None,
    ) -> None:
        self.model, self.dtype = model.eval(), dtype
        self.unfinished, self.on_matrix = unfinished, on_matrix
        self.names = {id(one): name for name, one in model.named_parameters(remove_duplicate=False)}
        self.rounded: dict[str, Quantized] = {}
        self.batches = batches
        roundings = {matrix: formats.of(matrix).rounding for matrix in model.matrices()}
        self.roundings = {matrix: how for matrix, how in roundings.items() if how is not None}
        # DeBERTa may multiply embeddings of distances by them as well, which are no tokens: rounded by themselves.
        shared = model.config.disentangled is not None and model.config.disentangled.shared
        self.unlike_text = {f"{name}.first" for name in model.link_names if shared and name.endswith(".attn")}

    @torch.no_grad()
    def run(self) -> dict[str, Quantized]:
        """All of them. Raises InputError for activations that are not finite."""
        linears = self.model.matrices()
        head, decoder = linears.get("head"), None
        if head is not None and "head" in self.roundings:
            decoder = head.weight.detach()
            if self.model.config.head.tied:  # what is embedded is rounded too, in another way than it will be at last
                decoder = decoder.clone()
                for rows, part in zip(head.weight.split(PART), decoder.split(PART), strict=True):
                    rows.copy_(torch.from_numpy(self.roundings["head"].round(part.numpy()).values()))
        streams = [_Stream(batch, self.model.embed(batch)[0]) for batch in self.batches]
        for module in self.model.links.values():
            for place in ("first", "second") if isinstance(module, Link) else ():
                matrix = f"{module.name}.{place}"
                if matrix in self.roundings:
                    linear, passes = linears[matrix], [partial(self._pass, module, stream) for stream in streams]
                    self._solve(matrix, linear, linear.weight.detach(), passes)
            for stream in streams:
                stream.x_BTD = self._pass(module, stream)
        if head is not None and decoder is not None:
            self._solve("head", head, decoder, [partial(self._decode, stream) for stream in streams])
        return self.rounded

    def _solve(self, matrix: str, linear: nn.Linear, weight_NK: Tensor, passes: Iterable[Callable[[], object]]) -> None:
        how, kept = self.roundings[matrix], self.unfinished
        found = None if kept is None else kept.get(matrix, linear.out_features, linear.in_features, how)
        if found is None and matrix in self.unlike_text:
            found = how.round(weight_NK.float().numpy())
        elif found is None:
            found = solved(weight_NK.float(), products(linear, self.batches, passes), how)
            if kept is not None:
                kept.put(matrix, found)
        linear.weight.copy_(torch.from_numpy(found.values()))
        self.rounded[self.names[id(linear.weight)]] = found
        self.on_matrix(matrix)

    def _pass(self, module: nn.Module, stream: _Stream) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.dtype is torch.bfloat16):
            x: Tensor = module(stream.x_BTD, self.model.embed(stream.batch)[1])
        return x.float()

    def _decode(self, stream: _Stream) -> Tensor:
        return self.model.head(self.model.finish(stream.x_BTD), stream.batch)


def products(linear: nn.Linear, batches: Sequence[Batch], passes: Iterable[Callable[[], object]]) -> Tensor:
    """XᵀX of a matrix's inputs X, [K, K] in float32, over all real tokens. passes: one for each batch, which need not
    come to an end behind the matrix."""
    total = torch.zeros(linear.in_features, linear.in_features)
    seen: list[Tensor] = []

    def see(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen.append(inputs[0].float())
        raise _Seen

    hook = linear.register_forward_pre_hook(see)
    try:
        for batch, one in zip(batches, passes, strict=True):
            with suppress(_Seen):
                one()
            x = seen.pop()
            rows = x.flatten(0, -2) if batch.mask is None else x[batch.mask]
            total.addmm_(rows.T, rows)
    finally:
        hook.remove()
    return total
