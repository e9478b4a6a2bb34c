"""The measured cost of a removal against a plain pass of a model that truly lacks the links."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any, Literal, get_args

import pytest
import torch

from chinchilla_lm.data.batches import EncodedBatch
from chinchilla_lm.data.encoded import IGNORED
from chinchilla_lm.errors import InputError
from chinchilla_lm.models.batch import Batch
from chinchilla_lm.models.transformer import NormFate, Transformer
from chinchilla_lm.plan import chain
from chinchilla_lm.runtime.prepare import prepare
from chinchilla_lm.score.measure import Measure
from tests.score.calibration import BODIES, HEADS, calibration, mean, naive

NAMES = [link.name for link in chain(3)]
LOSSES: tuple[Literal["kl", "task"], ...] = ("kl", "task")


@pytest.fixture
def model(tiny_config, tiny_model) -> Callable[..., Transformer]:
    """A maker of random models in float32, by body and head."""

    def make(body: str = "pre", head: str = "text", **changes: Any) -> Transformer:
        return tiny_model(tiny_config(**{**BODIES[body], **HEADS[head], **changes}), dtype=torch.float32)

    return make


def some_sets(count: int, seed: int = 0) -> list[frozenset[str]]:
    """Random sets of links, one link and all of them among them."""
    source = random.Random(seed)
    sets = [frozenset(source.sample(NAMES, source.randint(1, 5))) for _ in range(count)]
    return [frozenset(("1.mlp",)), *sets, frozenset(NAMES)]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("body", BODIES)
def test_the_cost_is_that_of_a_model_without_the_links(model, body, head, loss):
    original, batches = model(body, head), calibration(head)
    measure = Measure(original, batches, loss)
    for dropped in some_sets(4):
        wanted = mean(naive(original, batches, measure.fates(dropped), loss))
        assert measure(dropped) == pytest.approx(wanted, rel=1e-3, abs=1e-5)
    assert abs(wanted) > 1e-3


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("head", HEADS)
def test_dropping_nothing_costs_exactly_nothing(model, head, loss):
    measure = Measure(model(head=head), calibration(head), loss)
    measure(frozenset(("0.attn",)))
    cost = measure.cost(frozenset())
    assert (cost.value, cost.low, cost.high) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("head", ["text", "tags"])
def test_kl_is_not_negative_and_the_rise_of_the_task_loss_may_be(model, head):
    original, batches = model(head=head), calibration(head)
    both = {loss: [Measure(original, batches, loss)(dropped) for dropped in some_sets(12)] for loss in LOSSES}
    assert min(both["kl"]) > 0
    assert min(both["task"]) < 0 < max(both["task"])


def test_a_post_norm_model_may_keep_or_lose_the_norm_of_a_dropped_link(model):
    original, batches = model("post", "tags"), calibration("tags")
    measure = Measure(original, batches)
    costs = {}
    for fate in get_args(NormFate):
        wanted = mean(naive(original, batches, {"1.attn": fate}, "kl"))
        costs[fate] = measure.cost(frozenset(("1.attn",)), {"1.attn": fate}).value
        assert costs[fate] == pytest.approx(wanted, rel=1e-3)
    assert costs["keep"] != pytest.approx(costs["lose"], rel=1e-2)
    measure.norms["1.attn"] = "lose"
    assert measure(frozenset(("1.attn",))) == costs["lose"]


def test_a_block_dropped_whole_loses_both_norms(model):
    measure = Measure(model("post", "tags"), calibration("tags"))
    measure.norms.update(dict.fromkeys(NAMES, "keep"))
    assert measure.fates(frozenset(("0.attn", "1.attn", "1.mlp"))) == {
        "0.attn": "keep",
        "1.attn": "lose",
        "1.mlp": "lose",
    }
    wanted = mean(naive(measure.model, measure.batches, {"1.attn": "lose", "1.mlp": "lose"}, "kl"))
    assert measure(frozenset(("1.attn", "1.mlp"))) == pytest.approx(wanted, rel=1e-3)
    assert Measure(model(), calibration()).fates(frozenset(("0.attn",))) == {"0.attn": "lose"}


@pytest.mark.parametrize("body", BODIES)
def test_neither_the_order_of_calls_nor_the_memory_changes_a_cost(model, body):
    original, batches, sets = model(body), calibration(), some_sets(10)
    first = Measure(original, batches)
    wanted = {dropped: first.cost(dropped) for dropped in sets}
    for memory in (1, 30_000, 10**9):
        measure = Measure(original, batches, prefix_bytes=memory)
        for dropped in (*reversed(sets), *sets):
            assert measure.cost(dropped) == wanted[dropped]
    norms: dict[str, NormFate] = dict.fromkeys(NAMES, "lose")
    fresh = Measure(original, batches).cost(sets[1], norms)
    assert first.cost(sets[1], norms) == fresh, "a stream behind another fate of a norm is another stream"


def test_remembered_streams_stay_within_the_memory(model):
    measure = Measure(model(), calibration(), prefix_bytes=30_000)
    for dropped in some_sets(10):
        measure(dropped)
        held = sum(x.numel() * x.element_size() for streams in measure._prefixes.streams.values() for x in streams)
        assert held == measure._prefixes.used <= 30_000
        assert len(measure._prefixes.streams) > 1


def test_what_lies_in_front_of_a_dropped_link_is_not_run_again(model):
    original, batches = model(), calibration()
    measure, runs = Measure(original, batches), []
    for name in NAMES:
        original.link(name).register_forward_hook(lambda module, given, result, name=name: runs.append(name))
    walked = [
        (("1.mlp",), {"0.attn", "0.mlp", "1.attn", "2.attn", "2.mlp"}),
        (("1.attn",), {"1.mlp", "2.attn", "2.mlp"}),
        (("1.mlp", "2.mlp"), {"2.attn"}),
        (("1.mlp", "2.mlp"), set()),
    ]
    for dropped, again in walked:
        runs.clear()
        measure(frozenset(dropped))
        assert set(runs) == again, dropped
        assert len(runs) == len(again) * len(batches)
    assert max(boundary for boundary, _ in measure._prefixes.streams) == 5, "behind 2.mlp nothing is kept"
    kept = [streams[0].data_ptr() for streams in measure._prefixes.streams.values()]
    assert len(set(kept)) == len(kept), "a stream is kept, and its memory counted, once"


def test_the_interval_is_the_normal_one_over_windows(model):
    original, batches = model(), calibration()
    dropped = frozenset(("0.mlp", "2.attn"))
    cost = Measure(original, batches).cost(dropped)
    windows = naive(original, batches, dict.fromkeys(dropped, "lose"), "kl")
    value, sizes = mean(windows), [len(window) for window in windows]
    deviations = [sum(window) - size * value for window, size in zip(windows, sizes, strict=True)]
    error = math.sqrt(sum(d * d for d in deviations) * 5 / 4) / sum(sizes)
    assert len(windows) == 5
    assert cost.low == pytest.approx(value - 1.96 * error, rel=1e-3)
    assert cost.high == pytest.approx(value + 1.96 * error, rel=1e-3)


def many_short(rows: int) -> list[EncodedBatch]:
    """Batches of one row of three tokens, two of them with a target."""
    ids = torch.randint(97, (rows, 3), generator=torch.Generator().manual_seed(5))
    return [EncodedBatch(Batch(row[None]), torch.tensor([[5, 7, IGNORED]]), [i]) for i, row in enumerate(ids)]


@pytest.mark.parametrize(("limit", "compared"), [(1000, 40), (40, 40), (39, 20), (10, 10), (7, 7), (1, 1)])
def test_at_most_so_many_positions_are_compared_from_all_over_the_data(model, limit, compared):
    original, batches = model(), many_short(20)
    measure = Measure(original, batches, max_positions=limit)
    windows = naive(original, batches, {"0.mlp": "lose"}, "kl")
    flat = [value for window in windows for value in window]
    assert len(flat) == 40
    chosen = flat[:: math.ceil(40 / limit)]
    assert len(chosen) == compared
    assert measure(frozenset(("0.mlp",))) == pytest.approx(sum(chosen) / len(chosen), rel=1e-3)


def test_a_model_that_is_ready_to_run_is_measured_too(model):
    """Its norms are folded away, and it is what will be served."""
    original, batches = model("pre", "tags"), calibration("tags")
    ready = prepare(original, torch.device("cpu"), torch.float32)
    dropped = frozenset(("0.attn", "2.mlp"))
    assert Measure(ready, batches)(dropped) == pytest.approx(Measure(original, batches)(dropped), rel=1e-3)
    wanted = mean(naive(ready, batches, dict.fromkeys(dropped, "lose"), "kl"))
    assert Measure(ready, batches)(dropped) == pytest.approx(wanted, rel=1e-3)


def test_the_streams_are_those_of_a_plain_walk(model):
    original, batches = model("sandwich"), calibration()
    streams = Measure(original, batches).streams()
    assert len(streams) == 7
    with torch.no_grad():
        for index, batch in enumerate(batches):
            x, context = original.embed(batch.batch)
            assert torch.equal(streams[0][index], x)
            assert torch.allclose(streams[6][index], original.run(x, context), atol=1e-5)


def test_tokens_are_counted(model):
    assert Measure(model(), calibration()).tokens == 7 + 5 + 2 + 20


def test_what_cannot_be_measured_is_an_input_error(model):
    with pytest.raises(InputError, match="0 calibration batches"):
        Measure(model(), [])
    empty = EncodedBatch(Batch(torch.ones(1, 4, dtype=torch.int64)), torch.full((1, 4), IGNORED), [0])
    with pytest.raises(InputError, match="0 calibration positions have a target"):
        Measure(model(), [empty])
    broken = model()
    with torch.no_grad():
        broken.link("1.mlp").norm.weight.fill_(math.nan)
    with pytest.raises(InputError, match="measured cost is nan: the model's outputs are not numbers"):
        Measure(broken, calibration())(frozenset(("0.attn",)))
