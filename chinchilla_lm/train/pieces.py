"""The mean of a loss over positions whose logits would be too large to hold at once.

The logits of 1,024 positions over a vocabulary of 49,152 are 200 MB in float32, autograd keeps several such, and all go
back to the system after each step. Here a piece of the positions has its logits, loss and gradient before the next
piece begins. Forward and backward of head and KL, 1,024 × 576, one core: 0.6 s against 2.6 s, the same gradient.

N positions, D hidden features, V outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from chinchilla_lm.models.head import Head

# Logits at once: 128 positions of a vocabulary of 49,152, 25 MB in float32, which the allocator keeps. On a GPU, whose
# every call costs as much as many products, 4,096 positions.
LOGITS = 128 * 49_152
GPU_LOGITS = 4096 * 49_152

# (logits [n, V], which of the N positions they are) → mean loss of these positions
PieceLoss = Callable[[Tensor, slice], Tensor]
# (hidden states [n, D], the tensors that are trained) → logits [n, V]
Classify = Callable[..., Tensor]


def mean_over_positions(head: Head, hidden_ND: Tensor, loss: PieceLoss) -> Tensor:
    """The mean of `loss` over N positions, with gradients for the hidden states and the head's weights."""
    assert head.output is not None
    trained = [parameter for parameter in head.parameters() if parameter.requires_grad]
    return mean_in_pieces(lambda piece, *_: head.classify(piece), head.output.out_features, trained, hidden_ND, loss)


def mean_in_pieces(
    classify: Classify, outputs: int, trained: Sequence[Tensor], hidden_ND: Tensor, loss: PieceLoss
) -> Tensor:
    """The same with any head of so many outputs, with gradients for the tensors in `trained`, which it is given."""
    if not len(hidden_ND):  # of a part of a batch without a target: 0, with a gradient of 0 for what the others train
        return sum((one.sum() * 0.0 for one in trained), hidden_ND.sum() * 0.0).float()
    size = max(1, (GPU_LOGITS if hidden_ND.is_cuda else LOGITS) // outputs)
    if len(hidden_ND) <= size:
        return loss(classify(hidden_ND, *trained), slice(0, len(hidden_ND)))
    if not torch.is_grad_enabled():
        parts = [slice(start, min(start + size, len(hidden_ND))) for start in range(0, len(hidden_ND), size)]
        means = [loss(classify(hidden_ND[part], *trained), part) * (part.stop - part.start) for part in parts]
        return torch.stack(means).sum() / len(hidden_ND)
    found: Tensor = _Pieces.apply(classify, loss, size, hidden_ND, *trained)
    return found


class _Pieces(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, classify: Classify, loss: PieceLoss, size: int, hidden_ND: Tensor, *trained: Tensor
    ) -> Tensor:
        total = hidden_ND.new_zeros((), dtype=torch.float32)
        of_hidden: list[Tensor] = []
        # Sums of many pieces, in float32 at least.
        of_trained = [torch.zeros_like(one, dtype=torch.promote_types(one.dtype, torch.float32)) for one in trained]
        for start in range(0, len(hidden_ND), size):
            part = slice(start, min(start + size, len(hidden_ND)))
            with torch.enable_grad():
                piece = hidden_ND[part].detach().requires_grad_()
                value = loss(classify(piece, *trained), part) * (len(piece) / len(hidden_ND))
                first, *others = torch.autograd.grad(value, [piece, *trained])
            total += value.detach()
            of_hidden.append(first)
            for sum_, one in zip(of_trained, others, strict=True):
                sum_ += one
        ctx.save_for_backward(torch.cat(of_hidden), *of_trained)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, None, *(gradients[0] * saved for saved in ctx.saved_tensors)
