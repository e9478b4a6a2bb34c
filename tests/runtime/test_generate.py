import warnings
from collections.abc import Collection, Sequence
from typing import Any

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
from chinchilla_lm.runtime import generate as generating
from chinchilla_lm.runtime.generate import Generation
from chinchilla_lm.runtime.sampling import Sampler, _draw
from chinchilla_lm.runtime.torch_backend import TorchBackend, read

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


class Numbers:
    """Spells a token as its number."""

    def add(self, token: int) -> str:
        return f"{token} "

    def finish(self) -> str:
        return ""


def start(
    model: Any,
    count: int,
    sampler: Sampler | None = None,
    stop_ids: Collection[int] = (),
    prompt: Sequence[int] = PROMPT,
    stop: Sequence[str] = (),
) -> Generation:
    backend = TorchBackend(model) if isinstance(model, Transformer) else model
    return Generation(backend, prompt, count, sampler or Sampler(), Numbers(), stop_ids, stop)


def write(model: Any, count: int, *options: Any, **more: Any) -> list[int]:
    generation = start(model, count, *options, **more)
    assert "".join(generation) == "".join(f"{token} " for token in generation.tokens)
    return generation.tokens


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
    assert write(model, 12, stop_ids={stop}) == tokens[: tokens.index(stop)]


def test_more_positions_than_the_cache_has_are_refused(tiny_config, tiny_model):
    backend = TorchBackend(tiny_model(tiny_config()))
    cache = backend.cache(8)
    backend.read([PROMPT], [cache])
    with pytest.raises(InputError, match="9 positions do not fit the cache of 8"):
        backend.read([PROMPT[:3]], [cache])


def test_the_consumer_of_the_pieces_is_not_put_into_inference_mode(tiny_config, tiny_model):
    for _ in start(tiny_model(tiny_config()), 3):
        assert not torch.is_inference_mode_enabled()


class Counted(TorchBackend):
    """Notes how many tokens of each text a pass reads."""

    def __init__(self, model: Transformer) -> None:
        super().__init__(model)
        self.passes: list[list[int]] = []

    def read(self, ids: Sequence[Sequence[int]], caches: Sequence[Any]) -> Any:
        self.passes.append([len(one) for one in ids])
        return super().read(ids, caches)


def test_nothing_is_read_behind_the_last_token(tiny_config, tiny_model):
    model = tiny_model(tiny_config())
    tokens = write(model, 12)
    fifth = tokens.index(tokens[5])
    for stop_ids, stop, steps in [((), (), 12), ({tokens[5]}, (), fifth + 1), ((), [f"{tokens[5]} "], fifth + 1)]:
        counted = Counted(model)
        generation = start(counted, 12, stop_ids=stop_ids, stop=stop)
        shown = [int(number) for number in "".join(generation).split()]
        assert shown == tokens[: 12 if steps == 12 else fifth]
        assert counted.passes == [[len(PROMPT)]] + [[1]] * (steps - 1)
        assert generation.ended
        assert list(generation) == []


PROMPTS = [PROMPT, [8], [90, 2, 77, 4, 5, 6, 7, 8, 9, 10, 11], [1, 2], [50, 60, 70]]
COUNTS = [9, 4, 12, 1, 6]


