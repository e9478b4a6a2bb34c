"""One token after another: the prompt in one pass, then single steps over a cache of keys and values.

T positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from chinchilla_lm.errors import InputError
from chinchilla_lm.runtime.sampling import Sampler


class Reader(Protocol):
    """A model that has read a part of a text, and reads on."""

    def read(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Read more tokens; logits [V] of what follows the last of them."""


def generate(
    reader: Reader,
    ids: Sequence[int],
    max_new_tokens: int,
    sampler: Sampler,
    stop_ids: Collection[int] = (),
) -> Iterator[int]:
    """Token ids one at a time, at most `max_new_tokens`; a stop id ends the sequence and is not given out.

    ids: the prompt. The last token drawn is never read, so the reader needs room for all others. Raises InputError for
    an empty prompt, and when a logit is not a number.
    """
    if not ids:
        raise InputError("the prompt has 0 tokens; at least 1 is needed; pass a text")
    if max_new_tokens < 1:
        raise InputError(f"max-new-tokens {max_new_tokens} is not 1 or more; pass --max-new-tokens 64")
    return _steps(reader, list(ids), max_new_tokens, sampler, frozenset(stop_ids))


def _steps(
    reader: Reader, ids: list[int], max_new_tokens: int, sampler: Sampler, stop_ids: frozenset[int]
) -> Iterator[int]:
    seen = list(ids)
    for _ in range(max_new_tokens):
        token = sampler(reader.read(ids), seen)
        if token in stop_ids:
            return
        yield token
        ids = [token]
        seen.append(token)
