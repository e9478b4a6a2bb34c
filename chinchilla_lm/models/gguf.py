"""GGUF models as Hugging Face checkpoints: their config, and their tensors under Hugging Face names, dequantised.

What llama.cpp's converter (convert_hf_to_gguf.py) changed is undone: query and key rows of Llama and its kin are
interleaved for its rotation, Gemma's norms have one added. Llama 3.1's rope scaling is stored as a table of factors; it
is recognised. Phi-3's two tables are LongRoPE's as they are.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from chinchilla_lm.errors import InputError
from chinchilla_lm.models.config import RopeConfig
from chinchilla_lm.models.families.reading import MAX_BLOCKS
from chinchilla_lm.models.gguf_file import TensorInfo
from chinchilla_lm.models.gguf_shards import open_whole
from chinchilla_lm.models.rope import inverse_frequencies

PLAIN_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output.weight": "lm_head.weight",
    "output_norm.weight": "model.norm.weight",
}
BLOCK_NAMES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
# The norms behind the attention have other names where there are four of them.
TWO_NORMS = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
FUSED = TWO_NORMS | {"attn_qkv": "self_attn.qkv_proj", "ffn_up": "mlp.gate_up_proj"}
OUTPUT_NORMS = {"post_attention_norm": "post_attention_layernorm", "post_ffw_norm": "post_feedforward_layernorm"}
FOUR_NORMS = {
    "attn_norm": "input_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}


@dataclass(frozen=True, slots=True)
class Architecture:
    """One general.architecture: the model_type and class that it is for transformers, and what the converter does.

    names: of a block's parts, beside or instead of those that all have. interleaved: rows of query and key are.
    one_more: norms are stored with one added. others: model types of transformers that are written as this one too.
    """

    model_type: str
    class_name: str
    names: Mapping[str, str]
    interleaved: bool = False
    one_more: bool = False
    others: tuple[str, ...] = ()


ARCHITECTURES = {
    "llama": Architecture("llama", "LlamaForCausalLM", TWO_NORMS, interleaved=True, others=("mistral",)),
    "qwen2": Architecture("qwen2", "Qwen2ForCausalLM", TWO_NORMS),
    "qwen3": Architecture("qwen3", "Qwen3ForCausalLM", TWO_NORMS),
    "gemma2": Architecture("gemma2", "Gemma2ForCausalLM", FOUR_NORMS, one_more=True),
    "gemma3": Architecture("gemma3_text", "Gemma3ForCausalLM", FOUR_NORMS, one_more=True),
    "smollm3": Architecture("smollm3", "SmolLM3ForCausalLM", TWO_NORMS, interleaved=True),
    "granite": Architecture("granite", "GraniteForCausalLM", TWO_NORMS, interleaved=True),
    "olmo2": Architecture("olmo2", "Olmo2ForCausalLM", OUTPUT_NORMS),
    "phi3": Architecture("phi3", "Phi3ForCausalLM", FUSED),
}
ROPE_FACTORS = "rope_freqs.weight"
SHORT_FACTORS, LONG_FACTORS = "rope_factors_short.weight", "rope_factors_long.weight"
# Llama 3.1 and 3.2: config.json of meta-llama/Llama-3.1-8B and Llama-3.2-1B.
LLAMA3_FACTORS = (8.0, 32.0)
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
_BLOCK = re.compile(r"blk\.(\d+)\.(\w+)\.(weight|bias)")


class Described(Protocol):
    """What a GGUF file says, read or still to be written."""

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, TensorInfo]

    def read(self, name: str, rows: slice | None = None) -> Tensor:
        """A tensor's values, or those of some rows, in float32."""