@pytest.mark.parametrize("most", [1, 2, 32])
@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_texts_written_together_are_those_written_alone(tiny_config, tiny_model, monkeypatch, most, temperature):
    monkeypatch.setattr(generating, "MOST_TOGETHER", most)
    model = tiny_model(tiny_config())
    seed = 5 if temperature else None

    def begin(backend: Any, row: int) -> Generation:
        return start(backend, COUNTS[row], Sampler(temperature, seed=seed), stops, PROMPTS[row])

    stops: set[int] = set()
    stops = {write(model, 9, Sampler(temperature, seed=seed))[3]}
    alone = [begin(model, row) for row in range(5)]
    texts = ["".join(one) for one in alone]
    counted = Counted(model)
    together = [begin(counted, row) for row in range(5)]
    found = [""] * 5
    for row, piece in generating.write(counted, together):
        found[row] += piece
    assert found == texts
    assert [one.tokens for one in together] == [one.tokens for one in alone]
    assert len(alone[0].tokens) <= 3
    assert all(one._cache is None for one in together)
    assert max(map(len, counted.passes)) == min(most, 5)
    read_tokens = sum(map(sum, counted.passes))
    ended_by_stop = [len(one.tokens) < count for one, count in zip(alone, COUNTS, strict=True)]
    wanted = [
        len(prompt) + len(one.tokens) - (not stopped)
        for prompt, one, stopped in zip(PROMPTS, alone, ended_by_stop, strict=True)
    ]
    assert read_tokens == sum(wanted)
    if most == 32:
        assert counted.passes[0] == [len(prompt) for prompt in PROMPTS]
        assert len(counted.passes) == max(
            len(one.tokens) + stopped for one, stopped in zip(alone, ended_by_stop, strict=True)
        )


@pytest.mark.parametrize("most", [2, 32])
def test_writing_goes_on_where_it_was_left(tiny_config, tiny_model, monkeypatch, most):
    """After a consumer that left, a draw that failed and a pass that was interrupted, nothing is read twice or lost."""
    monkeypatch.setattr(generating, "MOST_TOGETHER", most)
    model = tiny_model(tiny_config())
    backend = TorchBackend(model)
    prompts = [PROMPT, PROMPT[:2], PROMPT[1:5]]
    expected = ["".join(start(backend, 9, prompt=prompt)) for prompt in prompts]
    got, calls = ["", "", ""], {"draw": 0, "read": 0}

    class Failing(Sampler):
        greedy = False  # it wants to be called

        def __call__(self, logits_V, seen=()):
            calls["draw"] += 1
            if calls["draw"] % 4 == 2:
                raise KeyboardInterrupt
            return super().__call__(logits_V, seen)

    def reading(model, ids, cache):
        calls["read"] += 1
        if calls["read"] % 7 == 3:
            raise KeyboardInterrupt
        return read(model, ids, cache)

    samplers = [Sampler(), Failing(), Sampler()]
    texts = [start(backend, 9, sampler, prompt=prompt) for sampler, prompt in zip(samplers, prompts, strict=True)]
    monkeypatch.setattr("chinchilla_lm.runtime.torch_backend.read", reading)
    for turn in range(100):
        try:
            for count, (index, piece) in enumerate(generating.write(backend, texts)):
                got[index] += piece
                if count == turn % 5:
                    break
            else:
                break
        except KeyboardInterrupt:
            continue
    assert got == expected
    assert calls["draw"] > 9


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


def by_sorting(
    logits: np.ndarray, temperature: float, top_k: int | None, top_p: float | None, min_p: float | None
) -> tuple[np.ndarray, float]:
    """Probabilities in float64 by sorting all, and how near a token is to one of the limits."""
    order = np.argsort(-logits, kind="stable")[: top_k or len(logits)]
    scaled = (logits[order].astype(np.float64) - logits.max()) / temperature
    weights = np.exp(scaled)
    kept, margin = np.ones(len(order), bool), 1.0
    if top_p is not None and top_p < 1.0:
        shares = weights / weights.sum()
        before = np.append(0.0, shares.cumsum()[:-1])
        kept &= before < top_p
        margin = np.abs(before[1:] - top_p).min(initial=1.0)
    if min_p:
        kept &= weights >= min_p
        margin = min(margin, np.abs(weights / min_p - 1.0).min())
    found = np.zeros(len(logits))
    found[order[kept]] = weights[kept] / weights[kept].sum()
    return found, margin


