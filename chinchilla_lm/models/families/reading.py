"""Typed, checked access to a Hugging Face `config.json`: what is wrong, or beyond our transformer, is refused by name.

Transformers 5 writes `rope_parameters` (one dictionary, or one a layer type); older files have `rope_theta` and
`rope_scaling`. Both are read, with the priorities that transformers gives them.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from typing import Any, cast

from chinchilla_lm.errors import InputError
from chinchilla_lm.models.config import Activation, HeadConfig, HeadKind, RopeConfig, Scores

# What transformers' ACT2FN calls them, and what we do. `gelu_fast` has tanh constants rounded to ten digits.
ACTIVATION_NAMES: dict[str, Activation] = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
    "tanh": "tanh",
}

# What a sequence classifier's `problem_type` says of its outputs.
PROBLEM_TYPES: dict[Scores, str] = {
    "softmax": "single_label_classification",
    "sigmoid": "multi_label_classification",
    "raw": "regression",
}

# More is a damaged file, and would have us build modules for ever. The largest published models have about 130.
MAX_BLOCKS = 4096

SCALING_FACTORS = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": (),
}


class Fields:
    """The items of one config. Every method raises InputError for a value of a wrong type or out of range."""

    def __init__(self, hf: Mapping[str, Any]) -> None:
        self.hf = hf
        self.model_type = str(hf.get("model_type"))

    def whole(self, key: str, default: int, low: int = 1, high: int = 1 << 31) -> int:
        """A whole number in [low, high]; `default` where the key is missing or null."""
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self.error(key, value, f"a whole number in {low} … {high}")
        return value

    def optional_whole(self, key: str, default: int | None) -> int | None:
        """A whole number from 1, or None where the file says null."""
        if key in self.hf and self.hf[key] is None:
            return None
        return default if default is None and key not in self.hf else self.whole(key, default or 1)

    def number(self, key: str, default: float) -> float:
        """A finite number above zero."""
        return self._positive(key, self._get(key, default))

    def flag(self, key: str, default: bool) -> bool:
        """True or false; null counts as missing."""
        value = self._get(key, default)
        if not isinstance(value, bool):
            raise self.error(key, value, "true or false")
        return value

    def activation(self, key: str, default: str) -> Activation:
        """The activation function's name in our words."""
        value = self._get(key, default)
        if not isinstance(value, str) or value not in ACTIVATION_NAMES:
            raise self.error(key, value, "one of " + ", ".join(ACTIVATION_NAMES))
        return ACTIVATION_NAMES[value]

    def dictionary(self, key: str, within: Mapping[str, Any] | None = None) -> Mapping[str, Any]:
        """A dictionary of the config, or of one `within` it; an empty one where the key is missing or null."""
        value = (self.hf if within is None else within).get(key)
        if value is not None and not isinstance(value, Mapping):
            raise self.error(key, value, "a dictionary")
        return value or {}

    def require(self, key: str, *allowed: object) -> None:
        """Refuse a value outside `allowed`; a missing key is allowed."""
        if key in self.hf and self.hf[key] not in allowed:
            raise self.error(key, self.hf[key], "supported; only " + ", ".join(map(repr, allowed)) + " is")

    def error(self, key: str, value: object, rule: str) -> InputError:
        """One line: the value, the rule, the remedy."""
        return InputError(f"config.json: {key} {value!r} is not {rule} ({self.model_type}); use another model")

    def _get(self, key: str, default: Any) -> Any:
        value = self.hf.get(key)
        return default if value is None else value

    def _positive(self, key: str, value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= sys.float_info.max:
            raise self.error(key, value, "a finite number above 0")
        return float(value)

    def layer_types(
        self,
        blocks: int,
        default: tuple[str, ...],
        known: tuple[str, ...] = ("full_attention", "sliding_attention"),
    ) -> tuple[str, ...]:
        """One of the `known` names for each block."""
        value = self._get("layer_types", list(default))
        if not isinstance(value, list | tuple) or len(value) != blocks:
            raise self.error("layer_types", value, f"a list of {blocks} names")
        for name in value:
            if name not in known:
                raise self.error("layer_types", name, " or ".join(known))
        return tuple(value)

    def windows(self, types: tuple[str, ...], window: int | None, causal: bool) -> tuple[int | None, ...]:
        """One window a block. Transformers' bidirectional window counts its far edge in, its causal one does not."""
        if "sliding_attention" in types and window is None:
            raise self.error("sliding_window", None, "a number of tokens, though layer_types has sliding_attention")
        seen = None if window is None else window + (0 if causal else 1)
        return tuple(seen if name == "sliding_attention" else None for name in types)

    def rope(self, theta: float, layer_type: str | None = None, share: float | None = None) -> RopeConfig:
        """The rotary embedding; `theta` is the family's default base, `layer_type` the key of a nested dictionary.

        share: the family's default part of a head's features that turn; None where a config cannot say so.
        """
        given = self.dictionary("rope_scaling") or self.dictionary("rope_parameters")
        nested = [key for key in given if isinstance(given[key], Mapping)]
        if nested:
            if layer_type is None or layer_type not in given:
                raise self.error("rope_parameters", sorted(given), f"keyed by {layer_type or 'rope_theta'}")
            given = self.dictionary(layer_type, given)
        base = given.get("rope_theta", self._get("rope_theta", theta))
        return self.rope_of(given, self._positive("rope_theta", base), share)

    def rope_of(self, given: Mapping[str, Any], theta: float, share: float | None = None) -> RopeConfig:
        """The rotary embedding of one dictionary of parameters."""
        kind = given.get("rope_type", given.get("type", "default"))
        if not isinstance(kind, str) or kind not in SCALING_FACTORS:
            raise self.error("rope_type", kind, "one of " + ", ".join(SCALING_FACTORS))
        given_share = given.get("partial_rotary_factor", self._get("partial_rotary_factor", share or 1.0))
        partial = self._positive("partial_rotary_factor", given_share)
        if partial > 1.0 or (share is None and partial != 1.0):
            raise self.error("partial_rotary_factor", given_share, "1.0" if share is None else "in (0, 1]")
        if kind == "default":
            return RopeConfig(theta, (), partial)
        if kind == "yarn":
            return self._yarn(given, theta, partial)
        items: dict[str, float | str] = {"rope_type": kind}
        for key in SCALING_FACTORS[kind]:
            items[key] = self._positive(key, given.get(key, self.hf.get(key)))
        return RopeConfig(theta, tuple(sorted(items.items())), partial)

    def longrope(self, given: Mapping[str, Any], theta: float, share: float, head_dim: int) -> RopeConfig:
        """LongRoPE, with two tables of factors: for texts up to the first training's length, and for longer ones."""
        old, factor = self._stretch(given)
        attention = given.get("attention_factor")
        if attention is None:
            attention = 1.0 if factor <= 1.0 else math.sqrt(1 + math.log(factor) / math.log(old))
        count = -(-int(head_dim * share) // 2)
        items: dict[str, float | str | tuple[float, ...]] = {
            "rope_type": "longrope",
            "attention_factor": self._positive("attention_factor", attention),
            "original_max_position_embeddings": float(old),
            "short_factor": self._factors("short_factor", given.get("short_factor"), count),
            "long_factor": self._factors("long_factor", given.get("long_factor"), count),
        }
        return RopeConfig(theta, tuple(sorted(items.items())), share)

    def _stretch(self, given: Mapping[str, Any]) -> tuple[int, float]:
        """Positions of the first training, and how many times as many there are now."""
        key, positions = "original_max_position_embeddings", self.whole("max_position_embeddings", 2048)
        said = Fields({"model_type": self.model_type, key: self.hf.get(key, given.get(key))})
        old, factor = said.whole(key, positions, low=2), given.get("factor")
        return old, self._positive("factor", positions / old if factor is None else factor)

    def _yarn(self, given: Mapping[str, Any], theta: float, share: float) -> RopeConfig:
        """YaRN: waves that turn often in the first training's length are kept, slow ones are stretched."""
        if given.get("truncate", True) is not True:
            raise self.error("truncate", given["truncate"], "true")
        if theta <= 1.0:
            raise self.error("rope_theta", theta, "above 1, as YaRN needs")
        old, factor = self._stretch(given)
        one, all_dims = (self._positive(key, given.get(key) or 1.0) for key in ("mscale", "mscale_all_dim"))
        default = _yarn_scale(factor, 1.0)
        if given.get("mscale") and given.get("mscale_all_dim"):
            default = _yarn_scale(factor, one) / _yarn_scale(factor, all_dims)
        attention = given.get("attention_factor")
        items: dict[str, float | str | tuple[float, ...]] = {
            "rope_type": "yarn",
            "factor": factor,
            "attention_factor": self._positive("attention_factor", default if attention is None else attention),
            "original_max_position_embeddings": float(old),
            "beta_fast": self._positive("beta_fast", given.get("beta_fast") or 32.0),
            "beta_slow": self._positive("beta_slow", given.get("beta_slow") or 1.0),
        }
        return RopeConfig(theta, tuple(sorted(items.items())), share)

    def _factors(self, key: str, value: object, count: int) -> tuple[float, ...]:
        if not isinstance(value, list | tuple) or len(value) != count:
            raise self.error(key, value, f"a list of {count} numbers")
        return tuple(self._positive(key, one) for one in value)

    def labels(self) -> tuple[str, ...]:
        """Label names in the order of the logits, from `id2label` or `num_labels` (transformers' default is two)."""
        table = self.hf.get("id2label")
        if table is None:
            return tuple(f"LABEL_{index}" for index in range(self.whole("num_labels", 2, high=1 << 20)))
        if not isinstance(table, Mapping) or sorted(map(str, table)) != sorted(map(str, range(len(table)))):
            raise self.error("id2label", table, "a dictionary of 0 … N-1 to names")
        names = {int(index): str(name) for index, name in table.items()}
        if not names:
            raise self.error("id2label", table, "a dictionary with at least one label")
        return tuple(names[index] for index in range(len(names)))

    def scores(self, outputs: int) -> Scores:
        """What the outputs of a sequence classifier mean, as transformers' pipeline takes them."""
        kind = self.hf.get("problem_type")
        if kind is not None and kind not in PROBLEM_TYPES.values():
            raise self.error("problem_type", kind, "one of " + ", ".join(PROBLEM_TYPES.values()))
        if kind == PROBLEM_TYPES["raw"]:
            return "raw"
        return "sigmoid" if kind == PROBLEM_TYPES["sigmoid"] or outputs == 1 else "softmax"


def _yarn_scale(factor: float, mscale: float) -> float:
    """The part of YaRN's attention factor that grows with the stretch."""
    return 1.0 if factor <= 1.0 else 0.1 * mscale * math.log(factor) + 1.0


def plain_head(hf: Mapping[str, Any], kind: HeadKind, labels: tuple[str, ...], **more: Any) -> HeadConfig:
    """The part of a head that no family does differently."""
    if kind == "language-modeling":
        return HeadConfig(kind, **more)
    if kind == "embedding":
        return HeadConfig(kind, pooling="mean", normalize=True)
    return HeadConfig(cast(HeadKind, kind), labels, **more)
