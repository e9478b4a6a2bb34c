"""What each link takes on this machine at the asked shape, by the clock: in one pass, or in a whole request.

The whole chain is walked again and again with a clock between the links, so each link is timed with its own weights and
with the caches as the pass leaves them; a link repeated in a loop would be flattered by a warm cache. Links of the same
geometry take the same time, so their medians are averaged: what is left of the noise is not something to search on.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from chinchilla_lm.models.batch import Batch
from chinchilla_lm.models.cache import KVCache
from chinchilla_lm.models.layers import Attention
from chinchilla_lm.models.transformer import Transformer
from chinchilla_lm.runtime.engine.served import NativeForward
from chinchilla_lm.runtime.measuring.engines import write_native

WARM_UP = 3


@dataclass(frozen=True, slots=True)
class LinkTimes:
    """Microseconds of one pass or request: all of it, what is not a link, and each link that is left."""

    total_us: float
    fixed_us: float
    link_us: dict[str, float]


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
        return _link_times(model, *_rounds(names, round_, seconds, min_rounds))


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
    names = model.link_names

    def round_() -> tuple[float, dict[str, float]]:
        begun = time.perf_counter()
        if new_tokens:
            write_native(served.model, batch.ids.numpy(), new_tokens)
        else:
            served.read(batch)
        taken = time.perf_counter() - begun
        operations, rest = served.model.take_seconds()
        links = {name: 1e6 * operations.pop(name) for name in names}
        return (1e6 * taken - sum(links.values()) if new_tokens else 1e6 * (rest + sum(operations.values()))), links

    return _link_times(model, *_rounds(names, round_, seconds, min_rounds))


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


def _link_times(model: Transformer, samples: dict[str, list[float]], rest: list[float]) -> LinkTimes:
    link_us = _average_alike(model, {name: statistics.median(values) for name, values in samples.items()})
    # The sum of medians, not the median of sums: where most passes are disturbed somewhere, what is left of the latter
    # beside the links would be taken for time that no plan can save.
    fixed_us = statistics.median(rest)
    return LinkTimes(fixed_us + sum(link_us.values()), fixed_us, link_us)


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


def _average_alike(model: Transformer, medians: dict[str, float]) -> dict[str, float]:
    groups: dict[object, list[str]] = {}
    for name in medians:
        groups.setdefault(_geometry(model.link(name)), []).append(name)
    return {name: statistics.fmean(medians[other] for other in group) for group in groups.values() for name in group}


def _geometry(link: nn.Module) -> object:
    window = link.window if isinstance(link, Attention) else None
    return type(link), window, tuple(tuple(parameter.shape) for parameter in link.parameters())
