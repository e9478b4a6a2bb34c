"""What can be multiplied once instead of at every token: the weights of norms, into the matrices behind them.

In a pre-norm link the norm's output goes nowhere but into one matrix W (query, key and value together, or gate and up):

    W (z * g + b) + c  =  (W diag(g)) z + (W b + c)        z: centred and scaled input, g, b: the norm's weight and bias

so g moves into the columns of W, b into its bias, and the norm only centres and scales. The same holds for the final
norm and the head's first matrix; pooling in between is a mean or a choice of rows and lets it through.

Some norms stay as they are. A post-norm model's output is itself the residual stream, so nothing may move. The second
norm of a sandwich, and the norms of query and key, act on what a matrix has made: their divisor depends on the whole
vector, so no factor can move back through it, and forward stands a sum or a rotation. A final norm in front of a
decoder that is also the embedding stays too: the embedding must not be scaled.

B rows, T positions, D features, O outputs of a matrix.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from chinchilla_lm.models.layers import Norm
from chinchilla_lm.models.transformer import Transformer


def fold_norms(model: Transformer) -> Transformer:
    """A new model that computes the same function with weightless norms where that is exact; `model` is not modified.

    Every tensor that does not change is shared with `model`. Products are taken in float64 and rounded once to the
    model's dtype, so fold before casting to bfloat16. The result is for running: its state no longer has the tensors
    that a checkpoint names. A post-norm model comes back as it is, the same object.
    """
    if model.config.post_norm:
        return model
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    folded = copy.deepcopy(model, shared)  # tensors in the memo are taken for copied
    with torch.no_grad():
        for name in folded.link_names:
            link = folded.link(name)
            if link.norm is not None:
                _fold(link.norm, link.first)
        first = None if folded.config.head.tied else folded.head.dense or folded.head.output
        if folded.norm is not None and first is not None:
            _fold(folded.norm, first)
    return folded


def _fold(norm: Norm, linear: nn.Linear) -> None:
    """Move the norm's weight [D] and bias [D] into a matrix [O, D]; a norm without them is left alone."""
    matrix_OD, bias = linear.weight, linear.bias
    if norm.bias is not None:
        added_O = matrix_OD.double() @ norm.bias.double()
        linear.bias = _like(added_O if bias is None else added_O + bias.double(), matrix_OD)
        norm.bias = None
    if norm.weight is not None:
        scale_D = norm.weight.double() + (1.0 if norm.unit_offset else 0.0)
        linear.weight = _like(matrix_OD.double() * scale_D, matrix_OD)
        norm.weight = None


def _like(value: Tensor, old: Tensor) -> nn.Parameter:
    return nn.Parameter(value.to(old.dtype), requires_grad=old.requires_grad)
