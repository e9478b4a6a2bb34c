"""What each link takes on this machine at the asked shape, by the clock.

The whole chain is walked again and again with a clock between the links, so each link is timed with its own weights and
with the caches as the pass leaves them; a link repeated in a loop would be flattered by a warm cache.
"""

from __future__ import annotations

import time

import torch
from torch import nn

from chinchilla_lm.models.batch import Batch
from chinchilla_lm.models.layers import Attention
from chinchilla_lm.models.transformer import Transformer
from chinchilla_lm.runtime.engine.served import NativeForward
from chinchilla_lm.runtime.measuring.operations import WARM_UP, LinkTimes, link_times, time_operations


def time_links(model: Transformer, batch: Batch, *, seconds: float = 4.0, min_rounds: int = 7) -> LinkTimes:
    """Median times over as many passes as fit into `seconds`, at least `min_rounds`."""
    names = model.link_names
    samples: dict[str, list[float]] = {name: [] for name in names}
    rest: list[float] = []
    started = time.perf_counter()
    with torch.inference_mode():
        for round_ in range(10_000):
            warm = round_ >= WARM_UP
            fixed, links = _timed_pass(model, batch, names)
            if warm:
                rest.append(fixed)
                for name, value in links.items():
                    samples[name].append(value)
            if len(rest) >= min_rounds and time.perf_counter() - started > seconds:
                break
    return link_times(samples, rest, _geometries(model))


def time_native_links(
    model: Transformer, served: NativeForward, batch: Batch, *, seconds: float = 4.0, min_rounds: int = 7
) -> LinkTimes:
    """The same of a model in the engine, which keeps the clock of its operations itself."""
    return time_operations(served.model, lambda: served.read(batch), _geometries(model), seconds, min_rounds)


def _timed_pass(model: Transformer, batch: Batch, names: list[str]) -> tuple[float, dict[str, float]]:
    """Microseconds of what is not a link, and of each link."""
    device = batch.ids.device
    links: dict[str, float] = {}
    begin = _clock(device)
    x, context = model.embed(batch)
    front = now = _clock(device)
    for name in names:
        x = model.link(name)(x, context)
        then, now = now, _clock(device)
        links[name] = (now - then) * 1e6
    model.head(model.finish(x), batch)
    return (front - begin + _clock(device) - now) * 1e6, links


def _clock(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _geometries(model: Transformer) -> dict[str, object]:
    return {name: _geometry(model.link(name)) for name in model.link_names}


def _geometry(link: nn.Module) -> object:
    window = link.window if isinstance(link, Attention) else None
    return type(link), window, tuple(tuple(parameter.shape) for parameter in link.parameters())
