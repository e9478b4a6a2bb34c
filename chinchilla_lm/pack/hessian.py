"""What solvers share: H = XᵀX of a matrix's calibration inputs made sound, its factor, and scales by least squares.

N outputs, K inputs, G groups of inputs. Products in float32, factors in float64.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from chinchilla_lm.errors import InputError

# Of the mean of H's diagonal, added to it, as if the inputs had that much noise; ten times as much until it can be
# factored.
DAMPING = 0.01
MOST_DAMPING = 1e4
HALF_MOST = float(torch.finfo(torch.float16).max)


def conditioned(hessian_KK: Tensor) -> Tensor:
    """H in float64, its diagonal 1 in the mean before it is damped. Raises InputError for one that is not finite."""
    hessian = hessian_KK.double()
    if not bool(torch.isfinite(hessian).all()):
        raise InputError(
            "calibration gives activations that are NaN or infinite; restore the checkpoint, or pass other text"
        )
    mean = hessian.diagonal().mean()
    hessian = hessian / mean if mean > 0 else torch.zeros_like(hessian)
    hessian.diagonal().add_(DAMPING)
    return hessian


def inverse_factor(hessian_KK: Tensor) -> Tensor:
    """The upper Cholesky factor of the inverse of H, damped further until it has one; float32 [K, K]."""
    damping = 0.0
    while damping <= MOST_DAMPING:
        damped = hessian_KK.clone()
        damped.diagonal().add_(damping)
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not failed:
            upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
            if not failed and bool(torch.isfinite(upper).all()):
                return upper.float()
        damping = 10 * (damping or DAMPING)
    raise InputError("calibration gives inputs that no damping makes sound; pass other calibration data")


def error_of(lost_NK: Tensor, hessian_KK: Tensor) -> Tensor:
    """What the products of each output lose by this much of its weights, [N]."""
    return ((lost_NK @ hessian_KK) * lost_NK).sum(1)


def least_squares(kinds: Sequence[Tensor], weight_NK: Tensor, hessian_KK: Tensor, old: Tensor, wide: int) -> Tensor:
    """The numbers of each group of inputs with the least error, [N, kinds · G]: for each output (AᵀHA) θ = AᵀH w, where
    A has a column for each group of each kind, which holds what that number is multiplied by.

    kinds: [N, K] each, the levels of a scale, ones of a minimum; old: what they were, [N, kinds · G]; wide: inputs of a
    group.
    """
    outputs, inputs = weight_NK.shape
    groups = -(-inputs // wide)
    target = weight_NK @ hessian_KK
    size = groups * len(kinds)
    system, right = torch.zeros(outputs, size, size), torch.zeros(outputs, size)
    for kind, values in enumerate(kinds):
        for group in range(groups):
            part = slice(group * wide, (group + 1) * wide)
            row = kind * groups + group
            seen = values[:, part] @ hessian_KK[part]  # [N, K]
            for other, factors in enumerate(kinds):
                system[:, row, other * groups : (other + 1) * groups] = group_sums(seen * factors, wide)
            right[:, row] = (values[:, part] * target[:, part]).sum(1)
    # A little of what they were: a group whose levels are all zero decides nothing about its scale.
    weight = 1e-4 * system.diagonal(dim1=1, dim2=2).mean(1, keepdim=True).clamp_min(1e-20)
    system += torch.diag_embed(weight.expand(-1, size))
    solved = torch.linalg.solve_ex(system, (right + weight * old)[..., None])[0][..., 0]
    return torch.where(torch.isfinite(solved), solved, old)


def as_half(values: Tensor) -> Tensor:
    """Rounded to float16, within its range; float32."""
    return values.clamp(-HALF_MOST, HALF_MOST).half().float()


def group_sums(values_NK: Tensor, wide: int) -> Tensor:
    """[N, G]."""
    outputs, inputs = values_NK.shape
    return torch.nn.functional.pad(values_NK, (0, -inputs % wide)).view(outputs, -1, wide).sum(2)
