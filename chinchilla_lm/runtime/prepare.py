"""A model made ready to run: norms folded where that is exact, in the dtype and on the device of its session."""

from __future__ import annotations

import torch

from chinchilla_lm.models.transformer import Transformer
from chinchilla_lm.runtime.memory import keep_freed_memory
from chinchilla_lm.shorten.precompute import fold_norms
from chinchilla_lm.shorten.surgery import outline


def prepare(model: Transformer, device: torch.device, dtype: torch.dtype, fold: bool = True) -> Transformer:
    """A copy of the model, without gradients; the given model, which may be in training, is not touched.

    fold: False where matrices are to stay what their codes mean.
    """
    keep_freed_memory()
    folded = fold_norms(model) if fold else model
    ready = outline(folded)
    weights = {name: tensor.detach().to(device, dtype, copy=True) for name, tensor in folded.state_dict().items()}
    ready.load_state_dict(weights, assign=True)
    ready.tie()
    return ready.eval().requires_grad_(False)
