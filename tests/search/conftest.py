"""Small random cost tables, costs that interact, and brute force over all subsets of links."""

from collections.abc import Callable
from itertools import combinations

import numpy as np
import numpy.typing as npt
import pytest

from chinchilla_lm.plan import CostEntry, CostTable, Norm, chain, pair

MakeTable = Callable[..., CostTable]
Interacting = Callable[..., tuple[CostTable, Callable[[frozenset[str]], float]]]


def _table(
    costs: dict[str, float], times: dict[str, float], blocks: dict[int, float], fixed_us: float, post_norm: bool = False
) -> CostTable:
    norm: Norm | None = "keep" if post_norm else None
    lost: Norm | None = "lose" if post_norm else None
    entries = [CostEntry((name,), cost, cost, cost, times[name], norm) for name, cost in costs.items()]
    for block, cost in blocks.items():
        time_us = sum(times[name] for name in pair(block))
        entries.append(CostEntry(pair(block), cost, cost, cost, time_us, lost, cosine=0.1 + 0.01 * block))
    return CostTable(
        metric="kl",
        unit="nats/token",
        num_blocks=len(costs) // 2,
        entries=tuple(entries),
        total_us=fixed_us + sum(times.values()),
        fixed_us=fixed_us,
        shape={"batch": 1, "tokens": 128},
        device="cpu",
        dtype="float32",
        tokens=4096,
        model_sha256="m",
        documents_sha256="d",
        post_norm=post_norm,
    )


@pytest.fixture
def table_of() -> MakeTable:
    """table_of(costs, times, blocks, fixed_us): a table written out by hand."""
    return _table


@pytest.fixture
def random_table() -> MakeTable:
    """random_table(rng, num_blocks): whole costs (some negative if asked) and times, so that all sums are exact."""

    def make(rng: np.random.Generator, num_blocks: int, least: int = 0, post_norm: bool = False) -> CostTable:
        names = [link.name for link in chain(num_blocks)]
        costs = {name: float(rng.integers(least, 30)) for name in names}
        times = {name: float(rng.integers(0, 9)) for name in names}
        joint = {block: float(rng.integers(least, 60)) for block in range(num_blocks) if rng.random() < 0.6}
        return _table(costs, times, joint, float(rng.integers(0, 10)), post_norm)

    return make


@pytest.fixture
def interacting() -> Interacting:
    """interacting(seed, num_blocks): cost(S) = ½‖Σ u_j‖², links correlated, with the table that scoring would give."""

    def make(seed: int, num_blocks: int) -> tuple[CostTable, Callable[[frozenset[str]], float]]:
        rng = np.random.default_rng(seed)
        names = [link.name for link in chain(num_blocks)]
        shared = rng.normal(size=(3, 8))
        u_NC = rng.normal(size=(len(names), 3)) @ shared + 0.5 * rng.normal(size=(len(names), 8))
        vectors = dict(zip(names, u_NC, strict=True))

        def measure(dropped: frozenset[str]) -> float:
            total = sum((vectors[name] for name in sorted(dropped)), np.zeros(8))
            return 0.5 * float(total @ total)

        costs = {name: measure(frozenset({name})) for name in names}
        blocks = {block: measure(frozenset(pair(block))) for block in range(num_blocks)}
        times = {name: float(rng.uniform(1, 3)) for name in names}
        return _table(costs, times, blocks, 2.0), measure

    return make


@pytest.fixture
def subsets() -> Callable[[CostTable], list[frozenset[str]]]:
    """All sets of links that could be dropped."""

    def make(table: CostTable) -> list[frozenset[str]]:
        names = table.links
        return [frozenset(some) for size in range(len(names) + 1) for some in combinations(names, size)]

    return make


@pytest.fixture
def brute() -> Callable[..., float]:
    """brute(table, budget_us, changes_from, max_changes): least additive cost over all subsets; inf if none fits."""

    def search(
        table: CostTable, budget_us: float, start: frozenset[str] = frozenset(), max_changes: int | None = None
    ) -> float:
        names = table.links
        drop_SN: npt.NDArray[np.bool_] = (np.arange(2 ** len(names))[:, None] >> np.arange(len(names))) % 2 == 1
        single = {entry.links[0]: entry for entry in table.entries if len(entry.links) == 1}
        joint = {entry.links: entry.cost for entry in table.entries if len(entry.links) == 2}
        time = table.fixed_us + (~drop_SN) @ np.array([single[name].time_us for name in names])
        cost = np.zeros(len(drop_SN))
        for block in range(table.num_blocks):
            attn, mlp = drop_SN[:, 2 * block], drop_SN[:, 2 * block + 1]
            alone = [single[name].cost for name in pair(block)]
            both = joint.get(pair(block), alone[0] + alone[1])
            cost += np.select([attn & mlp, attn, mlp], [both, alone[0], alone[1]], 0.0)
        allowed = time <= budget_us
        if max_changes is not None:
            now_N = np.array([name in start for name in names])
            allowed &= (drop_SN != now_N).sum(axis=1) <= max_changes
        return float(cost[allowed].min()) if allowed.any() else np.inf

    return search
