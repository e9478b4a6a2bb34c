"""What a session must know of its model besides the weights: its head, its sizes, its tokenizer, how it was trained."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from chinchilla_lm.errors import InputError
from chinchilla_lm.files import read_json
from chinchilla_lm.models.config import HeadKind
from chinchilla_lm.models.plain_tokenizer import PlainTokenizer

if TYPE_CHECKING:
    from chinchilla_lm.models.checkpoint import Checkpoint

Pooling = Literal["first", "last", "mean"]


@dataclass
class Card:
    """The facts of a model.

    labels: of a classification head, in the order of its outputs. vocabulary, max_positions: in tokens; hidden: in
    features. meta: what chinchilla.json says. hf_config, source: where stop tokens are named. plain: the tokenizer is
    read without transformers, which imports torch.
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
    plain: bool = False

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> Card:
        """The card of a model that was loaded with torch."""
        config = checkpoint.model.config
        card = cls(
            kind=config.head.kind,
            labels=config.head.labels,
            causal=config.causal,
            vocabulary=config.vocab_size,
            max_positions=config.max_positions,
            hidden=config.hidden_size,
            meta=checkpoint.meta,
            hf_config=checkpoint.hf_config,
            source=checkpoint.source,
        )
        if "tokenizer" in vars(checkpoint):
            card.tokenizer = checkpoint.tokenizer
        return card

    @classmethod
    def of_packed(cls, folder: Path, header: dict[str, Any], meta: dict[str, Any]) -> Card:
        """The card in a program's header. Raises InputError where it is not one."""
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
        return cls(**facts, meta=meta, hf_config=hf_config, source=folder, plain=True)

    def to_dict(self) -> dict[str, Any]:
        """What a program's header holds of it."""
        keys = ("kind", "labels", "causal", "vocabulary", "max_positions", "hidden")
        return {key: getattr(self, key) for key in keys} | {"labels": list(self.labels)}

    @cached_property
    def tokenizer(self) -> Any:
        """A fast tokenizer. Raises InputError where there is none, and where it has tokens that the model lacks."""
        if self.source is None:
            raise InputError(
                "this model was built without a tokenizer; load it from a folder that holds tokenizer.json"
            )
        if self.plain:
            return PlainTokenizer.load(self.source)
        from chinchilla_lm.models.checkpoint import tokenizer_of

        return tokenizer_of(self.source, self.vocabulary)

    @property
    def pad_id(self) -> int:
        """The id that fills up short rows. One that was added to the tokenizer alone is 0: padding is masked."""
        pad = self.tokenizer.pad_token_id or 0
        return pad if pad < self.vocabulary else 0

    @property
    def legal_tags(self) -> bool:
        """Whether it was trained on BIO by us. Models from elsewhere may mean IOB1 by the same labels."""
        return self.meta.get("tags") == "BIO"
