"""The state of a half-finished training run, in one safetensors file: weights, Adam's moments, where it stands.

The file is written under a temporary name and renamed, so that whatever stops a run leaves the last whole state behind.
"""

from __future__ import annotations

import json
from contextlib import suppress
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
    """Write everything that a resumed run needs. Raises InputError where the disk refuses."""
    tensors: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        tensors[f"model/{name}"] = parameter.detach().contiguous()
        for moment, value in optimizer.state.get(parameter, {}).items():
            tensors[f"adam/{moment}/{name}"] = value.detach().contiguous()
    for name, value in (best or {}).items():
        tensors[f"best/{name}"] = value.contiguous()
    temporary = path.with_name(path.name + ".writing")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, temporary, metadata={"place": json.dumps(asdict(place))})
        temporary.replace(path)
    except (SafetensorError, OSError) as error:
        raise InputError(f"cannot write {path} ({error}); free room or pass another -o") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def load_state(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, identity: str
) -> tuple[Place, dict[str, Tensor] | None] | None:
    """Put a saved state back; None where there is none, or where it belongs to another run.

    Raises InputError for a file that is damaged.
    """
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            place = Place(**json.loads((file.metadata() or {})["place"]))
            if place.identity != identity:
                return None
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return place, _restore(tensors, model, optimizer)
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{path} is damaged ({error}); delete it to start this stage again") from error


def _restore(
    tensors: dict[str, Tensor], model: nn.Module, optimizer: torch.optim.Optimizer
) -> dict[str, Tensor] | None:
    """Weights into the model, moments into the optimizer; returns the best weights so far."""
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
            parameter = parameters[parameter_name]
            optimizer.state[parameter][moment] = tensor.to(parameter.device, copy=True)
    return best or None
