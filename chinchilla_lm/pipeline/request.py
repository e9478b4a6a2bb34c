"""What a user of a language model waits for: so many tokens of a prompt, so many to write, one request at a time."""

from __future__ import annotations

from collections.abc import Iterable

from chinchilla_lm.console import Console
from chinchilla_lm.errors import InputError
from chinchilla_lm.recipe import Recipe

DEFAULT_REQUEST = (128, 64)


def timed_request(recipe: Recipe, positions: int, switches: Iterable[int], console: Console) -> tuple[int, int]:
    """Tokens of the prompt and tokens to write; of what the model has no positions for, the same share of both.

    switches: positions at which the model reads its text again, which no timed request may cross (InputError).
    """
    asked = (recipe.tokens, recipe.new_tokens)
    tokens, new = (given or usual for given, usual in zip(asked, DEFAULT_REQUEST, strict=True))
    if tokens + new > positions:
        fitting = max(1, positions * new // (tokens + new))
        if asked != (None, None):
            console.warn(
                f"--tokens {tokens} and --new-tokens {new} are above the model's {positions} positions; "
                f"{positions - fitting} and {fitting} are taken"
            )
        tokens, new = positions - fitting, fitting
    for switch in switches:
        if tokens <= switch < tokens + new - 1:
            raise InputError(
                f"--tokens {tokens} and --new-tokens {new} cross {switch}, where this model reads its text again; "
                "pass lengths on one side of it"
            )
    return tokens, new
