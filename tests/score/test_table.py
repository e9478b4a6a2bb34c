"""The cost table: every link and block once, each at its own measured cost, with the better fate of its norm."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from chinchilla_lm.console import Console
from chinchilla_lm.models.transformer import Transformer
from chinchilla_lm.plan import CostTable, chain, pair
from chinchilla_lm.runtime.measuring.operations import LinkTimes
from chinchilla_lm.score.measure import Measure
from chinchilla_lm.score.table import Circumstances, score
from tests.score.calibration import BODIES, HEADS, calibration

NAMES = [link.name for link in chain(3)]
TIMES = LinkTimes(100.0, 40.0, {name: 5.0 + 2 * index for index, name in enumerate(NAMES)})
FACTS = Circumstances({"batch": 2, "tokens": 9}, "cpu", "float32", "m" * 64, "d" * 64)


@pytest.fixture
def measure(tiny_config, tiny_model) -> Callable[..., Measure]:
    """A maker of measures on random models, by body."""

    def make(body: str = "pre", head: str = "tags", seed: int = 0) -> Measure:
        config = tiny_config(**{**BODIES[body], **HEADS[head]})
        return Measure(tiny_model(config, dtype=torch.float32, seed=seed), calibration(head))

    return make


def scored(measure: Measure) -> CostTable:
    return score(measure, TIMES, FACTS, Console(quiet=True))


@pytest.mark.parametrize("body", BODIES)
def test_every_link_and_every_block_is_dropped_for_real(measure, body):
    ours = measure(body)
    table, fresh = scored(ours), measure(body)
    fresh.norms = ours.norms
    assert [entry.links for entry in table.entries] == [(name,) for name in NAMES] + [pair(block) for block in range(3)]
    for entry in table.entries:
        cost = fresh.cost(frozenset(entry.links))
        assert (entry.cost, entry.low, entry.high) == (cost.value, cost.low, cost.high)
        assert entry.time_us == sum(TIMES.link_us[name] for name in entry.links)
    assert table.post_norm is (body == "post")


def test_the_better_fate_of_each_norm_is_chosen(measure):
    chosen = set()
    for seed in range(3):
        table, fresh = scored(measure("post", seed=seed)), measure("post", seed=seed)
        for name in NAMES:
            costs = {fate: fresh.cost(frozenset((name,)), {name: fate}).value for fate in ("keep", "lose")}
            assert table.entry(name).norm == min(costs, key=lambda fate: costs[fate])
            assert table.cost(name) == min(costs.values())
            chosen.add(table.entry(name).norm)
        assert all(entry.norm == "lose" for entry in table.entries if len(entry.links) == 2)
    assert chosen == {"keep", "lose"}


def test_a_pre_norm_table_names_no_norms(measure):
    table = scored(measure("pre"))
    assert table.norms is None
    assert all(entry.norm is None for entry in table.entries)


def test_the_table_says_where_it_comes_from_and_survives_a_file(measure, tmp_path):
    ours = measure("post")
    table = scored(ours)
    table.save(tmp_path / "costs.json")
    assert CostTable.load(tmp_path / "costs.json") == table
    assert (table.metric, table.unit, table.tokens) == ("kl", "nats/position", ours.tokens)
    assert (table.total_us, table.fixed_us, table.shape) == (100.0, 40.0, {"batch": 2, "tokens": 9})
    assert (table.model_sha256, table.documents_sha256) == ("m" * 64, "d" * 64)
    task = Measure(ours.model, ours.batches, "task")
    assert scored(task).metric == "task_loss"


def walk(model: Transformer, ids: torch.Tensor) -> list[torch.Tensor]:
    """The stream of one text at every boundary."""
    from chinchilla_lm.models.batch import Batch

    x, context = model.embed(Batch(ids))
    streams = [x[0]]
    for position in range(6):
        x = model.run(x, context, position, position + 1)
        streams.append(x[0])
    return streams


def test_cosines_are_those_of_the_tokens_not_of_the_padding(measure):
    ours = measure("pre")
    table = scored(ours)
    streams: list[list[torch.Tensor]] = []
    with torch.no_grad():
        for batch in ours.batches:
            for row, length in enumerate(batch.batch.lengths().tolist()):
                streams.append(walk(ours.model, batch.batch.ids[row : row + 1, :length]))
    for entry in table.entries:
        start = NAMES.index(entry.links[0])
        stop = start + len(entry.links)
        similar = torch.cat([F.cosine_similarity(text[start], text[stop], dim=-1) for text in streams])
        assert entry.cosine == pytest.approx(1 - similar.mean().item(), abs=1e-4)
