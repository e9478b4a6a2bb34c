"""The state of a half-finished training run, in one safetensors file: weights, Adam's moments, where it stands.

The file is written under a temporary name and renamed, so that whatever stops a run leaves the last whole state behind.
"""

from __future__ import annotations

import json
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from chinchilla_lm.errors import InputError
from chinchilla_lm.train.parallel import Parallel, parted_as, whole

# Seconds between two saved states: 1.6 GB for a model of 135 M parameters, so a few seconds' writing in five minutes.
STATE_INTERVAL_S = 300.0


@dataclass(slots=True)
class Place:
    """Where a run stands: `identity` hashes everything that decides its course, `step` counts optimiser steps done."""

    identity: str
    step: int = 0
    best: float | None = None
    best_step: int = 0
    history: list[dict[str, float]] = field(default_factory=list)


class Saving:
    """The file in which a run's state is kept, if any: whole tensors, whatever the layout, so that another may go on.

    Several processes come to each method together; the first one writes and reads.
    """

    def __init__(self, path: Path | None, parallel: Parallel, optimizer: torch.optim.Optimizer) -> None:
        self.path, self.parallel, self.optimizer = path, parallel, optimizer
        self._saved = time.monotonic()

    def save_in_time(self, best: dict[str, Tensor] | None, place: Place) -> None:
        """Save where the last time is STATE_INTERVAL_S ago."""
        if self.path is not None and self.parallel.here.agreed(time.monotonic() - self._saved > STATE_INTERVAL_S):
            self.save(best, place)
            self._saved = time.monotonic()

    @torch.no_grad()
    def save(self, best: dict[str, Tensor] | None, place: Place) -> None:
        """Write everything that a resumed run needs. Raises InputError where the disk refuses."""
        if self.path is None:
            return
        tensors: dict[str, Tensor] = {}

        def keep(name: str, tensor: Tensor) -> None:
            found = whole(tensor.detach())
            if self.parallel.here.first:
                tensors[name] = found.contiguous()

        for name, parameter in self.parallel.trained.named_parameters():
            keep(f"model/{name}", parameter)
            for moment, value in self.optimizer.state.get(parameter, {}).items():
                keep(f"adam/{moment}/{name}", value)
        for name, value in (best or {}).items():
            keep(f"best/{name}", value)
        if self.parallel.here.first:
            _write(self.path, tensors, place)

    def load(self, identity: str) -> tuple[Place, dict[str, Tensor] | None] | None:
        """Put a saved state back; None where there is none, or where it belongs to another run.

        Raises InputError for a file that is damaged.
        """
        if self.path is None:
            return None
        here = self.parallel.here
        found = _read(self.path, identity) if here.first else None
        place = here.agreed(None if found is None else found[0])
        if place is None:
            return None
        tensors = {} if found is None else found[1]
        about = here.agreed({name: (tuple(one.shape), one.dtype) for name, one in tensors.items()})
        try:
            return place, self._restore(tensors, about)
        except (KeyError, RuntimeError) as error:
            raise damaged(self.path, error) from error

    @torch.no_grad()
    def _restore(self, tensors: dict[str, Tensor], about: dict[str, Any]) -> dict[str, Tensor] | None:
        """Weights into the model, moments into the optimizer; returns the best weights so far."""
        parameters = dict(self.parallel.trained.named_parameters())
        if missing := [name for name in parameters if f"model/{name}" not in about]:
            raise KeyError(missing[0])
        best: dict[str, Tensor] = {}
        for name, (shape, dtype) in about.items():
            kind, _, rest = name.partition("/")
            moment, _, named = rest.partition("/") if kind == "adam" else ("", "", rest)
            parameter = parameters[named]
            tensor = tensors[name] if name in tensors else torch.empty(shape, dtype=dtype)
            tensor = tensor.to(parameter.device, copy=True)
            self.parallel.here.copied([tensor])
            if tensor.shape == parameter.shape:
                tensor = parted_as(parameter, tensor)
            if kind == "model":
                parameter.copy_(tensor)
            elif kind == "adam":
                self.optimizer.state[parameter][moment] = tensor
            else:
                best[rest] = tensor
        return best or None


def damaged(path: Path, error: Exception) -> InputError:
    """What is said of a state that cannot be read."""
    return InputError(f"{path} is damaged ({error}); delete it to start this stage again")


def _write(path: Path, tensors: dict[str, Tensor], place: Place) -> None:
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


def _read(path: Path, identity: str) -> tuple[Place, dict[str, Tensor]] | None:
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            place = Place(**json.loads((file.metadata() or {})["place"]))
            if place.identity != identity:
                return None
            return place, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise damaged(path, error) from error
