"""What everybody in a race is given to do.

Measures of a language model, by what a worker is asked to write:

    prefill  one prompt of `tokens` tokens, until its first new token
    decode   one short prompt; time of a token behind the first
    long     the same behind LONG tokens of context
    batch    SEQUENCES short prompts together; time of a step for all

and of a tagger: `texts`, a pass over texts from all over the data, PASS_TOKENS in all, and `single`, texts alone, one
after the other. A tagger of base size that reads whole documents needs a minute for all of CoNLL-2003's test set.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from chinchilla_lm.peers.table import LANGUAGE

SHORT, LONG, SEQUENCES = 16, 1024, 8
STEPS = 32  # that `long` and `batch` decode, and the least of `decode`
PASS_TOKENS = 16_384  # that a tagger reads in a pass
SINGLES, SINGLE_TOKENS = 200, 4_096  # texts a round that are answered alone, at most
TRIAL_TOKENS = 4_096  # of a pass that tries a number of threads

Ids = list[list[int]]


@dataclass(frozen=True, slots=True)
class Work:
    """tokens: of a prompt. new_tokens: to write. positions: most of the model. texts: of a tagger, as token ids.
    windows: of text, to judge a language model on."""

    task: str
    vocabulary: int
    positions: int
    tokens: int = 512
    new_tokens: int = 64
    texts: Ids = field(default_factory=list)
    windows: Ids = field(default_factory=list)

    @property
    def raced(self) -> Ids:
        """The texts of a pass."""
        return some_of(self.texts, PASS_TOKENS)

    def alone(self, round_: int) -> Ids:
        """The texts of a round that are answered alone; every round has others, as long as there are any."""
        length = sum(map(len, self.texts)) / len(self.texts)
        count = max(1, min(SINGLES, int(SINGLE_TOKENS / length)))
        return [self.texts[(round_ * count + i) % len(self.texts)] for i in range(count)]

    @property
    def measures(self) -> tuple[str, ...]:
        """Names of what is timed."""
        if self.task != LANGUAGE:
            return ("texts", "single")
        long = ("long",) if self.positions > LONG + STEPS else ()
        return ("prefill", "decode", *long, "batch")

    @property
    def alike(self) -> dict[str, str]:
        """Measures that run on as many threads as another: a token is a token behind any context."""
        return {"long": "decode"} if "long" in self.measures else {}

    def prompt(self, measure: str) -> tuple[int, int, int]:
        """Prompts, tokens of each and tokens to write."""
        rows = SEQUENCES if measure == "batch" else 1
        tokens = {"prefill": self.tokens, "long": LONG}.get(measure, SHORT)
        return rows, tokens, {"prefill": 1, "decode": max(STEPS, self.new_tokens)}.get(measure, STEPS)

    @property
    def room(self) -> int:
        """Positions that a cache must hold at most, of all sequences that are read together."""
        if self.task != LANGUAGE:
            return max(map(len, self.texts), default=1)
        asked = [rows * (tokens + new) for rows, tokens, new in map(self.prompt, self.measures)]
        return max(*asked, self.tokens + STEPS, *map(len, self.windows))


def some_of(texts: Ids, tokens: int) -> Ids:
    """Texts at even distances, about so many tokens of them in all, and at least one."""
    step = max(1, math.ceil(sum(map(len, texts)) / tokens))
    return texts[::step]
