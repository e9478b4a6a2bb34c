"""What each link takes on this machine at the asked shape, by the clock: in one pass, or in a whole request.

The whole chain is walked again and again with a clock between the links, so each link is timed with its own weights and
with the caches as the pass leaves them; a link repeated in a loop would be flattered by a warm cache.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import nn

from chinchilla_lm.models.batch import Batch
from chinchilla_lm.models.cache import KVCache
from chinchilla_lm.models.layers import Attention
from chinchilla_lm.models.transformer import Transformer
from chinchilla_lm.runtime.engine.served import NativeForward
from chinchilla_lm.runtime.measuring.engines import write_native
from chinchilla_lm.runtime.measuring.operations import WARM_UP, LinkTimes, link_times, time_operations


def time_links(
    model: Transformer, batch: Batch, *, new_tokens: int = 0, seconds: float = 4.0, min_rounds: int = 7
) -> LinkTimes:
    """Median times over as many rounds as fit into `seconds`, at least `min_rounds`.

    A round is a pass over the batch; with `new_tokens` a request of a causal language model, which reads the batch into
    a cache and writes so many tokens, the likeliest each time.
    """
    names = model.link_names

    def round_() -> tuple[float, dict[str, float]]:
        return _timed_request(model, batch, names, new_tokens) if new_tokens else _timed_pass(model, batch, names)

    with torch.inference_mode():
        return link_times(*_rounds(names, round_, seconds, min_rounds), _geometries(model))


def time_native_links(
    model: Transformer,
    served: NativeForward,
    batch: Batch,
    *,
    new_tokens: int = 0,
    seconds: float = 4.0,
    min_rounds: int = 7,
) -> LinkTimes:
    """The same of a model in the engine, which keeps the clock of its operations itself.

    What a request takes beside them, the choice of a token and the calls, is no link's either.
    """
    ids = batch.ids.numpy()
    if new_tokens:
        return time_operations(
            served.model,
            lambda: write_native(served.model, ids, new_tokens),
            _geometries(model),
            seconds,
            min_rounds,
            whole=True,
        )
    return time_operations(served.model, lambda: served.read(batch), _geometries(model), seconds, min_rounds)


def _rounds(
    names: list[str], round_: Callable[[], tuple[float, dict[str, float]]], seconds: float, min_rounds: int
) -> tuple[dict[str, list[float]], list[float]]:
    """Microseconds of each link in every round behind the warm-up, and of all else."""
    samples: dict[str, list[float]] = {name: [] for name in names}
    rest: list[float] = []
    started = time.perf_counter()
    for number in range(10_000):
        fixed, links = round_()
        if number >= WARM_UP:
            rest.append(fixed)
            for name, value in links.items():
                samples[name].append(value)
        if len(rest) >= min_rounds and time.perf_counter() - started > seconds:
            break
    return samples, rest


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


def _timed_request(
    model: Transformer, batch: Batch, names: list[str], new_tokens: int
) -> tuple[float, dict[str, float]]:
    """Microseconds of what is not a link, and of each link, over the prompt and all steps behind it."""
    device, ids = batch.ids.device, batch.ids
    cache = KVCache(model, rows=ids.shape[0], capacity=ids.shape[1] + new_tokens)
    links = dict.fromkeys(names, 0.0)
    begin = _clock(device)
    for _ in range(new_tokens):
        x, context = model.embed(Batch(ids), cache)
        now = _clock(device)
        for name in names:
            x = model.link(name)(x, context)
            then, now = now, _clock(device)
            links[name] += (now - then) * 1e6
        cache.advance(ids.shape[1])
        ids = model.head.classify(model.finish(x[:, -1])).argmax(-1, keepdim=True)
    return (_clock(device) - begin) * 1e6 - sum(links.values()), links


def _clock(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _geometries(model: Transformer) -> dict[str, object]:
    return {name: _geometry(model.link(name)) for name in model.link_names}


def _geometry(link: nn.Module) -> object:
    window = link.window if isinstance(link, Attention) else None
    return type(link), window, tuple(tuple(parameter.shape) for parameter in link.parameters())
