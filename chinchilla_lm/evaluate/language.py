"""Metrics of a language model: perplexity, and bits per byte, which models with different tokenizers can share.

    perplexity    = exp(nats / predicted tokens)
    bits per byte = nats / (ln 2 * bytes of text predicted)

Both weigh every token (byte) alike over the whole set: sums are divided once, at the end, never averaged over windows.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np

from chinchilla_lm.errors import InputError
from chinchilla_lm.evaluate.sums import Floats, Sums, document_rows, ratio
from chinchilla_lm.evaluate.tables import Measurement

NATS, TOKENS, BYTES = range(3)


def measure_text(
    nats: Sequence[float],
    predicted_tokens: Sequence[int],
    text_bytes: Sequence[int],
    documents: Sequence[str],
    *,
    windows: int | None = None,
    consecutive: bool = False,
    unfinished: Collection[str] | None = None,
) -> Measurement:
    """Metrics of one language model, all lists [parts]: of a window, what predicts tokens of one document.

    nats: summed negative log-likelihood of the part's predicted tokens. predicted_tokens: how many those are (the first
    token of a window is given, not predicted). text_bytes: UTF-8 bytes that they spell. documents: ids, in the text's
    order. windows: how many there are, the number of examples; without it, each part is one. consecutive: as in `Sums`.
    unfinished: documents that may not have been read to their end; without it, that of the last part.
    Sums `perplexity` and `bits_per_byte`, lower is better, compared in percent. Raises InputError where the lengths
    differ, nothing is predicted, or a number is not finite.
    """
    lengths = [len(nats), len(predicted_tokens), len(text_bytes), len(documents)]
    if len(set(lengths)) > 1:
        raise InputError(
            f"{lengths} parts of nats, tokens, bytes and document ids; the numbers must be equal; "
            "pass one of each a part"
        )
    tokens, size = sum(predicted_tokens), sum(text_bytes)
    if tokens <= 0 or size <= 0:
        raise InputError(
            f"{tokens} predicted tokens and {size} bytes; perplexity needs at least 1 of each; pass a text of two "
            "tokens or more"
        )
    rows, number = document_rows(documents)
    ids = tuple(dict.fromkeys(documents))
    rest = frozenset(documents[-1:] if unfinished is None else unfinished)
    per_document = np.zeros((number, 3))
    np.add.at(per_document, rows, np.column_stack([nats, predicted_tokens, text_bytes]).astype(np.float64))
    sums = {
        "perplexity": Sums("perplexity", "percent", False, per_document, _perplexity, consecutive, ids, rest),
        "bits_per_byte": Sums("bits_per_byte", "percent", False, per_document, _bits_per_byte, consecutive, ids, rest),
    }
    return Measurement(len(nats) if windows is None else windows, sums, {})


def on_same_text(original: Sums, changed: Sums) -> tuple[Sums, Sums]:
    """A metric of two models with different tokens, on the documents that both read to their end, in the text's order.

    Windows of as many tokens end at different places of the text, so its last documents have been read by one model
    alone, or in part; neither counts. Raises InputError where no other is left.
    """
    whole = read_by_both(*(set(sums.ids) - sums.unfinished for sums in (original, changed)))
    return _only(original, whole), _only(changed, whole)


def read_by_both(original: Collection[str], changed: Collection[str]) -> set[str]:
    """Documents among those that each of two models reads to their end. Raises InputError where there is none."""
    both = set(original) & set(changed)
    if not both:
        raise InputError(
            "there is no document in common that both models read to its end; pass more text, or a smaller --max-tokens"
        )
    return both


def margin_words(perplexity: float, margin: float) -> str:
    """What a margin in percent of bits per byte is in percent of a perplexity, for a person.

    Bits per byte are nats a token but for a factor, and perplexity is e to these: m % more of the one makes the other
    larger by e^(m/100 nats).
    """
    nats = math.log(perplexity)
    more = 100 * math.expm1(margin / 100 * nats)
    return (
        f"a margin of {margin:g} % of bits per byte is {more:.3g} % of perplexity for the original, at {nats:.2f} nats "
        "a token"
    )


def _only(sums: Sums, kept: Collection[str]) -> Sums:
    rows = [row for row, name in enumerate(sums.ids) if name in kept]
    return replace(sums, per_document=sums.per_document[rows], ids=tuple(sums.ids[row] for row in rows))


def _perplexity(sums: Floats) -> Floats:
    return np.asarray(np.exp(ratio(sums[..., NATS], sums[..., TOKENS])))


def _bits_per_byte(sums: Floats) -> Floats:
    return ratio(sums[..., NATS], sums[..., BYTES] * math.log(2))
