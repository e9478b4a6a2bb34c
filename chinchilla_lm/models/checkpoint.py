"""Models in and out of files: Hugging Face folders, GGUF files, hub names; and our own folders of shortened models.

A shortened model keeps its family's config and weight names, gaps included, but says `"model_type": "chinchilla"`, so
that stock transformers refuses it instead of filling the gaps with random weights; `chinchilla.json` lists what was
dropped. Nothing dropped: a stock folder. (`export` makes a stock folder of any shortened model.)
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import torch

from chinchilla_lm.errors import InputError
from chinchilla_lm.files import building, json_text, read_json, sha256_of
from chinchilla_lm.models.config import HeadConfig, HeadKind, ModelConfig
from chinchilla_lm.models.families import family_of
from chinchilla_lm.models.families.base import Family
from chinchilla_lm.models.filling import Unread, fill
from chinchilla_lm.models.gguf_names import shards_of
from chinchilla_lm.models.meta import META, VERSION, meta_of
from chinchilla_lm.models.saving import OWN_TYPE, write_config, write_weights
from chinchilla_lm.models.sentence import PLAIN, Sentences, makes_vectors, read_sentences, write_sentences
from chinchilla_lm.models.source import Located, locate
from chinchilla_lm.models.stock import padding_token, tokenizer_for_both
from chinchilla_lm.models.tensors import TensorSource, open_safetensors
from chinchilla_lm.models.tokenizer import save_tokenizer, tokenizer_of
from chinchilla_lm.models.transformer import NormFate, Transformer
from chinchilla_lm.models.weight_files import weight_files


@dataclass
class Checkpoint:
    """A model and what belongs to it.

    hf_config: the Hugging Face config with the family's own model_type. source: the folder or GGUF file. meta: what
    chinchilla.json says, or {}. fresh: names of head weights that were initialised, not loaded. sentences: how an
    embedding model reads texts. root: the folder of sentence-transformers, where the source is one in it. hub: name,
    revision and commit of a model that came from there.
    """

    model: Transformer
    hf_config: dict[str, Any]
    source: Path | None = None
    meta: dict[str, Any] = field(default_factory=dict)
    fresh: tuple[str, ...] = ()
    files: tuple[Path, ...] = ()
    sentences: Sentences = PLAIN
    root: Path | None = None
    hub: Mapping[str, str] | None = None

    @cached_property
    def tokenizer(self) -> Any:
        """The fast tokenizer of transformers, loaded when first asked for.

        Raises InputError where there is none, and where its vocabulary is larger than the model's. (Tokens that were
        added to it may lie beyond: Gemma 3 has one for images, and a text without it is fine.)
        """
        if self.source is None:
            raise InputError(
                "this model was built without a tokenizer; load it from a folder that holds tokenizer.json"
            )
        return tokenizer_of(self.source, self.model.config.vocab_size)

    @property
    def pad_id(self) -> int:
        """The id that fills up short rows. One that was added to the tokenizer alone is 0: padding is masked."""
        pad = self.tokenizer.pad_token_id or 0
        return pad if pad < self.model.config.vocab_size else 0

    @property
    def legal_tags(self) -> bool:
        """Whether it was trained on BIO by us. Models from elsewhere may mean IOB1 by the same labels."""
        return self.meta.get("tags") == "BIO"

    def with_model(self, model: Transformer) -> Checkpoint:
        """The same surroundings for another model: shortened, trained on, exported."""
        made = replace(self, model=model, fresh=(), files=())
        if "tokenizer" in self.__dict__:
            made.tokenizer = self.tokenizer
        return made

    @property
    def family(self) -> Family:
        """The family of the model."""
        return family_of(self.hf_config)

    @cached_property
    def sha256(self) -> str:
        """Identity of weights, config and tokenizer as they were loaded; of the weights in memory if built here."""
        if self.files:
            return sha256_of_files(self.files)
        digest = hashlib.sha256()
        for name, tensor in self.model.state_dict().items():
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()


def sha256_of_files(files: Iterable[Path]) -> str:
    """The identity of a model that was read from these files."""
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.name} {sha256_of(path)}\n".encode())
    return digest.hexdigest()


def sha256_of_model(source: Path) -> str:
    """`Checkpoint.sha256` of the folder or GGUF file that a checkpoint names as its source, without loading it."""
    return sha256_of_files(_files(Located(source.parent, source) if source.is_file() else Located(source)))


def load(
    source: str | Path,
    *,
    task: str | None = None,
    labels: Sequence[str] | None = None,
    bidirectional: bool | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Checkpoint:
    """Load a model with the head it was saved with, or a new one for another `task`; what sentence-transformers
    pools is an embedding model, unless it is a classifier.

    labels: those of a new classification head; a trained head whose labels include them all keeps its own, in its own
    order. bidirectional: let a decoder's tokens look at what follows (True), or not (False); None keeps the config's.
    Raises InputError for anything missing, damaged or beyond what our transformer can represent.
    """
    located = locate(source)
    with _open(located) as (raw, tensors):
        about = describe(located, raw, task, labels, bidirectional)
        place, family = torch.device(device), family_of(about.hf)
        model, fresh = fill(about.config, about.dropped, family, tensors, about.trained, place, dtype)
    return about.checkpoint(model, located, fresh, _files(located))


@contextmanager
def unread(source: str | Path, *, task: str | None = None) -> Iterator[tuple[Checkpoint, Unread]]:
    """A model without its weights, and what reads them one by one as long as the context lasts. Raises InputError as
    `load` does."""
    located = locate(source)
    with _open(located) as (raw, tensors):
        about = describe(located, raw, task)
        weights = Unread(about.config, about.dropped, family_of(about.hf), tensors, about.trained)
        yield about.checkpoint(weights.model, located, weights.fresh, _files(located)), weights


@dataclass(frozen=True, slots=True)
class Description:
    """What a folder's config and chinchilla.json say: all but the weights. trained: they hold this head's too."""

    hf: dict[str, Any]
    meta: dict[str, Any]
    config: ModelConfig
    dropped: dict[str, NormFate]
    trained: bool
    sentences: Sentences

    def checkpoint(
        self, model: Transformer, located: Located, fresh: tuple[str, ...], files: tuple[Path, ...]
    ) -> Checkpoint:
        """With the weights. files: what they were read from."""
        source = located.gguf or located.folder
        return Checkpoint(model, self.hf, source, self.meta, fresh, files, self.sentences, located.root, located.hub)


def describe(
    located: Located,
    raw: Mapping[str, Any],
    task: str | None = None,
    labels: Sequence[str] | None = None,
    bidirectional: bool | None = None,
) -> Description:
    """Read a model's config for a task, as `load` does. Raises InputError likewise."""
    meta = _read_meta(located)
    hf = _own_config(raw)
    family = family_of(hf)
    hf = _with_direction(hf, family, bidirectional)
    head, trained = choose_head(family, hf, task or _own_task(family, hf, located), labels)
    sentences = _sentences(head, located)
    if sentences.pooling is not None:
        head = replace(head, pooling=sentences.pooling, normalize=sentences.normalize)
    return Description(hf, meta, family.read(hf, head), dict(meta.get("dropped", {})), trained, sentences)


