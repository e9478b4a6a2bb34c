from collections.abc import Collection

import numpy as np
import pytest
import torch
from transformers import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from chinchilla_lm.errors import InputError
from chinchilla_lm.models.batch import Batch
from chinchilla_lm.models.cache import KVCache
from chinchilla_lm.models.transformer import Transformer
from chinchilla_lm.runtime.generate import generate
from chinchilla_lm.runtime.sampling import Sampler
from chinchilla_lm.runtime.torch_backend import TorchReader, read

BODIES = {
    "llama": {},
    "windows": {"windows": (4, None, 7)},
    "gpt2": {"norm": "layernorm", "gated": False, "positions": "learned", "qkv_bias": True, "num_kv_heads": 4},
}
DROPPED = {
    "whole": {},
    "no-first-attention": {"0.attn": "lose", "2.mlp": "lose"},
    "one-attention": {"0.attn": "lose", "0.mlp": "lose", "2.attn": "lose"},
    "no-attention": {"0.attn": "lose", "1.attn": "lose", "2.attn": "lose"},
}
PROMPT = [5, 80, 3, 41, 96, 7]


def write(model: Transformer, count: int, sampler: Sampler | None = None, stop: Collection[int] = ()) -> list[int]:
    return list(generate(TorchReader(model, len(PROMPT) + count - 1), PROMPT, count, sampler or Sampler(), stop))


def greedy_by_full_passes(model: Transformer, prompt: list[int], count: int) -> list[int]:
    ids = torch.tensor([prompt])
    for _ in range(count):
        with torch.inference_mode():
            ids = torch.cat((ids, model(Batch(ids))[:, -1:].argmax(-1)), dim=1)
    return ids[0, -count:].tolist()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("dropped", DROPPED.values(), ids=DROPPED)
@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_the_cache_changes_nothing(tiny_config, tiny_model, body, dropped, dtype):
    model = tiny_model(tiny_config(**body), dropped, dtype)
    assert write(model, 20) == greedy_by_full_passes(model, PROMPT, 20)


def test_reading_in_rows_and_in_parts_gives_the_logits_of_one_pass(tiny_config, tiny_model):
    model = tiny_model(tiny_config(windows=(4, None, 7)), {"0.attn": "lose"})
    ids = torch.randint(97, (3, 12), generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        cache = KVCache(model, rows=3, capacity=12)
        whole = model(Batch(ids))
        assert torch.allclose(read(model, ids[:, :9], cache), whole[:, 8], atol=1e-12)
        for position in (9, 10, 11):
            new = read(model, ids[:, position : position + 1], cache)
            assert torch.allclose(new, whole[:, position], atol=1e-12)
    assert cache.length == 12


def test_only_live_attention_has_a_slot(tiny_config, tiny_model):
    model = tiny_model(tiny_config(), {"0.attn": "lose", "1.mlp": "lose"}, torch.float32)
    cache = KVCache(model, rows=1, capacity=10)
    assert set(cache.slots) == {"1.attn", "2.attn"}
    assert cache.bytes == 2 * 2 * (2 * 10 * 8) * 4  # links, key and value, [kv heads, positions, features], float32


def test_a_stop_token_ends_the_text_and_is_not_given_out(tiny_config, tiny_model):
    model = tiny_model(tiny_config())
    tokens = write(model, 12)
    stop = tokens[4]
    assert write(model, 12, stop={stop}) == tokens[: tokens.index(stop)]


def test_one_position_fewer_than_is_read_is_refused(tiny_config, tiny_model):
    model = tiny_model(tiny_config())
    with pytest.raises(InputError, match="9 positions do not fit the cache of 8"):
        list(generate(TorchReader(model, 8), PROMPT, 4, Sampler()))


@pytest.mark.parametrize(("ids", "count", "message"), [([], 4, "0 tokens"), (PROMPT, 0, "max-new-tokens 0")])
def test_what_cannot_be_generated_is_refused_at_once(tiny_config, tiny_model, ids, count, message):
    with pytest.raises(InputError, match=message):
        generate(TorchReader(tiny_model(tiny_config()), 9), ids, count, Sampler())


def test_the_consumer_of_the_tokens_is_not_put_into_inference_mode(tiny_config, tiny_model):
    for _ in generate(TorchReader(tiny_model(tiny_config()), 9), PROMPT, 3, Sampler()):
        assert not torch.is_inference_mode_enabled()


def test_nan_is_an_error_and_not_a_token(tiny_config, tiny_model):
    model = tiny_model(tiny_config())
    with torch.no_grad():
        model.link("2.mlp").get_parameter("down.weight")[3, 3] = torch.nan
    with pytest.raises(InputError, match="not a number"):
        write(model, 3)


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p", "min_p"),
    [
        (0.7, None, None, None),
        (1.0, 5, None, None),
        (1.3, None, 0.6, None),
        (0.9, 12, 0.8, None),
        (1.0, 500, 1.0, 0.0),
        (1.0, None, 1e-9, None),
        (1.2, None, None, 0.1),
        (1.2, 9, 0.9, 0.02),
    ],
)
def test_probabilities_are_those_of_transformers(temperature, top_k, top_p, min_p):
    logits = 3 * torch.randn(50, generator=torch.Generator().manual_seed(4))
    wanted = TemperatureLogitsWarper(temperature)(None, logits[None])
    if top_k:
        wanted = TopKLogitsWarper(top_k)(None, wanted)
    if top_p and top_p < 1.0:
        wanted = TopPLogitsWarper(top_p)(None, wanted)
    if min_p:
        wanted = MinPLogitsWarper(min_p)(None, wanted)
    given = Sampler(temperature, top_k, top_p, min_p).probabilities(logits.numpy())
    np.testing.assert_allclose(given, wanted.softmax(-1)[0].numpy(), atol=1e-6)


