"""A loaded model, ready to run: text in, answers out.

The model is prepared once (norms folded, cast, frozen), so that a call does only what it must. Sessions share nothing
but the process: torch keeps one number of CPU threads for all of it, so `threads` of a later session holds for an
earlier one too.

    session = load("out/model")
    session.entities(["Angela Merkel met Siemens in Munich."])
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack, overload

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from chinchilla_lm.data.batches import batches
from chinchilla_lm.data.encode import IGNORED, Encoded, encode_labelled, encode_tagged
from chinchilla_lm.data.records import Labelled, Tagged
from chinchilla_lm.data.tag_path import TagPath, unseen
from chinchilla_lm.errors import InputError
from chinchilla_lm.models import checkpoint as checkpoints
from chinchilla_lm.models.batch import Batch
from chinchilla_lm.models.checkpoint import Checkpoint
from chinchilla_lm.models.config import HeadKind
from chinchilla_lm.models.transformer import Transformer
from chinchilla_lm.runtime.device import resolve_device, resolve_dtype
from chinchilla_lm.runtime.entities import Entity, entities_of, words_of
from chinchilla_lm.runtime.generate import Sampler, check_finite, generate
from chinchilla_lm.runtime.prepare import prepare
from chinchilla_lm.runtime.text import Pieces, prompt_ids, stop_ids

BACKENDS = ("auto", "torch")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}
# Positions a batch, padding included: enough to fill the cores, little enough for the activations of a long text.
BATCH_TOKENS = 4096
# Longest window of a text that is read in windows, in tokens, where the model does not say what it was trained with.
DEFAULT_WINDOW = 512

Text = str | tuple[str, str]


class Options(TypedDict, total=False):
    """How to write a text; `Session.start` says what each means."""

    ignore_eos: bool
    chat: bool
    temperature: float
    top_p: float | None
    top_k: int | None
    seed: int | None


def load(
    path: str | Path,
    backend: str = "auto",
    device: str = "auto",
    dtype: str = "auto",
    threads: int | None = None,
    task: str | None = None,
) -> Session:
    """A session on a model folder, a run folder, a GGUF file or a hub model, with the head it was saved with.

    dtype: `auto` is bfloat16 where the device multiplies it natively, else float32. threads: CPU threads of the whole
    process, for torch has one number for all; None leaves it. task: needed where the checkpoint says none. Raises
    InputError for an unknown backend, device or dtype, for a model that cannot be read, and for a task whose head would
    have random weights.
    """
    if backend not in BACKENDS:
        raise InputError(f"backend {backend!r} is not one of {', '.join(BACKENDS)}; pass one of them")
    if threads is not None:
        set_threads(threads)
    checkpoint = checkpoints.load(path, task=task)
    if checkpoint.fresh:
        raise InputError(f"{path} has no trained head for {task}; run chinchilla finetune first")
    return Session.from_checkpoint(checkpoint, device, dtype)


def set_threads(threads: int) -> None:
    """Set torch's CPU threads, for the whole process. Raises InputError for fewer than one."""
    if threads < 1:
        raise InputError(f"threads {threads} is not 1 or more; leave --threads away to use every core")
    torch.set_num_threads(threads)


