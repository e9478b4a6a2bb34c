"""What training lowers: the task's own loss, and the distances of a student from the original that teaches it.

N positions with a target, V outputs (vocabulary or labels), T temperature. Everything is computed in float32.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from chinchilla_lm.data.encode import IGNORED


def task_loss(logits: Tensor, targets: Tensor, smoothing: float = 0.0) -> Tensor:
    """Mean cross-entropy in nats over the positions that have a target; squared error for one output (ranking).

    logits [..., V]; targets int64 [...] with IGNORED, or float [...] for a single output.
    """
    if targets.is_floating_point():
        return F.mse_loss(logits.float().squeeze(-1), targets)
    flat = logits.float().reshape(-1, logits.shape[-1])
    return F.cross_entropy(flat, targets.reshape(-1), ignore_index=IGNORED, label_smoothing=smoothing)


def logit_kl(student_NV: Tensor, teacher_NV: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(teacher ‖ student) in nats a position, times T² so that its gradient keeps its scale (Hinton et al. 2015).

    A single output (ranking) is the mean of a normal distribution of variance 1, whose KL is half the squared error.
    """
    if student_NV.shape[-1] == 1:
        return 0.5 * squared_error(student_NV, teacher_NV)
    student = F.log_softmax(student_NV.float() / temperature, dim=-1)
    teacher = F.log_softmax(teacher_NV.float() / temperature, dim=-1)
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2


def squared_error(student_NV: Tensor, teacher_NV: Tensor) -> Tensor:
    """The sum over steps of (y − M(x))², a position: y are the original's outputs, M(x) the student's."""
    return (student_NV.float() - teacher_NV.float()).square().sum(-1).mean()


def hidden_error(
    student: Sequence[Tensor], teacher: Sequence[Tensor], mask_BT: Tensor | None, spreads: Sequence[float]
) -> Tensor:
    """Mean squared error of hidden states [B, T, D] at shared boundaries, in units of the teacher's variance there.

    spreads: the teacher's variance at each boundary, which does not depend on the batch: the mean over a batch is then
    the mean over its parts.
    """
    losses = []
    for ours, theirs, spread in zip(student, teacher, spreads, strict=True):
        ours, theirs = ours.float(), theirs.float()
        if mask_BT is not None:
            ours, theirs = ours[mask_BT], theirs[mask_BT]
        losses.append((ours - theirs).square().mean() / spread)
    return torch.stack(losses).mean()


def spread_of(stream: Tensor, mask_BT: Tensor | None) -> float:
    """The variance of a hidden state [B, T, D] over its real positions and features."""
    real = stream.float() if mask_BT is None else stream.float()[mask_BT]
    return max(1e-6, float(real.var()))
