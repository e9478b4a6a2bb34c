"""A model made ready to run: norms folded where that is exact, in the dtype and on the device of its session."""

from __future__ import annotations

import torch

from chinchilla_lm.models.transformer import Transformer
from chinchilla_lm.shorten.precompute import fold_norms


def prepare(model: Transformer, device: torch.device, dtype: torch.dtype) -> Transformer:
    """A copy of the model, without gradients; the given model, which may be in training, is not touched."""
    folded = fold_norms(model)
    with torch.device("meta"):
        ready = Transformer(model.config, model.dropped)
    _match(ready, folded)
    weights = {name: tensor.detach().to(device, dtype, copy=True) for name, tensor in folded.state_dict().items()}
    ready.load_state_dict(weights, assign=True)
    ready.tie()
    return ready.eval().requires_grad_(False)


def _match(ready: Transformer, folded: Transformer) -> None:
    """Give `ready` the parameters that `folded` has, and no others: folding takes norm weights away and adds biases."""
    wanted = dict(folded.named_parameters(remove_duplicate=False))
    for name, _ in list(ready.named_parameters(remove_duplicate=False)):
        if name not in wanted:
            _set(ready, name, None)
    for name, tensor in wanted.items():
        _set(ready, name, torch.nn.Parameter(tensor.detach().to("meta")))


def _set(model: Transformer, name: str, value: torch.nn.Parameter | None) -> None:
    owner, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(owner), attribute, value)
