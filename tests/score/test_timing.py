"""Times of links, measured with links that are slow on purpose: a busy machine only ever adds to a sleep."""

import time

import pytest
import torch

from chinchilla_lm.models.batch import Batch
from chinchilla_lm.score.timing import time_links


def asleep(milliseconds: float):
    return lambda module, given, result: time.sleep(milliseconds / 1000)


@pytest.fixture
def slow(tiny_config, tiny_model):
    """Attentions that take 3 ms, MLPs that take 1 ms, an embedding and a head that take 2 ms each."""
    model = tiny_model(tiny_config(), {"1.attn": "lose"}, dtype=torch.float32)
    for name in model.link_names:
        model.link(name).register_forward_hook(asleep(3 if name.endswith("attn") else 1))
    for rest in (model.embedding, model.head):
        rest.register_forward_hook(asleep(2))
    return model


def test_each_link_has_its_time_and_the_rest_is_fixed(slow):
    begun = time.perf_counter()
    times = time_links(slow, Batch(torch.ones(1, 4, dtype=torch.int64)), seconds=0.0, min_rounds=9)
    passed_us = (time.perf_counter() - begun) * 1e6
    assert set(times.link_us) == {"0.attn", "0.mlp", "1.mlp", "2.attn", "2.mlp"}
    assert all(times.link_us[name] >= (3000 if name.endswith("attn") else 1000) for name in times.link_us)
    assert times.link_us["0.attn"] > times.link_us["0.mlp"]
    assert times.fixed_us >= 4000
    assert times.total_us >= 13_000
    assert 12 * times.total_us < passed_us * 1.5, "nine rounds are counted and three are not"
    assert sum(times.link_us.values()) + times.fixed_us == pytest.approx(times.total_us, rel=0.1)


def test_a_request_is_the_prompt_and_every_step_behind_it(slow):
    """Four passes: one over the prompt, three over a token each."""
    times = time_links(slow, Batch(torch.ones(1, 4, dtype=torch.int64)), new_tokens=4, seconds=0.0, min_rounds=3)
    assert set(times.link_us) == {"0.attn", "0.mlp", "1.mlp", "2.attn", "2.mlp"}
    assert all(times.link_us[name] >= 4 * (3000 if name.endswith("attn") else 1000) for name in times.link_us)
    assert times.fixed_us >= 4 * 2000, "the embedding; the head's own call is not made for one position"
    assert times.total_us == pytest.approx(times.fixed_us + sum(times.link_us.values()))


def test_links_of_one_shape_share_their_time_and_windows_tell_them_apart(tiny_config, tiny_model):
    model = tiny_model(tiny_config(windows=(4, None, 4)), dtype=torch.float32)
    model.link("0.mlp").register_forward_hook(asleep(6))
    model.link("1.attn").register_forward_hook(asleep(6))
    times = time_links(model, Batch(torch.ones(1, 8, dtype=torch.int64)), seconds=0.0).link_us
    assert times["0.mlp"] == times["1.mlp"] == times["2.mlp"] >= 2000
    assert times["0.attn"] == times["2.attn"] < times["1.attn"]


def test_it_goes_on_for_as_long_as_it_may(tiny_config, tiny_model):
    model = tiny_model(tiny_config(), dtype=torch.float32)
    begun = time.perf_counter()
    time_links(model, Batch(torch.ones(1, 4, dtype=torch.int64)), seconds=0.3)
    assert 0.3 <= time.perf_counter() - begun < 2.0