def save(checkpoint: Checkpoint, folder: str | Path, meta: Mapping[str, Any] | None = None) -> None:
    """Write a model folder, wholly or not at all: weights, config, tokenizer files, and chinchilla.json where needed.

    meta: what else chinchilla.json shall hold; None keeps what the checkpoint has. With nothing dropped, the folder is
    a stock one that transformers loads. Raises InputError where the folder cannot be written or is not ours to replace.
    """
    with building(folder) as temporary:
        write_weights(checkpoint.model, checkpoint.family, temporary)
        write_rest(checkpoint, temporary, meta)


def write_rest(checkpoint: Checkpoint, folder: Path, meta: Mapping[str, Any] | None = None) -> None:
    """All files of a model folder but the weights."""
    model = checkpoint.model
    extra = checkpoint.meta if meta is None else meta
    hub = checkpoint.hub or checkpoint.meta.get("hub")
    content = dict(extra) | {"version": VERSION, "dropped": model.dropped} | ({"hub": hub} if hub else {})
    pad = _padding(checkpoint)
    write_config(model, checkpoint.hf_config | ({"pad_token_id": pad[1]} if pad else {}), folder)
    save_tokenizer(checkpoint.source, folder, checkpoint.__dict__.get("tokenizer"))
    tokenizer_for_both(folder, pad[0] if pad else None)
    if model.config.head.kind == "embedding":
        write_sentences(checkpoint.sentences, model.config.hidden_size, checkpoint.root or checkpoint.source, folder)
    if model.dropped or extra or (hub and meta is None):
        (folder / META).write_text(json_text(content, indent=2) + "\n", encoding="utf-8")


def _padding(checkpoint: Checkpoint) -> tuple[str, int] | None:
    """The token, and its id, with which transformers pads batches for a decoder's classifier: it finds a text's last
    token by it. None for what needs none, and where there is no tokenizer, so that nobody pads."""
    if not checkpoint.family.decoder or checkpoint.model.config.head.kind == "language-modeling":
        return None
    try:
        return padding_token(checkpoint.tokenizer, checkpoint.model.config.vocab_size)
    except InputError:
        return None