class GgufSource:
    """A GGUF file as a source of tensors with Hugging Face names; `config` is what its config.json would be."""

    mapped = False

    def __init__(self, file: Described) -> None:
        self._file = file
        name = str(file.metadata.get("general.architecture"))
        if name not in ARCHITECTURES:
            raise InputError(
                f"{file.path}: architecture {name!r} is not one of {', '.join(ARCHITECTURES)}; use another model"
            )
        self._architecture = ARCHITECTURES[name]
        self.config = read_config(file, name)
        tables = (ROPE_FACTORS, SHORT_FACTORS, LONG_FACTORS)
        self._places = {self._their_name(tensor): tensor for tensor in file.tensors if tensor not in tables}

    def _their_name(self, name: str) -> str:
        if name in PLAIN_NAMES:
            return PLAIN_NAMES[name]
        found = _BLOCK.fullmatch(name)
        names = BLOCK_NAMES | dict(self._architecture.names)
        if found is None or found[2] not in names:
            return f"model.{name}"  # which no family knows, so it is refused by name
        return f"model.layers.{found[1]}.{names[found[2]]}.{found[3]}"

    @property
    def names(self) -> set[str]:
        """All names."""
        return set(self._places)

    def where(self, name: str) -> str:
        """The file."""
        return str(self._file.path)

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape."""
        return self._file.tensors[self._places[name]].shape

    def read(self, name: str, rows: slice | None = None) -> Tensor:
        """Its values, or those of some rows, in float32, as Hugging Face's model has them."""
        interleaved = self._architecture.interleaved and re.search(r"\.[qk]_proj\.", name)
        if interleaved and rows is not None:
            return self.read(name)[rows]
        tensor = self._file.read(self._places[name], rows)
        if interleaved:
            heads = self.config["num_attention_heads" if ".q_proj." in name else "num_key_value_heads"]
            return tensor.reshape(heads, -1, 2, *tensor.shape[1:]).transpose(1, 2).reshape(tensor.shape)
        if self._architecture.one_more and "norm" in name:
            return tensor - 1.0
        return tensor


@contextmanager
def open_gguf(path: Path) -> Iterator[GgufSource]:
    """The model in a GGUF file. Raises InputError where it is damaged or of an architecture that we do not have."""
    with open_whole(path) as file:
        yield GgufSource(file)


