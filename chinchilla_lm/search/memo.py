"""Measure a set of dropped links once: measuring is a pass over calibration data, and searches come back to sets."""

import math
from collections.abc import Callable

from chinchilla_lm.errors import ContractError

Measure = Callable[[frozenset[str]], float]
"""Names of dropped links → true cost of dropping them together, in the cost table's unit. Must be deterministic."""


class Memo:
    """A `measure` that remembers. `calls` counts the true measurements so far.

    Give the same Memo to a search that is repeated with a tighter budget, and it measures only what is new.
    """

    def __init__(self, measure: Measure) -> None:
        self._measure = measure
        self._costs: dict[frozenset[str], float] = {}
        self.calls = 0

    @classmethod
    def of(cls, measure: Measure) -> "Memo":
        """`measure` itself if it remembers already, a new Memo around it otherwise."""
        return measure if isinstance(measure, Memo) else cls(measure)

    def __call__(self, dropped: frozenset[str]) -> float:
        """The cost of dropping these links together.

        Raises:
            ContractError: the cost is not finite, so that no search could compare it.
        """
        if dropped not in self._costs:
            self.calls += 1
            cost = float(self._measure(dropped))
            if not math.isfinite(cost):
                names = ", ".join(sorted(dropped)) or "nothing"
                raise ContractError(f"cost {cost} of dropping {names} is not finite; score in float32")
            self._costs[dropped] = cost
        return self._costs[dropped]

    def __contains__(self, dropped: object) -> bool:
        return dropped in self._costs


class Allowance:
    """The measurements that a search may still make: at most `most` that `memo` does not know yet."""

    def __init__(self, memo: Memo, most: int) -> None:
        self.memo, self.most, self._before = memo, most, memo.calls

    @property
    def used(self) -> int:
        """New measurements so far."""
        return self.memo.calls - self._before

    def left(self, share: float = 1.0) -> int:
        """New measurements that may still be made of this share of them all."""
        return int(self.most * share) - self.used
