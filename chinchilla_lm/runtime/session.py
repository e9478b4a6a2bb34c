"""A loaded model, ready to run: text in, answers out.

The model is prepared once (norms folded, cast, frozen, or packed), so that a call does only what it must. Sessions
share nothing but the process: torch keeps one number of CPU threads for all of it, so `threads` of a later session on
torch holds for an earlier one too. A native session has threads of its own.

    session = load("out/model")
    session.entities(["Angela Merkel met Siemens in Munich."])
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypedDict, Unpack, overload

import numpy as np
from numpy.typing import NDArray

from chinchilla_lm.data.encode import IGNORED, Encoded, encode_labelled, encode_tagged
from chinchilla_lm.data.records import Labelled, Tagged
from chinchilla_lm.data.tag_path import TagPath, unseen
from chinchilla_lm.errors import InputError
from chinchilla_lm.models.config import HeadKind, Scores
from chinchilla_lm.models.sentence import PLAIN, Sentences
from chinchilla_lm.runtime.card import Card
from chinchilla_lm.runtime.entities import Entity, entities_of, words_of
from chinchilla_lm.runtime.generate import Generation, Model, write
from chinchilla_lm.runtime.given import check_text, checked_parts, checked_texts, listed
from chinchilla_lm.runtime.sampling import Sampler, check_finite, check_whole
from chinchilla_lm.runtime.text import Pieces, prompt_ids, stop_ids

if TYPE_CHECKING:
    from torch import Tensor

    from chinchilla_lm.runtime.artifact import Snapshot
    from chinchilla_lm.runtime.certified import IssuedCertificate

# Longest window of a text that is read in windows, in tokens, where the model does not say what it was trained with.
DEFAULT_WINDOW = 512

Text = str | tuple[str, str]
Prompts = list[str] | tuple[str, ...]
Floats = NDArray[np.float32]


class Backend(Model, Protocol):
    """What runs the model; the part of `Model` for causal language models alone."""

    name: str

    def outputs(self, windows: Sequence[Encoded]) -> list[Floats]:
        """What the head gives for each window: [T, C], [C] or [D]."""

    def logits(self, ids: Sequence[int]) -> Floats:
        """[T, V] for token ids [T] of a language model."""


class Options(TypedDict, total=False):
    """How to write a text; `Session.start` says what each means."""

    ignore_eos: bool
    chat: bool
    temperature: float
    top_p: float | None
    top_k: int | None
    min_p: float | None
    repetition_penalty: float
    stop: Sequence[str]
    seed: int | None


class Session:
    """A model, its tokenizer, and the calls that its head answers; a call that it does not fit raises InputError.

    files: those of the folder that it was loaded from, as they were then; None of a model in memory or a GGUF file.
    A call whose outputs are not finite numbers raises InputError and returns nothing.
    """

    def __init__(self, backend: Backend, card: Card) -> None:
        self.runner, self.card = backend, card
        self.files: Snapshot | None = None

    @property
    def backend(self) -> str:
        """`native` or `torch`."""
        return self.runner.name

    @cached_property
    def certificate(self) -> IssuedCertificate | None:
        """The certificate of the files that were loaded, which are hashed for it; None where there is none.

        A CertificateWarning says why one that is there is not shown: it is about other files, edited, or unreadable.
        """
        from chinchilla_lm.runtime.certified import valid_certificate

        return None if self.files is None else valid_certificate(self.files.folder, self.files)

    @property
    def tokenizer(self) -> Any:
        """The fast tokenizer that belongs to the model."""
        return self.card.tokenizer

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels of a classification head, in the order of its outputs."""
        return self.card.labels

    def logits(self, token_ids: Sequence[int] | Tensor) -> Floats:
        """float32 [T, V] for token ids [T]. Raises InputError for none, too many, or one outside the vocabulary."""
        self._needs("logits", "language-modeling")
        ids = _whole_numbers(token_ids)
        self._check_ids(ids)
        found = self.runner.logits(ids)
        check_finite(found)
        return found

    def _check_ids(self, ids: Sequence[int]) -> None:
        if not ids:
            raise InputError("0 token ids; at least 1 is needed; pass some")
        self._check_length(len(ids), "shorten the text")
        self._check_vocabulary(min(ids), max(ids))

    def _check_vocabulary(self, *ids: int) -> None:
        known = self.card.vocabulary
        for token in ids:
            if not 0 <= token < known:
                raise InputError(f"token id {token} is not in 0 … {known - 1}; use the model's own tokenizer")

    def _check_length(self, count: int, remedy: str) -> None:
        most = self.card.max_positions
        if count > most:
            raise InputError(f"{count} tokens are more than the model's {most} positions; {remedy}")

    @overload
    def generate(
        self, prompt: str, max_new_tokens: int = ..., stream: Literal[False] = ..., **options: Unpack[Options]
    ) -> str: ...
    @overload
    def generate(
        self, prompt: str, max_new_tokens: int = ..., *, stream: Literal[True], **options: Unpack[Options]
    ) -> Iterator[str]: ...
    @overload
    def generate(
        self, prompt: Prompts, max_new_tokens: int = ..., stream: Literal[False] = ..., **options: Unpack[Options]
    ) -> list[str]: ...
    @overload
    def generate(
        self, prompt: Prompts, max_new_tokens: int = ..., *, stream: Literal[True], **options: Unpack[Options]
    ) -> Iterator[tuple[int, str]]: ...

    def generate(
        self, prompt: str | Prompts, max_new_tokens: int = 64, stream: bool = False, **options: Unpack[Options]
    ) -> str | list[str] | Iterator[str] | Iterator[tuple[int, str]]:
        """The text that follows a prompt; with `stream`, an iterator of its pieces, none of which splits a character.

        A list of prompts gives a list of texts; with `stream`, pieces, each behind the index of its prompt. They are
        written together, which is several times as fast as one by one, and each draws random numbers of its own from
        `seed`, so that a prompt has the text that it has alone. On torch that is exact. The engine rounds a pass of
        several rows otherwise than one of a single row (logits of SmolLM2-135M differ by 1e-4 in float32, by 0.3 in
        bfloat16, not at all with int8 and int4 weights), so a near tie of two tokens may fall the other way there.
        options: those of `start`.
        """
        if isinstance(prompt, str):
            generation = self.start(prompt, max_new_tokens, **options)
            return iter(generation) if stream else "".join(generation)
        if not isinstance(prompt, list | tuple):
            raise InputError(f"prompt {prompt!r:.60} is neither a text nor a list of texts; pass one of them")
        for index, one in enumerate(prompt):
            if not isinstance(one, str):
                raise InputError(f"prompt {one!r:.60} is not a text; pass a str as prompt {index}, or leave it away")
            check_text(f"prompt {index}", one)
        generations = [self.start(one, max_new_tokens, **options) for one in prompt]
        pieces = self.write(generations)
        if stream:
            return pieces
        texts = [""] * len(generations)
        for index, piece in pieces:
            texts[index] += piece
        return texts

    def write(self, generations: Sequence[Generation]) -> Iterator[tuple[int, str]]:
        """Write together what was started: the pieces as they come, each behind the index of its generation."""
        return write(self.runner, generations)

    def start(
        self,
        prompt: str,
        max_new_tokens: int = 64,
        *,
        ignore_eos: bool = False,
        chat: bool = False,
        temperature: float = 0.0,
        top_p: float | None = None,
        top_k: int | None = None,
        min_p: float | None = None,
        repetition_penalty: float = 1.0,
        stop: Sequence[str] = (),
        seed: int | None = None,
    ) -> Generation:
        """A generation that runs as it is iterated over.

        ignore_eos: go on past the end of the text, for timing. chat: put the prompt into the tokenizer's chat template.
        temperature 0 is greedy; with a seed the same text comes again; `sampling.Sampler` has the rest. stop: texts
        that end the text where they first appear; they are not given out. Raises InputError for what is not of its type
        or out of its range, and where prompt and new tokens do not fit the model's positions.
        """
        self._needs("generate", "language-modeling")
        if not self.card.causal:
            raise InputError("a bidirectional language-modeling model writes no text; pass a causal language model")
        check_text("prompt", prompt)
        check_whole("max-new-tokens", max_new_tokens, 1, "pass --max-new-tokens 64")
        _check_stop(stop)
        sampler = Sampler(temperature, top_k, top_p, min_p, repetition_penalty, seed)
        ids = prompt_ids(self.tokenizer, prompt, chat)
        self._check_length(len(ids) + max_new_tokens - 1, f"{len(ids)} are the prompt's: ask for fewer new tokens")
        ends = frozenset[int]() if ignore_eos else self._stop_ids
        self._check_ids(ids)
        pieces = Pieces(self.tokenizer, [] if chat else ids)
        return Generation(self.runner, ids, max_new_tokens, sampler, pieces, ends, stop)

    def entities(self, texts: Sequence[str]) -> list[list[Entity]]:
        """The named spans of each text, in order. A long text is read in windows cut between words; nothing is lost."""
        self._needs("entities", "token-classification")
        texts = checked_texts(texts)
        words = [words_of(text) for text in texts]
        some = [index for index, bounds in enumerate(words) if bounds]
        records = [
            Tagged(f"text {index}", str(index), tuple(texts[index][start:end] for start, end in words[index]), tags)
            for index in some
            for tags in [("O",) * len(words[index])]
        ]
        windows = encode_tagged(records, self.tokenizer, {"O": 0}, self.window)
        said = [unseen(len(bounds), self.labels) for bounds in words]
        for window, output in zip(windows, self._outputs(windows), strict=True):
            assert isinstance(window.targets, list)
            places = [place for place, target in enumerate(window.targets) if target != IGNORED]
            chosen = log_softmax(output[places])
            for (record, word), one in zip(window.owners, chosen, strict=True):
                said[some[record]][word] = one
        path = TagPath(self.labels, legal=self.card.legal_tags)
        paths = [path(one) for one in said]
        tags = [[self.labels[label] for label in one] for one in paths]
        sure = [np.exp(one[range(len(chosen)), chosen]).tolist() for one, chosen in zip(said, paths, strict=True)]
        return [entities_of(*parts) for parts in zip(texts, words, tags, sure, strict=True)]

    def classify(self, texts: Sequence[Text]) -> list[dict[str, Any]]:
        """For each text or pair: `label`, its `score`, and the `scores` of all labels.

        Scores are probabilities: of one label among all, or, where config.json says `multi_label_classification` or
        there is but one output, of each label by itself; a regression's are its numbers. What is longer than the model
        takes is cut, with a warning.
        """
        if self.card.kind != "ranking":  # such a head has one output, which may be asked for of single texts
            self._needs("classify", "text-classification")
        found = []
        for output in self._outputs(self._encode(texts)):
            scores = scores_of(output, self.card.scores).tolist()
            best = max(range(len(scores)), key=scores.__getitem__)
            named = dict(zip(self.labels, scores, strict=True))
            found.append({"label": self.labels[best], "score": scores[best], "scores": named})
        return found

    def embed(self, texts: Sequence[Text]) -> Floats:
        """One vector a text, float32 [n, D]; a model's own default prompt is put before each.

        What is longer than the model was made for (sentence-transformers' `max_seq_length`) is cut, with a warning.
        """
        self._needs("embed", "embedding")
        outputs = self._outputs(self._encode(texts, how=self.card.sentences))
        return np.stack(outputs) if outputs else np.empty((0, self.card.hidden), np.float32)

    def score(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """How well the second text of each pair answers the first: the head's one output, higher is better."""
        self._needs("score", "ranking")
        return [float(output[0]) for output in self._outputs(self._encode(pairs, pairs_alone=True))]

    @property
    def window(self) -> int:
        """Longest window in tokens: what the model was trained with, else 512, within its positions."""
        trained = self.card.meta.get("window", {}).get("max_tokens")
        return min(int(trained or DEFAULT_WINDOW), self.card.max_positions)

    @cached_property
    def _stop_ids(self) -> frozenset[int]:
        """Read once: those of a folder or a file stand in files of their own."""
        return stop_ids(self.card.hf_config, self.tokenizer, self.card.source)

    def _encode(self, texts: Sequence[Text], pairs_alone: bool = False, how: Sentences = PLAIN) -> list[Encoded]:
        """One window a text; an encoder's limit is its positions, or that of `how`, not the window of its training."""
        parts = _prompted(checked_parts(texts, pairs_alone), how)
        records = [
            Labelled(f"text {index}", str(index), None, text, pair, "") for index, (text, pair) in enumerate(parts)
        ]
        positions = self.card.max_positions
        return encode_labelled(records, self.tokenizer, None, min(positions, how.max_tokens or positions))

    def _outputs(self, windows: list[Encoded]) -> list[Floats]:
        """What the head gives for each window."""
        if not windows:
            return []
        self._check_vocabulary(*(max(window.ids) for window in windows))
        outputs = self.runner.outputs(windows)
        for output in outputs:
            check_finite(output)
        return outputs

    def _needs(self, call: str, kind: HeadKind) -> None:
        have = self.card.kind
        if have != kind:
            raise InputError(f"{call} needs a model for {kind}, this one is for {have}; load another one")


def scores_of(outputs: Floats, how: Scores) -> Floats:
    """What a text classifier's outputs [C] mean; `HeadConfig` says how."""
    if how == "raw":
        return outputs
    if how == "sigmoid":
        found: Floats = np.exp(-np.logaddexp(np.float32(0.0), -outputs))
        return found
    return np.exp(log_softmax(outputs))


def log_softmax(values: Floats) -> Floats:
    """Over the last axis."""
    shifted = values - values.max(axis=-1, keepdims=True)
    found: Floats = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return found


def _whole_numbers(token_ids: Sequence[int] | Tensor) -> list[int]:
    """Token ids as they are. Raises InputError for what is no list of whole numbers: int() would cut 3.7, and take a
    text."""
    found = []
    for place, one in enumerate(listed("token ids", token_ids, "pass [5, 9]")):
        try:
            found.append(operator.index(one))
        except TypeError:
            raise InputError(f"token id {place} is {one!r:.60}, not a whole number; pass the tokenizer's ids") from None
    return found


def _prompted(parts: Sequence[tuple[str, str | None]], how: Sentences) -> Sequence[tuple[str, str | None]]:
    """The texts with the model's prompt before them, and in its case; of a pair, the prompt stands before the first."""
    if not (how.prompt or how.lower):
        return parts
    found = [(how.prompt + text, pair) for text, pair in parts]
    return [(text.lower(), pair and pair.lower()) for text, pair in found] if how.lower else found


def _check_stop(stop: Any) -> None:
    """Raise InputError for what is not a list of texts; a bare string would be a list of its letters."""
    several = isinstance(stop, Sequence) and not isinstance(stop, str)
    if not several or not all(isinstance(one, str) and one for one in stop):
        raise InputError(f"stop {stop!r:.60} is not a list of texts, none of them empty; pass [text]")
    for index, one in enumerate(stop):
        check_text(f"stop {index}", one)