def read_config(file: Described, architecture: str) -> dict[str, Any]:
    """The Hugging Face config that the metadata amount to."""
    items = Items(file, architecture)
    if "token_embd.weight" not in file.tensors:
        raise InputError(f"tensor token_embd.weight is missing from {file.path}; download it again")
    heads, hidden = items.whole("attention.head_count"), items.whole("embedding_length")
    head_dim = items.whole("attention.key_length", hidden // max(heads, 1))
    items.refuse("expert_count", 0)
    items.refuse("attention.value_length", head_dim)
    if architecture != "phi3":
        items.refuse("rope.dimension_count", head_dim)
    if architecture != "gemma2":
        items.refuse("final_logit_softcapping", 0)
        items.refuse("attn_logit_softcapping", 0)
    config: dict[str, Any] = {
        "architectures": [ARCHITECTURES[architecture].class_name],
        "model_type": ARCHITECTURES[architecture].model_type,
        "vocab_size": file.tensors["token_embd.weight"].shape[0],
        "hidden_size": hidden,
        "intermediate_size": items.whole("feed_forward_length"),
        "num_hidden_layers": items.whole("block_count", high=MAX_BLOCKS),
        "num_attention_heads": heads,
        "num_key_value_heads": items.whole("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "max_position_embeddings": items.whole("context_length"),
        "rms_norm_eps": items.number("attention.layer_norm_rms_epsilon"),
        "tie_word_embeddings": "output.weight" not in file.tensors,
    }
    for key, name in (("bos", "bos"), ("eos", "eos"), ("padding", "pad")):
        config[f"{name}_token_id"] = items.token(key)
    if architecture in OWN:
        return config | OWN[architecture](items, config)
    if architecture in ("llama", "qwen3", "granite", "smollm3"):
        config["attention_bias"] = "blk.0.attn_q.bias" in file.tensors
    if architecture == "granite":
        config |= {key: items.number(name, 1.0) for key, name in GRANITE_NUMBERS.items()}
        config["attention_multiplier"] = items.number("attention.scale", head_dim**-0.5)
    if architecture == "olmo2":
        items.refuse("attention.sliding_window", 0)  # an OLMo 3
    return config | {"hidden_act": "silu", "rope_parameters": _rope(file, items, head_dim)}


GRANITE_NUMBERS = {
    "embedding_multiplier": "embedding_scale",
    "residual_multiplier": "residual_scale",
    "logits_scaling": "logit_scale",
}


class Items:
    """The metadata of one architecture, checked."""

    def __init__(self, file: Described, architecture: str) -> None:
        self.file, self.architecture = file, architecture

    def get(self, key: str) -> Any:
        """A value, or None."""
        return self.file.metadata.get(f"{self.architecture}.{key}")

    def table(self, name: str) -> list[float]:
        """A stored table, each number with the fewest digits that give its float32."""
        return [float(str(one)) for one in self.file.read(name).numpy().reshape(-1)]

    def whole(self, key: str, default: int | None = None, high: int = 1 << 31) -> int:
        """A whole number from 1 to `high`."""
        value = self.get(key) if self.get(key) is not None else default
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= high:
            raise self.error(key, value, f"a whole number in 1 … {high}")
        return value

    def token(self, key: str) -> int | None:
        """A token's id, or None; one that is no token's is left out: who reads the tokenizer is told of it."""
        value: int | None = self.file.metadata.get(f"tokenizer.ggml.{key}_token_id")
        known = self.file.tensors["token_embd.weight"].shape[0]
        return value if value is not None and 0 <= value < known else None

    def number(self, key: str, default: float | None = None) -> float:
        """A number above zero, written with the fewest digits that give its float32: 1e-05, not 9.99999974e-06."""
        value = self.get(key) if self.get(key) is not None else default
        if isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(value) or value <= 0:
            raise self.error(key, value, "a number above 0")
        return float(str(np.float32(value)))

    def refuse(self, key: str, allowed: float | str) -> None:
        """Refuse any value but one; a missing key is allowed."""
        if self.get(key) not in (None, allowed):
            raise self.error(key, self.get(key), f"{allowed}, all that is supported")

    def error(self, key: str, value: object, rule: str) -> InputError:
        """One line."""
        return InputError(f"{self.file.path}: {self.architecture}.{key} {value!r:.60} is not {rule}; use another model")


def _rope(file: Described, items: Items, head_dim: int) -> dict[str, Any]:
    theta = items.number("rope.freq_base", 10_000.0)
    plain = {"rope_type": "default", "rope_theta": theta}
    kind = items.get("rope.scaling.type") or "none"
    if ROPE_FACTORS in file.tensors:
        return plain | _llama3(file.read(ROPE_FACTORS), theta, head_dim, items)
    if kind == "linear":
        return plain | {"rope_type": "linear", "factor": items.number("rope.scaling.factor")}
    if kind != "none":
        raise items.error("rope.scaling.type", kind, "none or linear")
    return plain


def _llama3(factors: Tensor, theta: float, head_dim: int, items: Items) -> dict[str, Any]:
    """The parameters that give a stored table of frequency divisors."""
    device = torch.device("cpu")
    if factors.shape != (head_dim // 2,):
        raise items.error(
            ROPE_FACTORS, f"with {tuple(factors.shape)} values", f"one for each of {head_dim // 2} angles"
        )
    base = inverse_frequencies(RopeConfig(theta), head_dim, device)
    for factor in LLAMA3_FACTORS:
        scaling: dict[str, float | str] = {"rope_type": "llama3", "factor": factor, **LLAMA3}
        scaled = inverse_frequencies(RopeConfig(theta, tuple(sorted(scaling.items()))), head_dim, device)
        if torch.allclose(base / scaled, factors, rtol=1e-3):
            return scaling
    raise items.error(ROPE_FACTORS, "(a table)", "the rope scaling of Llama 3.1 or 3.2")


def _gemma(items: Items, config: Mapping[str, Any]) -> dict[str, Any]:
    """Every sixth block sees everything; only its rope is scaled, and linearly."""
    kind = items.get("rope.scaling.type") or "none"
    if kind not in ("none", "linear"):
        raise items.error("rope.scaling.type", kind, "none or linear")
    full: dict[str, Any] = {"rope_type": "default", "rope_theta": items.number("rope.freq_base", 1_000_000.0)}
    if kind == "linear":
        full |= {"rope_type": "linear", "factor": items.number("rope.scaling.factor")}
    blocks = config["num_hidden_layers"]
    # As llama.cpp: only the 27B, with its 62 blocks, scales by the width of a head before the projection.
    wide = blocks == 62
    local = items.number("rope.freq_base_swa", 10_000.0)
    return {
        "hidden_activation": "gelu_pytorch_tanh",
        "sliding_window": items.whole("attention.sliding_window", 512),
        "layer_types": ["full_attention" if (block + 1) % 6 == 0 else "sliding_attention" for block in range(blocks)],
        "query_pre_attn_scalar": config["hidden_size"] // config["num_attention_heads"] if wide else config["head_dim"],
        "rope_parameters": {
            "full_attention": full,
            "sliding_attention": {"rope_type": "default", "rope_theta": local},
        },
    }


def _gemma2(items: Items, config: Mapping[str, Any]) -> dict[str, Any]:
    """Every second block sees everything."""
    items.refuse("rope.scaling.type", "none")
    # As llama.cpp: only the 27B, with its 46 blocks, scales by the width of a head before the projection.
    wide = config["num_hidden_layers"] == 46
    return {
        "hidden_activation": "gelu_pytorch_tanh",
        "sliding_window": items.whole("attention.sliding_window", 4096),
        "query_pre_attn_scalar": config["hidden_size"] // config["num_attention_heads"] if wide else config["head_dim"],
        "attn_logit_softcapping": items.number("attn_logit_softcapping", 50.0),
        "final_logit_softcapping": items.number("final_logit_softcapping", 30.0),
        "rope_parameters": {"rope_type": "default", "rope_theta": items.number("rope.freq_base", 10_000.0)},
    }


def _phi3(items: Items, config: Mapping[str, Any]) -> dict[str, Any]:
    """A window of 0 is none; both tables of factors, or neither."""
    head_dim, tables = config["head_dim"], [name in items.file.tensors for name in (SHORT_FACTORS, LONG_FACTORS)]
    share = items.whole("rope.dimension_count", head_dim) / head_dim
    rope: dict[str, Any] = {"rope_theta": items.number("rope.freq_base", 10_000.0), "partial_rotary_factor": share}
    if any(tables) != all(tables):
        raise items.error(SHORT_FACTORS, "(alone)", f"there with {LONG_FACTORS}")
    old = items.whole("rope.scaling.original_context_length", config["max_position_embeddings"])
    if all(tables):
        rope |= {"rope_type": "longrope"} | _attention_factor(items, config["max_position_embeddings"] / old, old)
        rope |= {"short_factor": items.table(SHORT_FACTORS), "long_factor": items.table(LONG_FACTORS)}
        rope["original_max_position_embeddings"] = old
    else:
        rope["rope_type"] = "default"
    return {
        "hidden_act": "silu",
        "sliding_window": items.get("attention.sliding_window") or None,
        "original_max_position_embeddings": old,
        "rope_parameters": rope,
    }


def _attention_factor(items: Items, stretch: float, old: int) -> dict[str, float]:
    """LongRoPE's factor, where it is not the one that follows from the lengths."""
    usual = math.sqrt(1 + math.log(stretch) / math.log(old)) if stretch > 1 and old > 1 else 1.0
    given = items.number("rope.scaling.attn_factor", usual)
    return {} if abs(given - usual) < 1e-5 * usual else {"attention_factor": given}


OWN = {"gemma2": _gemma2, "gemma3": _gemma, "phi3": _phi3}