@pytest.mark.parametrize("penalty", [1.3, 0.7])
def test_repetition_is_penalised_as_by_transformers(penalty):
    logits = torch.randn(50, generator=torch.Generator().manual_seed(4))
    seen = [int(logits.argmax()), int(logits.argmin()), 7, 7]
    wanted = RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor([seen]), logits[None])[0]
    assert Sampler(repetition_penalty=penalty)(logits.numpy(), seen) == int(wanted.argmax())
    assert Sampler(repetition_penalty=4.0)(logits.numpy(), seen) != seen[0]


def test_tokens_are_drawn_as_often_as_they_are_probable():
    logits = np.array([2.0, 1.0, 0.0, -1.0], np.float32)
    sampler = Sampler(temperature=1.0, seed=1)
    counts = np.bincount([sampler(logits) for _ in range(4000)], minlength=4) / 4000
    wanted = np.exp(logits) / np.exp(logits).sum()
    np.testing.assert_allclose(counts, wanted, atol=0.03)  # four deviations at p = 0.64 and 4,000 draws


def test_a_seed_fixes_the_text_whatever_else_draws(tiny_config, tiny_model):
    model = tiny_model(tiny_config())

    def draw(seed: int | None) -> list[int]:
        np.random.random(3)
        return write(model, 16, Sampler(1.0, seed=seed))

    first = draw(7)
    assert draw(7) == first
    assert draw(8) != first
    assert draw(None) != draw(None)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -1.0}, "temperature -1.0 is not 0"),
        ({"temperature": float("nan")}, "temperature nan"),
        ({"temperature": 1.0, "top_k": 0}, "top-k 0 is not 1 or more"),
        ({"temperature": 1.0, "top_p": 1.5}, r"top-p 1.5 is not in \(0, 1\]"),
        ({"temperature": 1.0, "min_p": -0.1}, r"min-p -0.1 is not in \[0, 1\]"),
        ({"repetition_penalty": 0.0}, "repetition-penalty 0.0 is not above 0"),
        ({"top_p": 0.9}, "top-p 0.9 has no effect"),
        ({"min_p": 0.1}, "min-p 0.1 has no effect"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        Sampler(**settings)


def test_the_coldest_temperature_and_the_smallest_penalty_are_greedy():
    logits = np.array([0.5, 3.0, -1.0], np.float32)
    for temperature in (1e-3, 1e-300, 5e-324):
        assert Sampler(temperature, seed=0)(logits) == 1
    assert Sampler(0.0, repetition_penalty=1e-30)(logits, [0]) == 0
    with pytest.raises(InputError, match="seed -1"):
        Sampler(1.0, seed=-1)
