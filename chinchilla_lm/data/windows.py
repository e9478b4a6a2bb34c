"""Running text cut into windows for language modelling.

Cut as for the perplexity figures in papers: documents joined by an empty line, tokenised as one text, cut into windows
that do not overlap, the remainder dropped. Each window knows how many bytes its predictions spell, so that losses of
different tokenizers compare as bits per byte.

A model whose tokenizer begins every text with a token of its own (Gemma, Llama 3) has seen no text without it, and
reads one badly: Gemma's perplexity is in the hundreds then. So each of its windows begins with that token too.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING
from unicodedata import normalize

from chinchilla_lm.data.encoded import Encoded, tokenize
from chinchilla_lm.data.records import Text
from chinchilla_lm.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

JOINT = "\n\n"
# Tokenised in one call, in characters. WikiText-2 test (1.3 M) is one block, so its ids are those of one text; larger
# corpora are parted between documents, to bound the memory that a tokenizer's offsets take.
BLOCK_CHARACTERS = 4_000_000


def encode_text(
    records: Sequence[Text], tokenizer: PreTrainedTokenizerFast, window: int, *, bos: bool = False
) -> list[Encoded]:
    """Windows of exactly `window` tokens, in text order; targets None, since the ids are their own.

    `owners` are the records that the predicted tokens stand in and how many of them: all of the window's tokens with
    `bos` (a beginning-of-sequence token, then window − 1 tokens of text), all but the first without. `bytes` counts
    their text, owner by owner.

    Raises:
        InputError: a window below 2, `bos` without such a token, or less text than one window.
    """
    if window < 2:
        raise InputError(
            f"window {window} is below 2 tokens, which predict nothing; pass 2048, or what the model takes"
        )
    if bos and tokenizer.bos_token_id is None:
        raise InputError("the tokenizer has no beginning-of-sequence token; leave out bos")
    head = [tokenizer.bos_token_id] if bos else []
    texts = [record.text for record in records]
    starts = _starts(texts)
    whole = JOINT.join(texts)
    ids, places = _tokens_and_places(tokenizer, whole, starts)
    take = window - bos
    if len(ids) < take:
        raise InputError(
            f"{len(ids)} tokens of text do not fill one window of {window}; pass more text or a smaller window"
        )
    places.append(len(whole))
    windows = []
    for first in range(0, len(ids) - take + 1, take):
        predicted = range(first if bos else first + 1, first + take)
        owners, sizes = [], []
        for record, tokens in _by_record(whole, starts, places, predicted):
            text = whole[places[tokens.start] : places[tokens.stop]]
            owners.append((record, len(tokens)))
            sizes.append(len(text.encode("utf-8", "surrogatepass")))
        windows.append(Encoded(head + ids[first : first + take], None, None, owners, tuple(sizes)))
    return windows


def _by_record(whole: str, starts: Sequence[int], places: Sequence[int], tokens: range) -> Iterator[tuple[int, range]]:
    """The records that some tokens in a row stand in, each with its tokens."""

    def record_of(token: int) -> int:
        return bisect_right(starts, places[token] + _spaces_at(whole, places[token])) - 1

    begun = tokens.start
    while begun < tokens.stop:
        record = record_of(begun)
        after = bisect_right(tokens, record, begun - tokens.start, key=record_of)  # records do not decrease
        end = tokens.start + after
        yield record, range(begun, end)
        begun = end


def check_spelling(records: Sequence[Text], tokenizer: PreTrainedTokenizerFast, model: str) -> None:
    """Hold a tokenizer to spelling the records' text again; what NFC makes alike is the same text.

    One that knows few words, or lower-cases, has the bytes of what it read over counted as predicted: `[UNK]` is
    cheap and may stand for 42 of them. Bits per byte of different tokens say nothing then.
    Raises InputError, naming `model`, where the text comes out as another.
    """
    texts = [record.text for record in records]
    whole = JOINT.join(texts)
    for low, high in _blocks(len(whole), _starts(texts)):
        ids = tokenize(tokenizer, [whole[low:high]])[0]
        spelled = str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))
        # Tokens that hold the space before a word begin a text with one of their own, or take one away.
        given, found = (normalize("NFC", text).removeprefix(" ") for text in (whole[low:high], spelled))
        if given != found:
            pairs = enumerate(zip(given, found, strict=False))
            alike = next((place for place, (one, other) in pairs if one != other), min(len(given), len(found)))
            begin, end = max(0, alike - 10), alike + 30
            raise InputError(
                f"the tokens of {model} make {found[begin:end]!r} of {given[begin:end]!r}; bits per byte need tokens "
                "that spell the text again; compare models with one tokenizer, or on text that it does not change"
            )


def begins_with_bos(tokenizer: PreTrainedTokenizerFast) -> bool:
    """Whether the tokenizer puts its beginning-of-sequence token before every text."""
    first = tokenizer("x", padding=False, truncation=False)["input_ids"][:1]
    return tokenizer.bos_token_id is not None and list(first) == [tokenizer.bos_token_id]


def _starts(texts: Sequence[str]) -> list[int]:
    """The character at which each record begins in the joined text."""
    starts, at = [], 0
    for text in texts:
        starts.append(at)
        at += len(text) + len(JOINT)
    return starts


def _spaces_at(text: str, place: int) -> int:
    """How many line ends follow: a token that only joins two documents counts to the second."""
    end = place
    while end < len(text) and text[end] == "\n":
        end += 1
    return end - place


def _tokens_and_places(
    tokenizer: PreTrainedTokenizerFast, whole: str, starts: Sequence[int]
) -> tuple[list[int], list[int]]:
    """Token ids, and the character at which the text of each begins, white space before it included.

    Places never decrease and the first is 0, so the texts between them add up to the whole. Tokens that share a
    character (byte-level BPE inside an emoji) share its place, and the last of them carries its bytes.
    """
    ids: list[int] = []
    places: list[int] = []
    end = 0
    for low, high in _blocks(len(whole), starts):
        found = tokenizer(
            whole[low:high],
            add_special_tokens=False,
            padding=False,
            truncation=False,
            return_offsets_mapping=True,
            verbose=False,
        )
        ids.extend(found["input_ids"])
        for start, stop in found["offset_mapping"]:
            places.append(min(end, low + start))
            end = max(end, low + stop)
    return ids, places


def _blocks(length: int, starts: Sequence[int]) -> list[tuple[int, int]]:
    """The text in parts of about BLOCK_CHARACTERS, parted where a record begins."""
    bounds = [0]
    for start in starts:
        if start - bounds[-1] >= BLOCK_CHARACTERS:
            bounds.append(start)
    return list(zip(bounds, [*bounds[1:], length], strict=True))
