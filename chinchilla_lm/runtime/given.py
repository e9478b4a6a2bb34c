"""What callers pass as texts, checked before a tokenizer sees it: one InputError names the text that is none.

Tables hold a None or a NaN for a text that is missing, and numbers for texts of digits; a text that was decoded wrongly
holds half of a surrogate pair, which no tokenizer takes. Nothing is guessed: `str(None)` would be judged as a text.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from chinchilla_lm.errors import InputError


def check_text(name: str, text: object) -> str:
    """The text as a plain str. Raises InputError for what is no text, and for half a character."""
    if not isinstance(text, str):
        raise InputError(f"{name} is {text!r:.60}, not a text; pass a str, or leave it away")
    plain = str.__str__(text)  # NumPy's texts are of a class of their own
    try:
        plain.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{name} has {plain[error.start]!r} at character {error.start}, half of a surrogate pair and no character "
            "of its own; decode the text anew, as UTF-8"
        ) from None
    return plain


def checked_texts(texts: Any) -> list[str]:
    """A list of texts. Raises InputError for anything else, naming the first that is none."""
    return [check_text(f"text {index}", text) for index, text in enumerate(listed("texts", texts, "pass [text]"))]


def checked_parts(texts: Any, pairs_alone: bool = False) -> list[tuple[str, str | None]]:
    """A list of texts and pairs of texts, or of pairs alone. Raises InputError as `checked_texts` does."""
    found: list[tuple[str, str | None]] = []
    for index, one in enumerate(listed("pairs" if pairs_alone else "texts", texts, "pass [text]")):
        if isinstance(one, tuple | list) and len(one) == 2:
            first, second = (check_text(f"text {side} of pair {index}", text) for side, text in enumerate(one))
            found.append((first, second))
        elif pairs_alone or isinstance(one, tuple | list):
            raise InputError(f"pair {index} is {one!r:.60}, not two texts; pass (question, answer)")
        else:
            found.append((check_text(f"text {index}", one), None))
    return found


def listed(name: str, values: Any, remedy: str) -> list[Any]:
    """What was passed as a list.

    Raises InputError for what is none, and for a single text, a sequence of its letters and surely not meant so.
    """
    if isinstance(values, str | bytes):
        raise InputError(f"{name} {values[:40]!r} is one text, not a list; {remedy}")
    if isinstance(values, Mapping) or not isinstance(values, Iterable):
        raise InputError(f"{name} {values!r:.60} is not a list; {remedy}")
    try:
        return list(values)
    except TypeError:  # an array of no dimensions
        raise InputError(f"{name} {values!r:.60} is not a list; {remedy}") from None
