"""Which token comes next, from the logits of all. NumPy, so that every backend draws the same text from a seed.

It must cost little beside a pass of a small model, which takes some milliseconds. Over a vocabulary of 49,152, float32
on whole vectors takes 0.2 ms, top-p 0.5; float64, and a sort of all indices, took 1 and 15. So what is likely
is told by its logit alone: a threshold from a partition or from a sort of the few that matter, and two comparisons; no
index is sorted. Sums that many terms go into are taken by blocks and in float64.

V vocabulary, N of its tokens that may be drawn.
"""

from __future__ import annotations

import math
import numbers
import operator
from collections.abc import Collection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chinchilla_lm.errors import InputError

Floats = NDArray[np.float32]
Ids = NDArray[np.intp]

_FLOAT32 = np.finfo(np.float32)
# How far below the best logit top-p looks for its tokens, in temperatures; further where these do not reach p. Within
# 5 are e⁻⁵ = 0.7 % of the best token's probability and more: some dozens of tokens of a trained model.
_REACHES = (5.0, 10.0, math.inf)
# Weights that are summed at once in a draw: about the root of a vocabulary, so that both of its sums are short.
_BLOCK = 256


class Sampler:
    """Chooses the next token; greedy at temperature 0.

    repetition_penalty divides positive logits of tokens that are in the text already, prompt included, and multiplies
    negative ones (Keskar et al. 2019, CTRL). Then, where the temperature is above 0: top_k keeps the k likeliest
    tokens; top_p the fewest of those whose probabilities reach p (Holtzman et al. 2020, nucleus sampling); min_p those
    at least p times as likely as the likeliest (Nguyen et al. 2024). Of tokens that are as likely as each other, the
    lowest ids are kept. Its random numbers are its own: with a seed the same tokens come again, whatever else runs.
    Raises InputError for a setting out of range, and for one that greedy choice would ignore.
    """

    def __init__(
        self,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float = 1.0,
        seed: int | None = None,
    ) -> None:
        if not (_is_real(temperature) and temperature >= 0.0 and math.isfinite(temperature)):
            raise InputError(f"temperature {temperature!r} is not 0 (greedy) or above; pass --temperature 0.8")
        if top_k is not None:
            check_whole("top-k", top_k, 1, "leave --top-k away to keep all tokens")
        if top_p is not None and not (_is_real(top_p) and 0.0 < top_p <= 1.0):
            raise InputError(f"top-p {top_p!r} is not in (0, 1]; pass --top-p 0.95")
        if min_p is not None and not (_is_real(min_p) and 0.0 <= min_p <= 1.0):
            raise InputError(f"min-p {min_p!r} is not in [0, 1]; pass --min-p 0.05")
        if not (_is_real(repetition_penalty) and repetition_penalty > 0.0 and math.isfinite(repetition_penalty)):
            raise InputError(f"repetition-penalty {repetition_penalty!r} is not above 0; pass --repetition-penalty 1.1")
        if seed is not None:
            check_whole("seed", seed, 0, "pass --seed 0")
        given = {"top-k": top_k, "top-p": top_p, "min-p": min_p, "seed": seed}
        ignored = next((f"{name} {value}" for name, value in given.items() if value is not None), None)
        if temperature == 0.0 and ignored:
            raise InputError(f"{ignored} has no effect on greedy choice; add --temperature 0.8, or leave it away")
        self.temperature, self.top_k, self.top_p, self.min_p = temperature, top_k, top_p, min_p
        self.repetition_penalty = repetition_penalty
        # What float32 can divide by: colder than its least number is as good as greedy, hotter than its largest even.
        self._divisor = min(max(float(temperature), float(_FLOAT32.tiny)), float(_FLOAT32.max))
        self._random = np.random.default_rng(seed)

    @property
    def greedy(self) -> bool:
        """Whether the token of the largest logit is taken, the first of several, whatever is in the text already."""
        return self.temperature == 0.0 and self.repetition_penalty == 1.0

    def __call__(self, logits_V: Floats, seen: Collection[int] = ()) -> int:
        """The next token's id, from logits [V] and the tokens so far. Raises InputError where a logit is no number."""
        best = int(logits_V.argmax())  # NaN, if there is one
        if not math.isfinite(logits_V[best]):
            check_finite(logits_V)
        if self.repetition_penalty != 1.0 and len(seen):
            logits_V = self._penalised(logits_V, seen)
            best = int(logits_V.argmax())
        if self.temperature == 0.0:
            return best
        ids_N, weights_N = self._choices(logits_V)
        return int(ids_N[_draw(weights_N, self._random.random())])

    def probabilities(self, logits_V: Floats) -> NDArray[np.float64]:
        """What a token is drawn from, [V], 0 for those cut off. The temperature must be above 0."""
        found_V = np.zeros(len(logits_V))
        ids_N, weights_N = self._choices(logits_V)
        found_V[ids_N] = weights_N
        return found_V / found_V.sum()

    def _choices(self, logits_V: Floats) -> tuple[Ids, Floats]:
        """Ids [N] of the tokens that may be drawn, and how likely they are [N], the likeliest 1."""
        ids_N, logits_N = np.arange(len(logits_V)), logits_V
        if self.top_k is not None and self.top_k < len(logits_V):
            ids_N = _likeliest(logits_V, np.partition(logits_V, -self.top_k)[-self.top_k], self.top_k)
            logits_N = logits_V[ids_N]
        if self.top_p is not None and self.top_p < 1.0:
            within = _likeliest(logits_N, *self._nucleus(logits_N, self.top_p))
            ids_N, logits_N = ids_N[within], logits_N[within]
        weights_N = np.exp(self._scaled(logits_N, logits_N.max()))
        if self.min_p:
            kept = np.flatnonzero(weights_N >= self.min_p)
            ids_N, weights_N = ids_N[kept], weights_N[kept]
        return ids_N, weights_N

    def _scaled(self, logits_N: Floats, best: np.float32) -> Floats:
        """How far each logit lies above the best one, in temperatures; −∞ where float32 cannot say how far below."""
        with np.errstate(over="ignore"):
            scaled_N = logits_N - best
            scaled_N /= np.float32(self._divisor)
        return scaled_N

    def _nucleus(self, logits_N: Floats, mass: float) -> tuple[np.float32, int]:
        """The lowest logit, and the number, of the fewest tokens whose probabilities reach `mass`."""
        best = logits_N.max()
        scaled_N = self._scaled(logits_N, best)
        wanted = mass * float(np.exp(scaled_N).sum(dtype=np.float64))
        for reach in _REACHES:
            likely = np.sort(logits_N[scaled_N >= -reach])[::-1]
            sums = np.exp(self._scaled(likely, best)).astype(np.float64).cumsum()
            if sums[-1] >= wanted:
                break
        count = min(int(np.searchsorted(sums, wanted)) + 1, len(likely))
        return likely[count - 1], count

    def _penalised(self, logits_V: Floats, seen: Collection[int]) -> Floats:
        changed_V = logits_V.copy()
        tokens = np.fromiter(seen, np.intp, len(seen))
        values = logits_V[tokens].astype(np.float64)
        with np.errstate(over="ignore"):
            values = np.where(values > 0, values / self.repetition_penalty, values * self.repetition_penalty)
        changed_V[tokens] = values.clip(_FLOAT32.min, _FLOAT32.max)
        return changed_V


