"""What a family file declares: how one Hugging Face model_type's config and weight names translate to ours."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from chinchilla_lm.errors import InputError
from chinchilla_lm.models.config import HeadConfig, HeadKind, ModelConfig
from chinchilla_lm.models.families.reading import Fields

ROPE_BASES = ("rope_theta", "rope_local_base_freq")


@dataclass(frozen=True, slots=True)
class Weight:
    """One of our parameters and the tensors of a Hugging Face checkpoint that hold it.

    ours: its name in `Transformer.state_dict()`. theirs: names, concatenated on dim 0 in this order; without the base
    prefix where `in_base`. rows: how many rows each has, where there are several. transposed: stored as [in, out].
    aliases: other names of a single tensor; the first one present is read, and all are written.
    """

    ours: str
    theirs: tuple[str, ...]
    rows: tuple[int, ...] = ()
    transposed: bool = False
    in_base: bool = True
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True)
class Family:
    """One literal table entry; see `families/__init__.py`.

    architectures: for each model_type, the class names in transformers by head, the one to write first. base_prefix:
    what a model with a head puts before the names of its base model. depth_key: the config's number of blocks.
    ignored: regular expressions of tensors that a checkpoint may hold and we do not need. decoder: causal unless
    config says otherwise. ours_only: heads of which transformers has no class; such a model is no stock folder.
    layer_types, rope_layers: whether, and under which key, its config has a list of the blocks' kinds of attention,
    and of those whose positions turn. rope_bases: what older configs call the bases of full and of sliding blocks.
    """

    name: str
    architectures: Mapping[str, Mapping[HeadKind, tuple[str, ...]]]
    base_prefix: str
    depth_key: str
    decoder: bool
    to_config: Callable[[Mapping[str, Any], HeadConfig], ModelConfig]
    weights: Callable[[ModelConfig], list[Weight]]
    default_head: Callable[[Mapping[str, Any], HeadKind, tuple[str, ...]], HeadConfig]
    ignored: tuple[str, ...] = ()
    layer_types: bool = False
    rope_layers: str | None = None
    rope_bases: tuple[str, str] = ROPE_BASES
    ours_only: frozenset[HeadKind] = frozenset()

    def read(self, hf: Mapping[str, Any], head: HeadConfig | None = None) -> ModelConfig:
        """Our config; without `head`, with the checkpoint's own. Raises InputError for what we cannot represent."""
        head = head or self.trained_head(hf)
        if head is None:
            known = ", ".join(name for names in self.architectures[hf["model_type"]].values() for name in names)
            raise InputError(f"architectures {hf.get('architectures')} is not one of {known}; pass a task")
        check_common(hf)
        return self.to_config(hf, head)

    def trained_head(self, hf: Mapping[str, Any]) -> HeadConfig | None:
        """The head that the checkpoint was saved with; None where it is one we do not have."""
        named = hf.get("architectures") or []
        if not isinstance(named, list | tuple):
            raise Fields(hf).error("architectures", named, "a list of class names")
        table = self.architectures[hf["model_type"]]
        for kind, names in table.items():
            if set(names) & set(map(str, named)):
                return self._trained(hf, kind)
        if not named and self.decoder:
            return self._trained(hf, "language-modeling")
        return None

    def _trained(self, hf: Mapping[str, Any], kind: HeadKind) -> HeadConfig:
        labels = Fields(hf).labels() if kind in ("token-classification", "text-classification") else ()
        if kind != "text-classification":
            return self.default_head(hf, kind, labels)
        head = self.default_head(hf, "ranking" if len(labels) == 1 else kind, labels)
        return replace(head, scores=Fields(hf).scores(len(labels)))

    def architecture(self, model_type: str, kind: HeadKind) -> str:
        """The class that holds this head; transformers has it unless the head is in `ours_only`."""
        return self.architectures[model_type]["text-classification" if kind == "ranking" else kind][0]


def standard_architectures(stem: str, lm: str = "ForCausalLM", *more: str) -> dict[HeadKind, tuple[str, ...]]:
    """The usual class names of one model_type; `more` are other endings of classes with the same LM head."""
    return {
        "language-modeling": (stem + lm, *(stem + ending for ending in more)),
        "token-classification": (f"{stem}ForTokenClassification",),
        "text-classification": (f"{stem}ForSequenceClassification",),
        "embedding": (f"{stem}Model",),
    }


def check_common(hf: Mapping[str, Any]) -> None:
    """Refuse what no family can represent."""
    fields = Fields(hf)
    for key in ("add_cross_attention", "is_encoder_decoder"):
        fields.require(key, False, None)
    fields.require("quantization_config", None)
    fields.require("position_embedding_type", "absolute", None)
    for key in ("num_experts", "num_local_experts", "n_routed_experts"):
        fields.require(key, 0, None)
    fields.require("pruned_heads", {}, None)