def test_probabilities_are_those_of_a_plain_sort_in_float64():
    rng = np.random.default_rng(0)
    compared = 0
    for _ in range(600):
        size = int(rng.choice([1, 2, 7, 100, 3000, 20000]))
        logits = (rng.choice([0.1, 1.0, 4.0]) * rng.standard_normal(size)).astype(np.float32)
        if rng.random() < 0.3:
            logits = np.round(logits)  # many as likely as each other
        if rng.random() < 0.2:
            logits[rng.random(size) < 0.3] = -np.inf
            logits[int(rng.integers(size))] = 1.0
        top_k = int(rng.integers(1, 2 * size + 1)) if rng.random() < 0.5 else None
        top_p = float(rng.choice([1e-9, 0.3, 0.9, 0.95, 0.999, 1.0])) if rng.random() < 0.6 else None
        min_p = float(rng.choice([0.0, 0.02, 0.3, 1.0])) if rng.random() < 0.4 else None
        temperature = float(rng.choice([0.05, 0.7, 1.0, 1.7, 20.0]))
        wanted, margin = by_sorting(logits, temperature, top_k, top_p, min_p)
        if margin < 1e-5:  # float32 may fall on either side
            continue
        given = Sampler(temperature, top_k, top_p, min_p).probabilities(logits)
        assert not given[wanted == 0.0].any()
        np.testing.assert_allclose(given, wanted, rtol=1e-4, atol=1e-37)  # float32 ends there
        compared += 1
    assert compared > 400


def test_top_k_keeps_k_of_those_that_are_equal():
    logits = np.array([1.0, 2.0, 2.0, 0.0, 2.0], np.float32)
    for top_k, kept in [(1, [1]), (2, [1, 2]), (3, [1, 2, 4]), (4, [0, 1, 2, 4])]:
        assert np.flatnonzero(Sampler(1.0, top_k=top_k).probabilities(logits)).tolist() == kept


def test_a_share_falls_on_the_weight_where_the_sum_reaches_it():
    rng = np.random.default_rng(1)
    for size in (1, 2, 255, 256, 257, 49152):
        weights = np.exp(6 * rng.standard_normal(size)).astype(np.float32)
        weights[rng.random(size) < 0.2] = 0.0
        weights[size // 2] = 1.0
        sums = np.append(0.0, weights.astype(np.float64).cumsum())
        for share in (0.0, 1e-12, *rng.random(50), 1 - 2**-53):
            index = _draw(weights, share)
            assert weights[index] > 0
            assert sums[index] / sums[-1] - 1e-6 <= share <= sums[index + 1] / sums[-1] + 1e-6


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
        ({"seed": 3}, "seed 3 has no effect on greedy choice; add --temperature 0.8"),
        ({"temperature": 1.0, "seed": 1.5}, "seed 1.5 is not a whole number; pass --seed 0"),
        ({"temperature": 1.0, "top_k": 2.5}, "top-k 2.5 is not a whole number; leave --top-k away"),
        ({"temperature": "warm"}, "temperature 'warm' is not 0"),
        ({"temperature": 1.0, "top_p": "most"}, "top-p 'most' is not in"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        Sampler(**settings)


def test_the_coldest_temperature_and_the_smallest_penalty_are_greedy():
    logits = np.array([0.5, 3.0, -1.0], np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for temperature in (1e-3, 1e-300, 1e-320, 5e-324):
            for options in ({}, {"top_p": 0.9}, {"top_k": 2}, {"min_p": 0.1}):
                assert Sampler(temperature, seed=0, **options)(logits) == 1
        assert Sampler(0.0, repetition_penalty=1e-30)(logits, [0]) == 0
        assert Sampler(0.0, repetition_penalty=1e-300)(logits, [0, 0]) == 0
        np.testing.assert_allclose(Sampler(1e300, top_p=0.99).probabilities(logits), 1 / 3)
    with pytest.raises(InputError, match="seed -1"):
        Sampler(1.0, seed=-1)


def test_a_numpy_integer_is_a_whole_number():
    assert Sampler(1.0, top_k=np.int64(1), seed=np.uint8(3))(np.array([0.0, 1.0], np.float32)) == 1  # type: ignore[arg-type]
