"""What each link takes in the engine, by the engine's own clock of its operations. Without torch."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from chinchilla_lm.runtime.engine.native import NativeModel

WARM_UP = 3  # rounds before any counts


@dataclass(frozen=True, slots=True)
class LinkTimes:
    """Microseconds of one pass or request: all of it, what is not a link, and each link that is left."""

    total_us: float
    fixed_us: float
    link_us: dict[str, float]


def time_operations(
    model: NativeModel,
    work: Callable[[], object],
    geometry: Mapping[str, object],
    seconds: float,
    min_rounds: int = 7,
    *,
    whole: bool = False,
) -> LinkTimes:
    """Median times over as many rounds as fit into `seconds`, at least `min_rounds`.

    work: one pass of the model, or a request. geometry: of each link that is left; see `link_times`. whole: what the
    work takes beside the engine's operations counts too, as no link's.
    """
    samples: dict[str, list[float]] = {name: [] for name in geometry}
    rest: list[float] = []
    started = time.perf_counter()
    for round_ in range(10_000):
        begun = time.perf_counter()
        work()
        taken = time.perf_counter() - begun
        operations, other = model.take_seconds()
        if round_ >= WARM_UP:
            for name, values in samples.items():
                values.append(1e6 * operations[name])
            links = sum(operations[name] for name in samples)
            rest.append(1e6 * ((taken if whole else other + sum(operations.values())) - links))
        if len(rest) >= min_rounds and time.perf_counter() - started > seconds:
            break
    return link_times(samples, rest, geometry)


def link_times(samples: Mapping[str, list[float]], rest: list[float], geometry: Mapping[str, object]) -> LinkTimes:
    """The medians, averaged over links of one geometry: they take the same time, and what is left of the noise is not
    something to search on. samples, rest: microseconds of each round."""
    groups: dict[object, list[str]] = {}
    for name in samples:
        groups.setdefault(geometry[name], []).append(name)
    medians = {name: statistics.median(values) for name, values in samples.items()}
    link_us = {name: statistics.fmean(medians[one] for one in group) for group in groups.values() for name in group}
    # The sum of medians, not the median of sums: where most passes are disturbed somewhere, what is left of the latter
    # beside the links would be taken for time that no plan can save.
    fixed_us = statistics.median(rest)
    return LinkTimes(fixed_us + sum(link_us.values()), fixed_us, link_us)
