"""One token after another: the prompt in one pass, then single steps over a cache of keys and values.

Several texts are written together: each pass reads what is new of every text that still goes on, without padding, a
prompt here and one token there. A text that ends leaves at once, and its cache with it. The last token of a text is
never read.

B texts, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from itertools import islice
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from chinchilla_lm.runtime.sampling import Sampler, check_finite

# Texts in a pass; others wait until one of these ends, for each holds a cache.
MOST_TOGETHER = 32


class Model(Protocol):
    """A causal language model that reads texts on from where it left them.

    switches: lengths past which a text is read from its start again, as its positions turn by other angles.
    """

    switches: tuple[int, ...]

    def cache(self, capacity: int) -> Any:
        """The keys and values of a text of at most `capacity` positions, nothing of it read yet."""

    def read(self, ids: Sequence[Sequence[int]], caches: Sequence[Any]) -> NDArray[np.float32]:
        """Read more tokens of each of B texts; logits [B, V] of what follows the last of them."""

    def best(
        self, ids: Sequence[Sequence[int]], caches: Sequence[Any]
    ) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """The same, but only the largest logit of each text: its token [B], the first of several, and itself [B]."""


class Speller(Protocol):
    """What makes text of tokens as they come; `text.Pieces` is one."""

    def add(self, token: int) -> str:
        """The text that is complete with this token."""

    def finish(self) -> str:
        """What was still waiting."""


class Generation:
    """A text that is being written: iterate over it for the pieces.

    tokens: those drawn so far; a stop token is not among them. prompt_tokens: how many were read before. ended: whether
    no more follow.
    """

    def __init__(
        self,
        model: Model,
        ids: Sequence[int],
        max_new_tokens: int,
        sampler: Sampler,
        speller: Speller,
        stop_ids: Collection[int] = (),
        stop: Sequence[str] = (),
    ) -> None:
        """ids: the prompt, at least one token. max_new_tokens: at least 1. stop_ids: tokens that end the text. stop:
        texts that end it where they first appear, none of them empty; they are not given out."""
        self.tokens: list[int] = []
        self.prompt_tokens = len(ids)
        self.ended = False
        self._model, self._sampler, self._speller = model, sampler, speller
        self._most, self._stop_ids, self._stop = int(max_new_tokens), frozenset(stop_ids), tuple(stop)
        self._seen, self._unread, self._prompt = set(ids), list(ids), list(ids)
        self._logits_V: NDArray[np.float32] | None = None  # of what follows all that was read, until it is drawn
        self._best: tuple[int, float] | None = None  # or, of greedy choice, the likeliest token and its logit
        self._cache: Any = None
        self._shown = ""  # drawn, and not yet given out
        self._held = ""  # the end of the text so far, as long as it may be the beginning of a stop text

    def __iter__(self) -> Iterator[str]:
        for _, piece in write(self._model, [self]):
            yield piece

    @property
    def reads(self) -> bool:
        """Whether the model has something to read before the next token can be drawn."""
        return self._logits_V is None and self._best is None

    @property
    def greedy(self) -> bool:
        """Whether it asks for nothing but the largest logit."""
        return self._sampler.greedy

    def unread(self) -> tuple[list[int], Any]:
        """The tokens that the model has still to read, and the cache of those before them."""
        if self._cache is None:
            self._cache = self._model.cache(self.prompt_tokens + self._most - 1)
        whole = self.prompt_tokens + len(self.tokens)
        past = whole - len(self._unread)
        if past and any(past <= switch < whole for switch in self._model.switches):
            self._cache.rewind(0)
            self._unread = self._prompt + self.tokens
        return self._unread, self._cache

    def follow(self, logits_V: NDArray[np.float32]) -> None:
        """Take the logits [V] of what follows what was unread, which is read now."""
        self._logits_V = logits_V

    def follow_best(self, token: int, logit: float) -> None:
        """Take the largest logit of what follows, and its token."""
        self._best = token, logit

    def draw(self) -> None:
        """Draw the next token from them. Raises InputError where a logit is not a number; then nothing has changed."""
        token = self._drawn()
        self._logits_V = self._best = None
        text = self._held
        if token in self._stop_ids:
            self.ended = True
        else:
            self.tokens.append(token)
            self._seen.add(token)
            self._unread = [token]
            text += self._speller.add(token)
            self.ended = len(self.tokens) == self._most
        stopped, shown, self._held = self._cut(text + (self._speller.finish() if self.ended else ""))
        if self.ended and not stopped:
            shown += self._held
        self.ended |= stopped
        if self.ended:
            self._cache = None
        self._shown += shown

    def take(self) -> str:
        """The text that has not been given out yet."""
        shown, self._shown = self._shown, ""
        return shown

    def _drawn(self) -> int:
        if self._best is not None:
            token, logit = self._best
            check_finite(np.float32(logit))
            return token
        assert self._logits_V is not None
        return self._sampler(self._logits_V, self._seen)

    def _cut(self, text: str) -> tuple[bool, str, str]:
        """Whether a stop text is in it, what may be shown, and what must be held back."""
        places = [place for place in (text.find(stop) for stop in self._stop) if place >= 0]
        if places:
            return True, text[: min(places)], ""
        longest = max((len(stop) for stop in self._stop), default=1) - 1
        for size in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[-size:]) for stop in self._stop):
                return False, text[:-size], text[-size:]
        return False, text, ""


def write(model: Model, texts: Sequence[Generation]) -> Iterator[tuple[int, str]]:
    """Write texts of one model together; pieces as they come, each behind the index of its text.

    Where it is left before the end, or something is raised, another call goes on from there.
    """
    every = list(enumerate(texts))
    waiting = iter([(index, text) for index, text in every if not text.ended])
    yield from _pieces(every)
    live: list[tuple[int, Generation]] = []
    while True:
        live = [(index, text) for index, text in live if not text.ended]
        live += islice(waiting, MOST_TOGETHER - len(live))
        if not live:
            return
        reading = [text for _, text in live if text.reads]
        if reading:
            _read(model, reading)
        for _, text in live:
            text.draw()
        yield from _pieces(live)


def _read(model: Model, texts: Sequence[Generation]) -> None:
    """Have the model read what is new of the texts; where none of them asks for more, only for the largest logits."""
    ids, caches = zip(*(text.unread() for text in texts), strict=True)
    if all(text.greedy for text in texts):
        for text, token, logit in zip(texts, *model.best(ids, caches), strict=True):
            text.follow_best(int(token), float(logit))
        return
    for text, logits_V in zip(texts, model.read(ids, caches), strict=True):
        text.follow(logits_V)


def _pieces(texts: Sequence[tuple[int, Generation]]) -> Iterator[tuple[int, str]]:
    for index, text in texts:
        if piece := text.take():
            yield index, piece
