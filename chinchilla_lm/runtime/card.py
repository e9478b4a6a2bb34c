"""What a session must know of its model besides the weights: its head, its sizes, its tokenizer, how it was trained."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, get_args

from chinchilla_lm.errors import InputError
from chinchilla_lm.files import read_json
from chinchilla_lm.models.config import HeadKind, ModelConfig, Scores
from chinchilla_lm.models.families import family_of
from chinchilla_lm.models.plain_tokenizer import PlainTokenizer
from chinchilla_lm.models.sentence import PLAIN, Pooling, Sentences, read_sentences
from chinchilla_lm.models.tokenizer import check_vocabulary

if TYPE_CHECKING:
    from chinchilla_lm.models.checkpoint import Checkpoint

# What a config of ours puts under the names of Hugging Face's; models/saving.py writes it.
OWN_TYPE = "chinchilla"


@dataclass
class Card:
    """The facts of a model.

    labels: of a classification head, in the order of its outputs. vocabulary, max_positions: in tokens; hidden: in
    features. meta: what chinchilla.json says. hf_config, source: where stop tokens are named. given: a tokenizer of a
    model in memory, in place of the source's. scores: what a text classifier's outputs mean. sentences: how an
    embedding model reads texts.
    """

    kind: HeadKind
    labels: tuple[str, ...]
    causal: bool
    vocabulary: int
    max_positions: int
    hidden: int
    meta: dict[str, Any]
    hf_config: dict[str, Any]
    source: Path | None
    given: Any = None
    scores: Scores = "softmax"
    sentences: Sentences = PLAIN
    _lock: Lock = field(default_factory=Lock, init=False, repr=False, compare=False)
    _tokenizer: PlainTokenizer | None = field(default=None, init=False, repr=False, compare=False)

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> Card:
        """The card of a model that was loaded with torch."""
        config = checkpoint.model.config
        return cls(
            kind=config.head.kind,
            labels=config.head.labels,
            causal=config.causal,
            vocabulary=config.vocab_size,
            max_positions=config.max_positions,
            hidden=config.hidden_size,
            meta=checkpoint.meta,
            hf_config=checkpoint.hf_config,
            source=checkpoint.source,
            given=vars(checkpoint).get("tokenizer"),
            scores=config.head.scores,
            sentences=checkpoint.sentences,
        )

    @classmethod
    def of_packed(cls, folder: Path, header: dict[str, Any], meta: dict[str, Any]) -> Card:
        """The card in a program's header.

        Raises InputError where it is none, and where it, the program and config.json do not say the same.
        """
        card = header.get("card")
        kinds = {"kind": str, "labels": list, "causal": bool, "vocabulary": int, "max_positions": int, "hidden": int}
        if not isinstance(card, dict) or any(type(card.get(key)) is not kind for key, kind in kinds.items()):
            raise InputError(f"the program in {folder} does not say what it is; run chinchilla pack again")
        if card["kind"] not in get_args(HeadKind) or not all(isinstance(label, str) for label in card["labels"]):
            raise InputError(
                f"the program in {folder} is for {card['kind']!r}, which is no task; run chinchilla pack again"
            )
        hf_config = read_json(folder / "config.json", "model config")
        if not isinstance(hf_config, dict):
            raise InputError(f"{folder / 'config.json'} is not a dictionary; run chinchilla pack again")
        facts = {key: card[key] for key in kinds} | {"labels": tuple(card["labels"])}
        made = cls(**facts, meta=meta, hf_config=hf_config, source=folder)
        config = made.config()
        made._check(header, config)
        made.scores = config.head.scores
        if made.kind == "embedding":
            made.sentences = read_sentences(folder, folder)
        return made

    def config(self) -> ModelConfig:
        """What the folder's config says, read without torch; of an embedding, how it pools stands elsewhere."""
        hf = self.hf_config
        if hf.get("model_type") == OWN_TYPE:
            hf = hf | {key: hf.get(f"{OWN_TYPE}_{key}") for key in ("model_type", "architectures")}
        family = family_of(hf)
        config = family.read(hf, family.trained_head(hf))
        if config.head.kind == "ranking" and self.kind == "text-classification":
            return replace(config, head=replace(config.head, kind=self.kind))  # a config says the same of both
        return config

    def _check(self, header: dict[str, Any], config: ModelConfig) -> None:
        """Refuse a card that is not that of its program, or not that of its config."""
        head = header.get("head")
        head = head if isinstance(head, dict) else {}
        everywhere = self.kind in ("language-modeling", "token-classification")
        pooling = head.get("pooling")
        if self.kind != "embedding":
            self._same("pooling", "none" if everywhere else config.head.pooling, "the program", pooling)
            self._same("normalize", False, "the program", head.get("normalize"))
        elif pooling not in get_args(Pooling):
            raise self._unlike("pooling", " or ".join(get_args(Pooling)), "the program", pooling)
        self._same("outputs", self._outputs(), "the program", _outputs_of(head.get("output")))
        for name, said in (
            ("hidden", config.hidden_size),
            ("vocabulary", config.vocab_size),
            ("max_positions", config.max_positions),
            ("causal", config.causal),
        ):
            self._same(name, getattr(self, name), "the program", header.get(name))
            self._same(name, getattr(self, name), "config.json", said)
        self._same("task", self.kind, "config.json", config.head.kind)
        self._same("labels", self.labels, "config.json", config.head.labels)

    def _outputs(self) -> int | None:
        """How many numbers the head's last matrix gives; None where there is none."""
        sizes = {"language-modeling": self.vocabulary, "ranking": 1, "embedding": None}
        return sizes.get(self.kind, len(self.labels))

    def _same(self, name: str, mine: object, where: str, theirs: object) -> None:
        if type(theirs) is not type(mine) or theirs != mine:  # 1 is not True
            raise self._unlike(name, mine, where, theirs)

    def _unlike(self, name: str, mine: object, where: str, theirs: object) -> InputError:
        found, wanted = (f"{one!r:.60}" if not isinstance(one, str) else f"{one:.60}" for one in (theirs, mine))
        return InputError(
            f"{name} of {where} in {self.source} is {found}, not {wanted} as its card has it; run chinchilla pack again"
        )

    def to_dict(self) -> dict[str, Any]:
        """What a program's header holds of it."""
        keys = ("kind", "labels", "causal", "vocabulary", "max_positions", "hidden")
        return {key: getattr(self, key) for key in keys} | {"labels": list(self.labels)}

    @property
    def tokenizer(self) -> PlainTokenizer:
        """The tokenizer, read when first asked for.

        Raises InputError where there is none, and where it has tokens that the model lacks.
        """
        with self._lock:  # threads that ask for it together wait for one of them to read it
            if self._tokenizer is None:
                self._tokenizer = self._read_tokenizer()
            return self._tokenizer

    def _read_tokenizer(self) -> PlainTokenizer:
        if self.given is not None:
            return PlainTokenizer.of(self.given)
        if self.source is None:
            raise InputError(
                "this model was built without a tokenizer; load it from a folder that holds tokenizer.json"
            )
        tokenizer = PlainTokenizer.load(self.source)
        check_vocabulary(tokenizer, self.source, self.vocabulary)
        return tokenizer

    @property
    def pad_id(self) -> int:
        """The id that fills up short rows. One that was added to the tokenizer alone is 0: padding is masked."""
        pad = self.tokenizer.pad_token_id or 0
        return pad if pad < self.vocabulary else 0

    @property
    def legal_tags(self) -> bool:
        """Whether it was trained on BIO by us. Models from elsewhere may mean IOB1 by the same labels."""
        return self.meta.get("tags") == "BIO"


def _outputs_of(matrix: object) -> object:
    return matrix.get("outputs") if isinstance(matrix, dict) else matrix
