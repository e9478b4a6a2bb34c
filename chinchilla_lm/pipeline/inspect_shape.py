"""The pass that `inspect` times."""

from __future__ import annotations

from chinchilla_lm.errors import InputError

DEFAULT_TOKENS = 128

# Sequences and tokens; None for the default.
Wanted = tuple[int, int | None]


def fitting(wanted: Wanted, positions: int) -> tuple[int, int]:
    """Sequences and tokens for a model of so many positions. Raises InputError for a shape that it cannot take."""
    rows, tokens = wanted
    if tokens is None:
        tokens = min(DEFAULT_TOKENS, positions)
    if rows < 1 or not 1 <= tokens <= positions:
        raise InputError(
            f"a batch of {rows} times {tokens} tokens is not 1 or more times 1 to {positions}; "
            "pass other --batch and --tokens"
        )
    return rows, tokens