def dtype_of(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    """`auto` or a name as torch has it. Raises InputError for any other name."""
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype == "auto":
        return resolve_dtype(dtype, device)
    if dtype not in DTYPES:
        raise InputError(f"dtype {dtype!r} is not one of auto, {', '.join(DTYPES)}; pass one of them")
    return DTYPES[dtype]


class Session:
    """A model, its tokenizer, and the calls that its head answers; a call that it does not fit raises InputError.

    Calls run in inference mode. One whose outputs are not finite numbers raises InputError and returns nothing.
    """

    backend = "torch"

    def __init__(self, model: Transformer, checkpoint: Checkpoint) -> None:
        """model: prepared; checkpoint: where it came from, for tokenizer and configs. Its weights are let go."""
        self.model, self.config = model, model.config
        self._about = replace(checkpoint, model=model)
        if "tokenizer" in vars(checkpoint):
            self._about.tokenizer = checkpoint.tokenizer
        weight = model.embedding.tokens.weight
        self.device, self.dtype = weight.device, weight.dtype

    @classmethod
    def from_checkpoint(
        cls, checkpoint: Checkpoint, device: str | torch.device = "auto", dtype: str | torch.dtype = "auto"
    ) -> Session:
        """A session on a model in memory, which stays as it is."""
        place = resolve_device(device) if isinstance(device, str) else device
        return cls(prepare(checkpoint.model, place, dtype_of(dtype, place)), checkpoint)

    @property
    def tokenizer(self) -> Any:
        """The fast tokenizer of transformers that belongs to the model."""
        return self._about.tokenizer

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels of a classification head, in the order of its outputs."""
        return self.config.head.labels

    @torch.inference_mode()
    def forward(self, batch: Batch) -> Tensor:
        """What the head gives, float32: [B, T, V], [B, T, C], [B, C] or [B, D]."""
        output = self.model(batch.to(self.device)).float()
        check_finite(output)
        return output

    def logits(self, token_ids: Sequence[int] | Tensor) -> Tensor:
        """float32 [T, V] for token ids [T]. Raises InputError for none, too many, or one outside the vocabulary."""
        self._needs("logits", "language-modeling")
        ids = torch.as_tensor(token_ids, dtype=torch.int64).reshape(1, -1)
        self._check_ids(ids)
        return self.forward(Batch(ids))[0]

    def _check_ids(self, ids: Tensor) -> None:
        if ids.numel() == 0:
            raise InputError("0 token ids; at least 1 is needed; pass some")
        self._check_length(ids.numel(), "shorten the text")
        self._check_vocabulary(int(ids.min()), int(ids.max()))

    def _check_vocabulary(self, *ids: int) -> None:
        for token in ids:
            if not 0 <= token < self.config.vocab_size:
                raise InputError(
                    f"token id {token} is not in 0 … {self.config.vocab_size - 1}; use the model's own tokenizer"
                )

    def _check_length(self, count: int, remedy: str) -> None:
        if count > self.config.max_positions:
            raise InputError(
                f"{count} tokens are more than the model's {self.config.max_positions} positions; {remedy}"
            )

    @overload
    def generate(
        self, prompt: str, max_new_tokens: int = ..., stream: Literal[False] = ..., **options: Unpack[Options]
    ) -> str: ...
    @overload
    def generate(
        self, prompt: str, max_new_tokens: int = ..., *, stream: Literal[True], **options: Unpack[Options]
    ) -> Iterator[str]: ...

    def generate(
        self, prompt: str, max_new_tokens: int = 64, stream: bool = False, **options: Unpack[Options]
    ) -> str | Iterator[str]:
        """The text that follows a prompt; with `stream`, an iterator of its pieces, none of which splits a character.

        options: those of `start`.
        """
        generation = self.start(prompt, max_new_tokens, **options)
        return iter(generation) if stream else "".join(generation)

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
        seed: int | None = None,
    ) -> Generation:
        """A generation that runs as it is iterated over.

        ignore_eos: go on past the end of the text, for timing. chat: put the prompt into the tokenizer's chat template.
        temperature 0 is greedy; with a seed the same text comes again. Raises InputError where prompt and new tokens do
        not fit the model's positions.
        """
        self._needs("generate", "language-modeling")
        sampler = Sampler(temperature, top_k, top_p, seed)
        ids = prompt_ids(self.tokenizer, prompt, chat)
        self._check_length(len(ids) + max_new_tokens, f"{len(ids)} are the prompt's: ask for fewer new tokens")
        stop = frozenset[int]() if ignore_eos else stop_ids(self._about.hf_config, self.tokenizer, self._about.source)
        tensor = torch.tensor([ids], device=self.device)
        self._check_ids(tensor)
        tokens = generate(self.model, tensor, max_new_tokens, sampler, stop)
        return Generation(tokens, Pieces(self.tokenizer, [] if chat else ids), len(ids))

    def entities(self, texts: Sequence[str]) -> list[list[Entity]]:
        """The named spans of each text, in order. A long text is read in windows cut between words; nothing is lost."""
        self._needs("entities", "token-classification")
        _refuse_one(texts)
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
            chosen = F.log_softmax(output[places].float(), dim=-1).cpu().numpy()
            for (record, word), one in zip(window.owners, chosen, strict=True):
                said[some[record]][word] = one
        path = TagPath(self.labels, legal=self._about.legal_tags)
        paths = [path(one) for one in said]
        tags = [[self.labels[label] for label in one] for one in paths]
        sure = [np.exp(one[range(len(chosen)), chosen]).tolist() for one, chosen in zip(said, paths, strict=True)]
        return [entities_of(*parts) for parts in zip(texts, words, tags, sure, strict=True)]

    def classify(self, texts: Sequence[Text]) -> list[dict[str, Any]]:
        """For each text or pair: `label`, its `score` (a probability), and the `scores` of all labels.

        What is longer than the model takes is cut, with a warning.
        """
        self._needs("classify", "text-classification")
        found = []
        for output in self._outputs(self._encode(texts)):
            scores = F.softmax(output, dim=-1).tolist()
            best = max(range(len(scores)), key=scores.__getitem__)
            named = dict(zip(self.labels, scores, strict=True))
            found.append({"label": self.labels[best], "score": scores[best], "scores": named})
        return found

    def embed(self, texts: Sequence[Text]) -> Tensor:
        """One vector a text, float32 [n, D] on the CPU. What is longer than the model takes is cut, with a warning."""
        self._needs("embed", "embedding")
        outputs = self._outputs(self._encode(texts))
        return torch.stack(outputs) if outputs else torch.empty(0, self.config.hidden_size)

    def score(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """How well the second text of each pair answers the first: the head's one output, higher is better."""
        self._needs("score", "ranking")
        for index, pair in enumerate(pairs):
            if isinstance(pair, str) or len(pair) != 2:
                raise InputError(f"pair {index} is {pair!r:.60}, not two texts; pass (question, answer)")
        return [float(output[0]) for output in self._outputs(self._encode(pairs))]

    @property
    def window(self) -> int:
        """Longest window in tokens: what the model was trained with, else 512, within its positions."""
        trained = self._about.meta.get("window", {}).get("max_tokens")
        return min(int(trained or DEFAULT_WINDOW), self.config.max_positions)

    def _encode(self, texts: Sequence[Text]) -> list[Encoded]:
        """One window a text; an encoder's limit is its positions, not the window it was trained with."""
        _refuse_one(texts)
        parts = [(text, None) if isinstance(text, str) else tuple(text) for text in texts]
        records = [Labelled(f"text {i}", str(i), None, str(p[0]), p[1], "") for i, p in enumerate(parts)]
        return encode_labelled(records, self.tokenizer, None, self.config.max_positions)

    def _outputs(self, windows: list[Encoded]) -> list[Tensor]:
        """What the head gives for each window, float32 on the CPU, padding included."""
        outputs: list[Tensor] = [torch.empty(0)] * len(windows)
        self._check_vocabulary(*(max(window.ids) for window in windows))
        for batch in batches(windows, max_tokens=BATCH_TOKENS, pad_id=self._about.pad_id):
            found = self.forward(batch.batch).cpu()
            for row, output in zip(batch.rows, found, strict=True):
                outputs[row] = output
        return outputs

    def _needs(self, call: str, kind: HeadKind) -> None:
        have = self.config.head.kind
        if have != kind:
            raise InputError(f"{call} needs a model for {kind}, this one is for {have}; load another one")


class Generation:
    """A text that is being written: iterate over it for the pieces. tokens: those drawn so far."""

    def __init__(self, tokens: Iterator[int], pieces: Pieces, prompt_tokens: int) -> None:
        self._drawn, self._pieces = tokens, pieces
        self.prompt_tokens = prompt_tokens
        self.tokens: list[int] = []

    def __iter__(self) -> Iterator[str]:
        for token in self._drawn:
            self.tokens.append(token)
            if piece := self._pieces.add(token):
                yield piece
        if piece := self._pieces.finish():
            yield piece


def _refuse_one(texts: object) -> None:
    """A bare string is a sequence of its letters, and surely not what was meant."""
    if isinstance(texts, str):
        raise InputError(f"texts {texts[:40]!r} is one text, not a list of them; pass [text]")