@contextmanager
def _open(located: Located) -> Iterator[tuple[dict[str, Any], TensorSource]]:
    """The raw config and the tensors of what was located."""
    if located.gguf is not None:
        from chinchilla_lm.models.gguf import open_gguf

        with open_gguf(located.gguf) as file:
            yield file.config, file
        return
    config = read_json(located.folder / "config.json", "model config")
    if not isinstance(config, dict):
        raise InputError(f"{located.folder / 'config.json'} is not a dictionary; download the model again")
    with open_safetensors(located.folder) as tensors:
        yield config, tensors


def _files(located: Located) -> tuple[Path, ...]:
    if located.gguf is not None:
        return shards_of(located.gguf)
    others = [located.folder / name for name in (META, "tokenizer.json")]
    return (*weight_files(located.folder), located.folder / "config.json", *(p for p in others if p.is_file()))


def _read_meta(located: Located) -> dict[str, Any]:
    path, meta = located.folder / META, meta_of(located)
    dropped = meta.get("dropped", {})
    if not isinstance(dropped, dict) or not all(fate in get_args(NormFate) for fate in dropped.values()):
        raise InputError(f"{path}: dropped {dropped!r} is not links with keep or lose; make the model again")
    return meta


def _own_config(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The config with its family's model_type, whichever of the two forms it was saved in."""
    hf = dict(raw)
    if hf.get("model_type") == OWN_TYPE:
        hf["model_type"] = hf.pop("chinchilla_model_type", None)
        hf["architectures"] = hf.pop("chinchilla_architectures", None)
    return hf


def _with_direction(hf: dict[str, Any], family: Family, bidirectional: bool | None) -> dict[str, Any]:
    if bidirectional is None:
        return hf
    if not family.decoder:
        if bidirectional:
            return hf
        raise InputError(f"bidirectional=False is not possible for {family.name}, an encoder; leave it out")
    hf = {key: value for key, value in hf.items() if key not in ("is_causal", "use_bidirectional_attention")}
    return hf | {"is_causal": False} if bidirectional else hf


def choose_head(
    family: Family, hf: Mapping[str, Any], task: str | None, labels: Sequence[str] | None
) -> tuple[HeadConfig, bool]:
    """The head for a task, and whether the checkpoint holds its weights."""
    if task is not None and task not in get_args(HeadKind):
        raise InputError(f"task {task!r} is not one of {', '.join(get_args(HeadKind))}; pass one of them")
    trained = family.trained_head(hf)
    if task is None:
        if trained is None:
            raise InputError(
                f"architectures {hf.get('architectures')} has no head that we know and no task was given; "
                f"pass a task: {', '.join(get_args(HeadKind))}"
            )
        task = trained.kind
    kind: HeadKind = next(known for known in get_args(HeadKind) if known == task)
    if trained is not None and _serves(trained, kind, labels):
        if labels and kind == "text-classification":  # it is to learn one label a text
            trained = replace(trained, scores="softmax")
        return replace(trained, kind=kind), True
    if kind == "ranking":
        labels = labels if labels and len(labels) == 1 else ("relevance",)
    if kind in ("token-classification", "text-classification") and not labels:
        raise InputError(f"this model has no head for {kind} and no labels were given; pass labels or data with labels")
    if len(set(labels or ())) != len(labels or ()):
        raise InputError(f"labels {list(labels or ())} has doubles; pass each label once")
    head = family.default_head(hf, kind, tuple(labels or ()))
    if kind == "ranking":
        head = replace(head, scores="raw")
    return head, kind == "embedding"


def _serves(trained: HeadConfig, kind: HeadKind, labels: Sequence[str] | None) -> bool:
    """Whether the checkpoint's own head does this task with these labels."""
    if kind in ("language-modeling", "embedding"):
        return trained.kind == kind
    if kind == "ranking":
        return trained.kind == "ranking"
    same = trained.kind == kind or {trained.kind, kind} == {"ranking", "text-classification"}
    return same and set(labels or ()) <= set(trained.labels)


def _own_task(family: Family, hf: Mapping[str, Any], located: Located) -> HeadKind | None:
    """What a model is for where only its folder says so: sentence-transformers leaves out the head that a model was
    trained with first, and may leave that head's class in the config."""
    if located.gguf is not None or not makes_vectors(located.root or located.folder):
        return None
    trained = family.trained_head(hf)
    return "embedding" if trained is None or trained.kind == "language-modeling" else None


def _sentences(head: HeadConfig, located: Located) -> Sentences:
    """What sentence-transformers says of an embedding model, where it says anything."""
    if head.kind != "embedding" or located.gguf is not None:
        return PLAIN
    return read_sentences(located.root or located.folder, located.folder)
