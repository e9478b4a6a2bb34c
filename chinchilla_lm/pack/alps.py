"""Which weights of a matrix to keep: ALPS (Meng et al. 2024), by the alternating direction method of multipliers.

It minimises tr((W − B) H (W − B)ᵀ) over matrices B that keep no more of any block than a sparse format has room for.
B, which has all weights, and D, which has only so many, are drawn together by a penalty ρ that grows as the choice
settles:

    B = (H + ρI)⁻¹ (H W − V + ρD),   D = the largest of each block of B + V/ρ,   V += ρ (B − D)

N outputs, K inputs.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from chinchilla_lm.pack.quantized import Mask
from chinchilla_lm.pack.sparse import Sparse

OUTPUTS = 2048  # that are chosen from at a time, a multiple of 16, so that memory does not grow with the matrix
PENALTY = 0.1  # of H with ones on its diagonal
TURNS, MOST = 3, 60  # after so many the penalty grows, and the last one
# By how much, where more than such a part of what is kept has changed.
GROWTH = ((0.1, 1.3), (0.005, 1.2), (0.0, 1.1))


def alps(weight_NK: Tensor, hessian_KK: Tensor, how: Sparse) -> Mask:
    """The mask, bool [N, K]. weight_NK: float32; hessian_KK: float64, sound (`hessian.conditioned`)."""
    sizes = hessian_KK.diagonal().sqrt()
    hessian = (hessian_KK / sizes / sizes[:, None]).float()
    spectrum = torch.linalg.eigh(hessian)
    masks = [_kept(part * sizes.float(), hessian, spectrum, how) for part in weight_NK.split(OUTPUTS)]
    return np.concatenate(masks)


def _kept(weight: Tensor, hessian: Tensor, spectrum: tuple[Tensor, Tensor], how: Sparse) -> Mask:
    """Of some outputs, whole blocks of them. spectrum: H's eigenvalues and eigenvectors."""
    (values, vectors), target = spectrum, weight @ hessian
    mask = torch.from_numpy(how.mask(weight.abs().numpy()))
    sparse, multiplier, penalty = weight * mask, torch.zeros_like(weight), PENALTY
    before = mask
    for turn in range(1, MOST + 1):
        dense = ((target - multiplier + penalty * sparse) @ vectors / (values + penalty)) @ vectors.T
        drawn = dense + multiplier / penalty
        mask = torch.from_numpy(how.mask(drawn.abs().numpy()))
        sparse = drawn * mask
        multiplier += penalty * (dense - sparse)
        if turn % TURNS == 0:
            changed = float((mask ^ before).float().mean() / (2 * mask.float().mean()).clamp_min(1e-9))
            if changed == 0:
                break
            penalty *= next(factor for part, factor in GROWTH if changed > part)
            before = mask
    kept: Mask = mask.numpy()
    return kept
