"""Records and a tokenizer become windows of token ids with targets; running text is cut in `windows`.

Words are tokenised one by one, each distinct word once: exact for WordPiece and byte-level BPE, which never merge
across a space. In byte-level BPE the space belongs to the word after it, so every word but the first of its sentence is
tokenised as " word"; without it the model would read a glued text.

    sentence   [CLS] EU    rejects German call [SEP]
    document   [CLS] EU    rejects German call [SEP] Peter Blackburn [SEP] …
    target     -100  B-ORG O       B-MISC O    -100  B-PER I-PER     -100    at the first piece of each word

Between the sentences of a document stands a line end where the vocabulary has one, else [SEP]. Nothing is lost: a
record that is longer than a window is cut between words, and a word of no tokens becomes one unknown.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

from chinchilla_lm.data.encoded import IGNORED, DataWarning, Encoded, tokenize
from chinchilla_lm.data.records import Labelled, Tagged
from chinchilla_lm.data.windows import encode_text
from chinchilla_lm.data.words import is_cjk
from chinchilla_lm.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

__all__ = ["DataWarning", "Encoded", "Frame", "encode_labelled", "encode_tagged", "encode_text", "frame_of", "label_id"]

_SPACE_MARKS = ("▁", "Ġ")  # how SentencePiece and byte-level BPE write a leading space


@dataclass(frozen=True, slots=True)
class Frame:
    """What a tokenizer puts around a text (prefix, suffix) and we put between two sentences of a window, as ids;
    whether a word inside a sentence must be given its leading space; the id for a word that has no tokens."""

    prefix: list[int]
    suffix: list[int]
    between: list[int]
    spaced: bool
    unknown: int | None


def frame_of(tokenizer: PreTrainedTokenizerFast) -> Frame:
    """How this tokenizer frames a text, found by asking it, not by its name."""
    probe = tokenizer("x", return_special_tokens_mask=True, padding=False, truncation=False)
    ids, special = list(probe["input_ids"]), list(probe["special_tokens_mask"])
    body = [i for i, mark in enumerate(special) if not mark] or [special.count(1)]
    first, spaced = (tokenize(tokenizer, [text])[0] for text in ("x", " x"))
    carries = bool(first) and str(tokenizer.convert_ids_to_tokens(first)[0]).startswith(_SPACE_MARKS)
    newline = tokenize(tokenizer, ["\n"])[0]
    if not newline or "\n" not in tokenizer.decode(newline):
        newline = [] if tokenizer.sep_token_id is None else [tokenizer.sep_token_id]
    unknown = tokenizer.unk_token_id if tokenizer.unk_token_id is not None else tokenizer.eos_token_id
    return Frame(ids[: body[0]], ids[body[-1] + 1 :], newline, not carries and first != spaced, unknown)


def encode_tagged(
    records: Sequence[Tagged],
    tokenizer: PreTrainedTokenizerFast,
    label_ids: Mapping[str, int],
    max_tokens: int,
    context: Literal["sentence", "document"] = "sentence",
) -> list[Encoded]:
    """Windows of at most `max_tokens` tokens with a target at the first piece of each word.

    Every word of every record is the owner of exactly one target, in record and word order. With context "document",
    consecutive sentences of one document are packed into a window as long as they fit whole.

    Raises:
        InputError: a tag is not in `label_ids`, `max_tokens` leaves no room, or a word has no tokens and the tokenizer
            no unknown token.
    Warns:
        DataWarning: records were cut between words, or single words were cut, to fit.
    """
    frame = frame_of(tokenizer)
    room = max_tokens - len(frame.prefix) - len(frame.suffix)
    if room < 1:
        raise InputError(f"max_tokens {max_tokens} leaves no room between the special tokens; pass at least 16")
    if context not in ("sentence", "document"):
        raise InputError(f"context {context!r} is not sentence or document; pass one of these")
    spelt = [_spell(record.words, frame.spaced) for record in records]
    distinct = list(dict.fromkeys(text for texts in spelt for text in texts))
    pieces = dict(zip(distinct, _word_pieces(tokenizer, distinct, frame), strict=True))
    packer = _Packer(frame, room, context == "document")
    for index, (record, texts) in enumerate(zip(records, spelt, strict=True)):
        targets = [label_id(label_ids, tag, record.id) for tag in record.tags]
        packer.add(index, record.document, [pieces[text] for text in texts], targets)
    packer.flush()
    if packer.cut_records:
        _warn(f"{packer.cut_records} of {len(records)} records are over {max_tokens} tokens and were cut between words")
    if packer.cut_words:
        _warn(f"{packer.cut_words} words are over {room} tokens each and lost their ends")
    return packer.windows


def label_id(label_ids: Mapping[str, int], label: str, where: str) -> int:
    """The id of a label.

    Raises:
        InputError: the model has no such label.
    """
    if label not in label_ids:
        known = ", ".join(list(label_ids)[:12])
        raise InputError(
            f"label {label!r} of {where} is not among the model's ({known}); use data with the same labels"
        )
    return label_ids[label]


def _spell(words: Sequence[str], spaced: bool) -> list[str]:
    """The words as they are to be tokenised: with their leading space, save the first and next to CJK characters."""
    if not spaced:
        return list(words)
    texts = list(words[:1])
    for before, word in pairwise(words):
        glued = not word or not before or is_cjk(word[0]) or is_cjk(before[-1])
        texts.append(word if glued else f" {word}")
    return texts


def _word_pieces(tokenizer: PreTrainedTokenizerFast, texts: list[str], frame: Frame) -> list[list[int]]:
    """Token ids of each text, never none."""
    pieces = tokenize(tokenizer, texts)
    if frame.unknown is None and not all(pieces):
        raise InputError(
            f"word {texts[pieces.index([])]!r} has no tokens and the tokenizer no unknown token; remove the word"
        )
    return [ids or [frame.unknown or 0] for ids in pieces]


@dataclass(slots=True)
class _Packer:
    """Fills windows with sentences, in order."""

    frame: Frame
    room: int
    join: bool
    windows: list[Encoded] = field(default_factory=list)
    cut_records: int = 0
    cut_words: int = 0
    _ids: list[int] = field(default_factory=list)
    _targets: list[int] = field(default_factory=list)
    _owners: list[tuple[int, int]] = field(default_factory=list)
    _document: str = ""

    def add(self, record: int, document: str, words: list[list[int]], targets: list[int]) -> None:
        """Put one sentence, given as the pieces of its words, where it fits."""
        length = sum(map(len, words))
        between = self.frame.between
        fits = len(self._ids) + len(between) + length <= self.room
        if self._ids and self.join and document == self._document and fits:
            self._ids += between
            self._targets += [IGNORED] * len(between)
        else:
            self.flush()
        self._document = document
        self.cut_records += length > self.room
        for word, (ids, target) in enumerate(zip(words, targets, strict=True)):
            if len(ids) > self.room:
                ids = ids[: self.room]
                self.cut_words += 1
            if len(self._ids) + len(ids) > self.room:
                self.flush()
            self._ids += ids
            self._targets += [target] + [IGNORED] * (len(ids) - 1)
            self._owners.append((record, word))

    def flush(self) -> None:
        """Close the window, if there is anything in it."""
        if self._ids:
            prefix, suffix = self.frame.prefix, self.frame.suffix
            targets = [IGNORED] * len(prefix) + self._targets + [IGNORED] * len(suffix)
            self.windows.append(Encoded(prefix + self._ids + suffix, None, targets, self._owners))
        self._ids, self._targets, self._owners = [], [], []


def encode_labelled(
    records: Sequence[Labelled],
    tokenizer: PreTrainedTokenizerFast,
    label_ids: Mapping[str, int] | None,
    max_tokens: int,
) -> list[Encoded]:
    """One window a record, in order, with its label id as target (None without `label_ids`).

    A pair goes in as the tokenizer's own pair, or joined by a line end where the tokenizer puts nothing between two
    texts. What is over `max_tokens` is cut as the tokenizer cuts, the longer text of a pair first.

    Raises:
        InputError: a label is not in `label_ids`, or a text has no tokens at all.
    Warns:
        DataWarning: texts were cut.
    """
    specials = tokenizer.num_special_tokens_to_add(pair=True)
    if max_tokens <= specials:
        raise InputError(f"max_tokens {max_tokens} leaves no room beside {specials} special tokens; pass at least 16")
    parted = specials > tokenizer.num_special_tokens_to_add(pair=False)
    windows = []
    cut = 0
    for start in range(0, len(records), 1000):  # as many records at once as keep memory small
        part = records[start : start + 1000]
        texts = [_text_or_pair(record, parted) for record in part]
        whole = _tokenize_framed(tokenizer, texts, None)
        long = [i for i, (ids, _) in enumerate(whole) if len(ids) > max_tokens]
        for i, fitted in zip(long, _tokenize_framed(tokenizer, [texts[i] for i in long], max_tokens), strict=True):
            whole[i] = fitted
        cut += len(long)
        for i, (record, (ids, segments)) in enumerate(zip(part, whole, strict=True), start=start):
            if not ids:
                raise InputError(f"text {record.text[:40]!r} of {record.id} has no tokens; remove the record")
            target = None if label_ids is None else label_id(label_ids, record.label, record.id)
            windows.append(Encoded(ids, segments, target, [(i, 0)]))
    if cut:
        _warn(f"{cut} of {len(records)} texts are over {max_tokens} tokens and lost their ends")
    return windows


def _text_or_pair(record: Labelled, parted: bool) -> tuple[str, ...]:
    if record.pair is None:
        return (record.text,)
    return (record.text, record.pair) if parted else (f"{record.text}\n{record.pair}",)


def _tokenize_framed(
    tokenizer: PreTrainedTokenizerFast, texts: Sequence[tuple[str, ...]], max_tokens: int | None
) -> list[tuple[list[int], list[int] | None]]:
    """(ids, segments) of texts and pairs with special tokens; segments None where all are 0."""
    found: list[tuple[list[int], list[int] | None]] = [([], None)] * len(texts)
    cut = {"truncation": False} if max_tokens is None else {"truncation": "longest_first", "max_length": max_tokens}
    for width in (1, 2):
        rows = [i for i, text in enumerate(texts) if len(text) == width]
        if not rows:
            continue
        columns = [[texts[i][side] for i in rows] for side in range(width)]
        batch = tokenizer(*columns, padding=False, return_token_type_ids=True, verbose=False, **cut)
        for i, ids, segments in zip(rows, batch["input_ids"], batch["token_type_ids"], strict=True):
            found[i] = (list(ids), list(segments) if any(segments) else None)
    return found


def _warn(text: str) -> None:
    warnings.warn(text, DataWarning, stacklevel=3)
