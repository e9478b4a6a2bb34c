"""The state of a half-finished training run, in one safetensors file: weights, Adam's moments, where it stands.

The file is written under a temporary name and renamed, so that whatever stops a run leaves the last whole state behind.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from chinchilla_lm.errors import InputError


@dataclass(slots=True)
class Place:
    """Where a run stands: `identity` hashes everything that decides its course, `step` counts optimiser steps done."""

    identity: str
    step: int = 0
    best: float | None = None
    best_step: int = 0
    history: list[dict[str, float]] = field(default_factory=list)


def save_state(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, best: dict[str, Tensor] | None, place: Place
) -> None:
    """Write everything that a resumed run needs."""
    tensors: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        tensors[f"model/{name}"] = parameter.detach().contiguous()
        for moment, value in optimizer.state.get(parameter, {}).items():
            tensors[f"adam/{moment}/{name}"] = value.detach().contiguous()
    for name, value in (best or {}).items():
        tensors[f"best/{name}"] = value.contiguous()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".writing")
    try:
        save_file(tensors, temporary, metadata={"place": json.dumps(asdict(place))})
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def load_state(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, identity: str
) -> tuple[Place, dict[str, Tensor] | None] | None:
    """Put a saved state back; None where there is none, or where it belongs to another run."""
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            place = Place(**json.loads((file.metadata() or {})["place"]))
            if place.identity != identity:
                return None
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} is damaged ({error}); delete it to start this stage again") from error
    best: dict[str, Tensor] = {}
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[f"model/{name}"])
    for name, tensor in tensors.items():
        kind, _, rest = name.partition("/")
        if kind == "best":
            best[rest] = tensor
        elif kind == "adam":
            moment, _, parameter_name = rest.partition("/")
            optimizer.state[parameters[parameter_name]][moment] = tensor
    return place, best or None