def _likeliest(logits_N: Floats, lowest: np.float32, count: int) -> Ids:
    """Indices of the `count` highest logits, of which `lowest` is the last; of those equal to it the first."""
    above, equal = np.flatnonzero(logits_N > lowest), np.flatnonzero(logits_N == lowest)
    return np.concatenate((above, equal[: count - len(above)]))


def _draw(weights_N: Floats, share: float) -> int:
    """The index on which a share in [0, 1) of the sum of the weights falls: first its block, then its place there."""
    blocks = np.add.reduceat(weights_N, np.arange(0, len(weights_N), _BLOCK))
    block, rest = _place(blocks, share)
    return block * _BLOCK + _place(weights_N[block * _BLOCK : (block + 1) * _BLOCK], rest)[0]


def _place(weights: Floats, share: float) -> tuple[int, float]:
    """The index on which a share of the sum of the weights falls, and the share of that weight that lies before it."""
    sums = weights.cumsum(dtype=np.float64)
    target = share * sums[-1]
    # Rounding can put the target at the very end; then the last weight above 0 is meant.
    index = min(int(np.searchsorted(sums, target, side="right")), int(np.searchsorted(sums, sums[-1])))
    before = sums[index - 1] if index else 0.0
    return index, float((target - before) / weights[index])


def check_finite(values: NDArray[np.floating] | np.floating) -> None:
    """Raise InputError where a result is NaN or infinite: nothing that follows from it would mean anything."""
    if not bool(np.isfinite(values).all()):
        raise InputError(
            "the model's output is not a number (NaN or infinite): a weight is damaged, or bfloat16 overflows; "
            "pass --dtype float32, or restore the checkpoint"
        )


def check_whole(name: str, value: Any, least: int, remedy: str) -> None:
    """Raise InputError for what is no whole number (a NumPy integer is one), and for one below `least`."""
    try:
        number = operator.index(value)
    except TypeError:
        raise InputError(f"{name} {value!r} is not a whole number; {remedy}") from None
    if number < least:
        raise InputError(f"{name} {value} is not {least} or more; {remedy}")


def _is_real(value: Any) -> bool:
    return isinstance(value, numbers.Real)
