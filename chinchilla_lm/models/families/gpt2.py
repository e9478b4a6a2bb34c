"""GPT-2: pre-norm, learned positions, matrices stored as [in, out]. Follows transformers' `models/gpt2`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from chinchilla_lm.models.config import HeadConfig, HeadKind, ModelConfig
from chinchilla_lm.models.families.base import Family, Weight, standard_architectures
from chinchilla_lm.models.families.bert import both
from chinchilla_lm.models.families.llama import decoder_head
from chinchilla_lm.models.families.llama import head_weights as decoder_head_weights
from chinchilla_lm.models.families.reading import MAX_BLOCKS, Fields, plain_head


def head(hf: Mapping[str, Any], kind: HeadKind, labels: tuple[str, ...]) -> HeadConfig:
    """As other decoders, with a tied LM head by default and always a bias on the token classifier."""
    if kind == "language-modeling":
        return plain_head(hf, kind, (), bias=False, tied=Fields(hf).flag("tie_word_embeddings", True))
    if kind == "token-classification":
        return plain_head(hf, kind, labels, bias=True)
    return decoder_head(hf, kind, labels)


def read(hf: Mapping[str, Any], head: HeadConfig) -> ModelConfig:
    """Our config of a GPT-2."""
    fields = Fields({"n_embd": hf.get("hidden_size"), "n_layer": hf.get("num_hidden_layers")} | dict(hf))
    fields.require("scale_attn_by_inverse_layer_idx", False, None)
    heads, hidden = fields.whole("n_head", 12), fields.whole("n_embd", 768)
    if hidden % heads:
        raise fields.error("n_head", heads, f"a divisor of n_embd {hidden}")
    return ModelConfig(
        family=fields.model_type,
        vocab_size=fields.whole("vocab_size", 50_257),
        hidden_size=hidden,
        num_blocks=fields.whole("n_layer", 12, high=MAX_BLOCKS),
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=hidden // heads,
        intermediate_size=fields.whole("n_inner", 4 * hidden),
        max_positions=fields.whole("n_positions", 1024),
        causal=fields.flag("is_causal", True),
        norm="layernorm",
        norm_eps=fields.number("layer_norm_epsilon", 1e-5),
        placement="pre",
        activation=fields.activation("activation_function", "gelu_new"),
        gated=False,
        head=head,
        attention_scale=None if fields.flag("scale_attn_weights", True) else 1.0,
    )


def transposed(ours: str, theirs: str) -> list[Weight]:
    """Weight and bias of a `Conv1D`, which stores its matrix as [in, out]."""
    weight, bias = both(ours, theirs)
    return [replace(weight, transposed=True), bias]


def weights(config: ModelConfig) -> list[Weight]:
    """All names of a GPT-2 with its head."""
    found = [
        Weight("embedding.tokens.weight", ("wte.weight",)),
        Weight("embedding.positions.weight", ("wpe.weight",)),
        *both("norm", "ln_f"),
    ]
    for block in range(config.num_blocks):
        attn, mlp, theirs = f"links.{block}_attn.", f"links.{block}_mlp.", f"h.{block}."
        found += both(f"{attn}norm", f"{theirs}ln_1") + both(f"{mlp}norm", f"{theirs}ln_2")
        found += transposed(f"{attn}qkv", f"{theirs}attn.c_attn") + transposed(f"{attn}out", f"{theirs}attn.c_proj")
        found += transposed(f"{mlp}up", f"{theirs}mlp.c_fc") + transposed(f"{mlp}down", f"{theirs}mlp.c_proj")
    if config.head.kind == "token-classification":
        return found + both("head.output", "classifier", in_base=False)
    return found + decoder_head_weights(config)


FAMILY = Family(
    name="gpt2",
    architectures={"gpt2": standard_architectures("GPT2", "LMHeadModel")},
    base_prefix="transformer.",
    depth_key="n_layer",
    decoder=True,
    to_config=read,
    weights=weights,
    default_head=head,
    ignored=(r"h\.\d+\.attn\.(masked_)?bias",),
)
