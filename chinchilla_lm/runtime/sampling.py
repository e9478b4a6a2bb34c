"""Which token comes next, from the logits of all. NumPy, so that every backend draws the same text from a seed."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from chinchilla_lm.errors import InputError

Logits = NDArray[np.float32] | NDArray[np.float64]


class Sampler:
    """Chooses the next token; greedy at temperature 0.

    repetition_penalty divides positive logits of tokens that are in the text already, prompt included, and multiplies
    negative ones (Keskar et al. 2019, CTRL). Then, where the temperature is above 0: top_k keeps the k likeliest
    tokens; top_p the fewest of those whose probabilities reach p (Holtzman et al. 2020, nucleus sampling); min_p those
    at least p times as likely as the likeliest (Nguyen et al. 2024). Its random numbers are its own: with a seed the
    same tokens come again, whatever else runs. Raises InputError for a setting out of range, and for one that greedy
    choice would ignore.
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
        if not (temperature >= 0.0 and math.isfinite(temperature)):
            raise InputError(f"temperature {temperature} is not 0 (greedy) or above; pass --temperature 0.8")
        if top_k is not None and top_k < 1:
            raise InputError(f"top-k {top_k} is not 1 or more; leave --top-k away to keep all tokens")
        if top_p is not None and not 0.0 < top_p <= 1.0:
            raise InputError(f"top-p {top_p} is not in (0, 1]; pass --top-p 0.95")
        if min_p is not None and not 0.0 <= min_p <= 1.0:
            raise InputError(f"min-p {min_p} is not in [0, 1]; pass --min-p 0.05")
        if not (repetition_penalty > 0.0 and math.isfinite(repetition_penalty)):
            raise InputError(f"repetition-penalty {repetition_penalty} is not above 0; pass --repetition-penalty 1.1")
        if seed is not None and seed < 0:
            raise InputError(f"seed {seed} is not 0 or more; pass --seed 0")
        given = {"top-k": top_k, "top-p": top_p, "min-p": min_p}
        ignored = next((f"{name} {value}" for name, value in given.items() if value is not None), None)
        if temperature == 0.0 and ignored:
            raise InputError(f"{ignored} has no effect on greedy choice; add --temperature 0.8, or leave it away")
        self.temperature, self.top_k, self.top_p, self.min_p = temperature, top_k, top_p, min_p
        self.repetition_penalty = repetition_penalty
        self._random = np.random.default_rng(seed)

    def __call__(self, logits_V: Logits, seen: Sequence[int] = ()) -> int:
        """The next token's id, from logits [V] and the tokens so far. Raises InputError where a logit is no number."""
        if self.repetition_penalty != 1.0 and len(seen):
            logits_V = self._penalised(logits_V, seen)
        best = int(logits_V.argmax())  # NaN, if there is one
        if not math.isfinite(logits_V[best]):
            check_finite(logits_V)
        if self.temperature == 0.0:
            return best
        probabilities_V = self.probabilities(logits_V)
        # The last sum may be a rounding below 1; a draw beyond it is of the last token that can be drawn.
        sums_V = probabilities_V.cumsum()
        drawn = int(np.searchsorted(sums_V, self._random.random() * sums_V[-1], side="right"))
        return min(drawn, int(np.flatnonzero(probabilities_V)[-1]))

    def probabilities(self, logits_V: Logits) -> NDArray[np.float64]:
        """What a token is drawn from, [V], 0 for those cut off. The temperature must be above 0."""
        scaled_V = (logits_V.astype(np.float64) - logits_V.max()) / self.temperature
        if self.top_k is not None and self.top_k < len(scaled_V):
            lowest = np.partition(scaled_V, -self.top_k)[-self.top_k]
            scaled_V = np.where(scaled_V < lowest, -math.inf, scaled_V)
        weights_V = np.exp(scaled_V)
        probabilities_V = weights_V / weights_V.sum()
        if self.top_p is not None and self.top_p < 1.0:
            order_V = np.argsort(-probabilities_V, kind="stable")
            ordered_V = probabilities_V[order_V]
            before_V = ordered_V.cumsum() - ordered_V
            probabilities_V[order_V[before_V >= self.top_p]] = 0.0
        if self.min_p is not None:
            probabilities_V[probabilities_V < self.min_p * probabilities_V.max()] = 0.0
        found: NDArray[np.float64] = probabilities_V / probabilities_V.sum()
        return found

    def _penalised(self, logits_V: Logits, seen: Sequence[int]) -> Logits:
        changed_V = logits_V.astype(np.float64)
        tokens = np.unique(np.asarray(seen))
        values = changed_V[tokens]
        changed_V[tokens] = np.where(values > 0, values / self.repetition_penalty, values * self.repetition_penalty)
        return changed_V


def check_finite(values: NDArray[np.floating]) -> None:
    """Raise InputError where a result is NaN or infinite: nothing that follows from it would mean anything."""
    if not bool(np.isfinite(values).all()):
        raise InputError(
            "the model's output is not a number (NaN or infinite): a weight is damaged, or bfloat16 overflows; "
            "pass --dtype float32, or restore the checkpoint"
        )
