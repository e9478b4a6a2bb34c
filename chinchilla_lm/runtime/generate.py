"""One token after another: the prompt in one pass, then single steps over a cache of keys and values.

The cache has slots only for the attention links that are left, so a shortened model also needs less memory a token. The
head is applied to the last position alone: over a prompt of 512 tokens the decoder of a 135 M model with 49 k words
would else cost a quarter of the pass.

T positions, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator

import torch
from torch import Tensor

from chinchilla_lm.errors import InputError
from chinchilla_lm.models.batch import Batch
from chinchilla_lm.models.cache import KVCache
from chinchilla_lm.models.transformer import Transformer


class Sampler:
    """Chooses the next token; greedy at temperature 0.

    top_k keeps the k likeliest tokens; top_p then the fewest of them whose probabilities reach p (Holtzman et al. 2020,
    nucleus sampling). Its random numbers are its own: with a seed the same tokens come again, whatever else runs.
    Raises InputError for a setting out of range, and for a top_k or top_p that greedy choice would ignore.
    """

    def __init__(
        self,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
    ) -> None:
        if not (temperature >= 0.0 and math.isfinite(temperature)):
            raise InputError(f"temperature {temperature} is not 0 (greedy) or above; pass --temperature 0.8")
        if top_k is not None and top_k < 1:
            raise InputError(f"top-k {top_k} is not 1 or more; leave --top-k away to keep all tokens")
        if top_p is not None and not 0.0 < top_p <= 1.0:
            raise InputError(f"top-p {top_p} is not in (0, 1]; pass --top-p 0.95")
        ignored = f"top-k {top_k}" if top_k is not None else f"top-p {top_p}" if top_p is not None else None
        if temperature == 0.0 and ignored:
            raise InputError(f"{ignored} has no effect on greedy choice; add --temperature 0.8, or leave it away")
        self.temperature, self.top_k, self.top_p, self.seed = temperature, top_k, top_p, seed
        self._random: torch.Generator | None = None

    def __call__(self, logits_V: Tensor) -> int:
        """The next token's id, from logits [V]. Raises InputError where a logit is not a number."""
        highest, best = logits_V.max(dim=-1)
        check_finite(highest)
        if self.temperature == 0.0:
            return int(best)
        probabilities_V = self.probabilities(logits_V)
        return int(torch.multinomial(probabilities_V, 1, generator=self._generator(logits_V.device)))

    def probabilities(self, logits_V: Tensor) -> Tensor:
        """What a token is drawn from, float32 [V], 0 for those cut off. The temperature must be above 0."""
        logits_V = logits_V.float() / self.temperature
        if self.top_k is not None and self.top_k < len(logits_V):
            lowest = torch.topk(logits_V, self.top_k).values[-1]
            logits_V = logits_V.masked_fill(logits_V < lowest, -math.inf)
        probabilities_V = torch.softmax(logits_V, dim=-1)
        if self.top_p is not None and self.top_p < 1.0:
            ordered_V, order_V = probabilities_V.sort(descending=True)
            before_V = ordered_V.cumsum(-1) - ordered_V
            probabilities_V = probabilities_V.index_fill(0, order_V[before_V >= self.top_p], 0.0)
            probabilities_V = probabilities_V / probabilities_V.sum()
        return probabilities_V

    def _generator(self, device: torch.device) -> torch.Generator:
        if self._random is None:
            self._random = torch.Generator(device)
            if self.seed is None:
                self._random.seed()
            else:
                self._random.manual_seed(self.seed)
        return self._random


def generate(
    model: Transformer,
    ids: Tensor,
    max_new_tokens: int,
    sampler: Sampler,
    stop_ids: Collection[int] = (),
    capacity: int | None = None,
) -> Iterator[int]:
    """Token ids one at a time, at most `max_new_tokens`; a stop id ends the sequence and is not given out.

    ids: the prompt, int64 [1, T], T ≥ 1. capacity: positions of the cache, by default what can be needed at most; the
    last token drawn is never read again and needs none. Raises InputError for an empty prompt, a bidirectional model,
    or more positions than `capacity`, and when a logit is not a number.
    """
    if not model.config.causal or model.config.head.kind != "language-modeling":
        direction = "causal" if model.config.causal else "bidirectional"
        raise InputError(f"a {direction} {model.config.head.kind} model writes no text; pass a causal language model")
    if ids.shape[1] == 0:
        raise InputError("the prompt has 0 tokens; at least 1 is needed; pass a text")
    if max_new_tokens < 1:
        raise InputError(f"max-new-tokens {max_new_tokens} is not 1 or more; pass --max-new-tokens 64")
    needed = ids.shape[1] + max_new_tokens - 1
    capacity = needed if capacity is None else capacity
    if needed > capacity:
        raise InputError(f"{needed} positions do not fit the cache of {capacity}; ask for fewer new tokens")
    return _steps(model, ids, max_new_tokens, sampler, frozenset(stop_ids), capacity)


def _steps(
    model: Transformer, ids: Tensor, max_new_tokens: int, sampler: Sampler, stop_ids: frozenset[int], capacity: int
) -> Iterator[int]:
    with torch.inference_mode():
        cache = KVCache(model, rows=1, capacity=capacity)
    for _ in range(max_new_tokens):
        token = _next(model, ids, cache, sampler)
        if token in stop_ids:
            return
        yield token
        ids = torch.tensor([[token]], device=ids.device)


@torch.inference_mode()  # on a function that returns, for a generator would leave it on for its consumer
def _next(model: Transformer, ids: Tensor, cache: KVCache, sampler: Sampler) -> int:
    return sampler(read(model, ids, cache)[0])


def read(model: Transformer, ids: Tensor, cache: KVCache) -> Tensor:
    """Read tokens int64 [B, T] after those in the cache, which grows by them; the last position's logits [B, V]."""
    x, context = model.embed(Batch(ids), cache)
    x = model.run(x, context)
    cache.length += ids.shape[1]
    return model.head.classify(model.finish(x[:, -1]))


def check_finite(values: Tensor) -> None:
    """Raise InputError where a result is NaN or infinite: nothing that follows from it would mean anything."""
    if not bool(torch.isfinite(values).all()):
        raise InputError(
            "the model's output is not a number (NaN or infinite): a weight is damaged, or bfloat16 overflows; "
            "pass --dtype float32, or restore the checkpoint"
        )
