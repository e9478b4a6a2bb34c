"""Tiny random models of transformers, one or more a family, and ours with the same weights through a saved folder."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from chinchilla_lm.models.batch import Batch

VOCAB, HIDDEN, POSITIONS = 97, 32, 24
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
DECODER = {
    "vocab_size": VOCAB,
    "hidden_size": HIDDEN,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
ENCODER = {
    "vocab_size": VOCAB,
    "hidden_size": HIDDEN,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 40,
}
GPT2 = {"vocab_size": VOCAB, "n_embd": HIDDEN, "n_layer": 3, "n_head": 4, "n_positions": 40, "pad_token_id": 0}
DISTIL = {"vocab_size": VOCAB, "dim": HIDDEN, "hidden_dim": 48, "n_layers": 3, "n_heads": 4}
GEMMA = DECODER | {"head_dim": 16, "query_pre_attn_scalar": 12, "sliding_window": 5}
DEBERTA_3 = {
    "relative_attention": True,
    "pos_att_type": "p2c|c2p",
    "position_buckets": 8,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "position_biased_input": False,
}
MODERN = {
    "local_attention": 7,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "cls_token_id": 1,
    "sep_token_id": 2,
}
MIXED = ["sliding_attention", "full_attention", "sliding_attention"]

CAPPED = GEMMA | {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 2.0}
# Short enough that all rows of the test batch are longer, and long enough that none is.
LONGROPE: dict[str, Any] = {"rope_type": "longrope", "rope_theta": 10_000.0}
LONGROPE |= {"short_factor": [1.0, 1.1, 1.3, 2.0], "long_factor": [1.5, 2.0, 4.0, 9.0]}
PHI3 = {"bos_token_id": 1, "eos_token_id": 2}
DELTA = {
    "head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 12,
    "linear_conv_kernel_dim": 4,
}
MULTIPLIERS = {
    "embedding_multiplier": 6.0,
    "attention_multiplier": 0.25,
    "residual_multiplier": 0.22,
    "logits_scaling": 3.0,
}
YARN = {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 8.0, "original_max_position_embeddings": 16}

# name → (configuration class, its arguments). Windows are shorter than the 24 positions of the test batch.
CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "llama-gqa": (transformers.LlamaConfig, DECODER),
    "llama-biased-llama3-tied": (
        transformers.LlamaConfig,
        DECODER | {"attention_bias": True, "mlp_bias": True, "rope_parameters": LLAMA3, "tie_word_embeddings": True},
    ),
    "llama-linear-wide-heads": (
        transformers.LlamaConfig,
        DECODER | {"head_dim": 16, "rope_parameters": {"rope_type": "linear", "rope_theta": 500.0, "factor": 4.0}},
    ),
    "llama-yarn": (
        transformers.LlamaConfig,
        DECODER | {"rope_parameters": YARN | {"beta_fast": 4.0, "beta_slow": 0.5, "attention_factor": 1.3}},
    ),
    "mistral-window": (transformers.MistralConfig, DECODER | {"sliding_window": 7}),
    "mistral-full": (transformers.MistralConfig, DECODER | {"sliding_window": None, "num_key_value_heads": 4}),
    "qwen2": (transformers.Qwen2Config, DECODER | {"tie_word_embeddings": True}),
    "qwen2-window": (
        transformers.Qwen2Config,
        DECODER | {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
    ),
    "qwen3": (transformers.Qwen3Config, DECODER | {"head_dim": 16}),
    "qwen3-biased-mixed": (
        transformers.Qwen3Config,
        DECODER
        | {
            "head_dim": 8,
            "attention_bias": True,
            "use_sliding_window": True,
            "sliding_window": 6,
            "layer_types": MIXED,
        },
    ),
    "gemma3": (transformers.Gemma3TextConfig, GEMMA | {"layer_types": MIXED}),
    "gemma3-scaled-untied": (
        transformers.Gemma3TextConfig,
        GEMMA
        | {
            "layer_types": MIXED[::-1],
            "tie_word_embeddings": False,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
        },
    ),
    "smollm3": (
        transformers.SmolLM3Config,
        DECODER | {"no_rope_layer_interval": 2, "bos_token_id": 1, "eos_token_id": 2},
    ),
    "smollm3-window-biased": (
        transformers.SmolLM3Config,
        DECODER
        | {"bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": False, "attention_bias": True, "mlp_bias": True}
        | {"no_rope_layers": [0, 1, 0], "use_sliding_window": True, "sliding_window": 5},
    ),
    "phi3-window": (transformers.Phi3Config, DECODER | PHI3 | {"sliding_window": 7, "resid_pdrop": 0.1}),
    "phi3-partial-tied": (
        transformers.Phi3Config,
        DECODER
        | PHI3
        | {"tie_word_embeddings": True, "num_attention_heads": 2}
        | {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.75}},
    ),
    "phi3-longrope": (
        transformers.Phi3Config,
        DECODER | PHI3 | {"rope_parameters": LONGROPE, "original_max_position_embeddings": 2},
    ),
    "phi3-longrope-short-partial": (
        transformers.Phi3Config,
        DECODER
        | PHI3
        | {"num_attention_heads": 2, "num_key_value_heads": 1, "original_max_position_embeddings": 30}
        | {"rope_parameters": LONGROPE | {"partial_rotary_factor": 0.5}},
    ),
    "olmo2": (transformers.Olmo2Config, DECODER | {"num_key_value_heads": 4}),
    "olmo2-grouped-biased-tied": (
        transformers.Olmo2Config,
        DECODER | {"attention_bias": True, "tie_word_embeddings": True, "hidden_act": "gelu_pytorch_tanh"},
    ),
    "olmo3": (
        transformers.Olmo3Config,
        DECODER
        | {"sliding_window": 5, "layer_types": MIXED, "eos_token_id": 2}
        | {"rope_parameters": {"full_attention": YARN, "sliding_attention": {"rope_type": "default"}}},
    ),
    "granite": (transformers.GraniteConfig, DECODER | MULTIPLIERS),
    "granite-biased-tied": (
        transformers.GraniteConfig,
        DECODER | MULTIPLIERS | {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True},
    ),
    "gemma2": (transformers.Gemma2Config, CAPPED | {"layer_types": MIXED}),
    "gemma2-uncapped-untied": (
        transformers.Gemma2Config,
        CAPPED | {"attn_logit_softcapping": None, "final_logit_softcapping": None, "tie_word_embeddings": False},
    ),
    "exaone4": (transformers.Exaone4Config, DECODER | {"sliding_window": 5, "layer_types": MIXED}),
    "exaone4-full": (
        transformers.Exaone4Config,
        DECODER | {"sliding_window": None, "layer_types": ["full_attention"] * 3, "tie_word_embeddings": True},
    ),
    "ministral": (
        transformers.MinistralConfig,
        DECODER | {"sliding_window": 6, "layer_types": MIXED, "head_dim": 16},
    ),
    "qwen3_5": (
        transformers.Qwen3_5TextConfig,
        DECODER | DELTA | {"layer_types": ["linear_attention", "full_attention", "linear_attention"]},
    ),
    "qwen3_5-biased-tied": (
        transformers.Qwen3_5TextConfig,
        DECODER
        | DELTA
        | {"attention_bias": True, "tie_word_embeddings": True, "num_hidden_layers": 3, "full_attention_interval": 2}
        | {"linear_num_key_heads": 4, "linear_conv_kernel_dim": 2},
    ),
    "gpt2": (transformers.GPT2Config, GPT2),
    "gpt2-untied-unscaled": (
        transformers.GPT2Config,
        GPT2
        | {"n_inner": 40, "tie_word_embeddings": False, "scale_attn_weights": False, "activation_function": "relu"},
    ),
    "bert": (transformers.BertConfig, ENCODER),
    "bert-untied-relu": (
        transformers.BertConfig,
        ENCODER | {"hidden_act": "relu", "tie_word_embeddings": False, "type_vocab_size": 3, "layer_norm_eps": 1e-5},
    ),
    "roberta": (transformers.RobertaConfig, ENCODER | {"type_vocab_size": 1}),
    "roberta-pad-5": (transformers.RobertaConfig, ENCODER | {"pad_token_id": 5, "hidden_act": "gelu_new"}),
    "xlm-roberta": (transformers.XLMRobertaConfig, ENCODER | {"type_vocab_size": 1, "tie_word_embeddings": False}),
    "camembert": (transformers.CamembertConfig, ENCODER | {"layer_norm_eps": 1e-5}),
    "electra": (transformers.ElectraConfig, ENCODER | {"embedding_size": 24}),
    "electra-same-untied": (
        transformers.ElectraConfig,
        ENCODER | {"embedding_size": HIDDEN, "hidden_act": "relu", "tie_word_embeddings": False},
    ),
    "mpnet": (transformers.MPNetConfig, ENCODER),
    "deberta-v2": (transformers.DebertaV2Config, ENCODER | DEBERTA_3),
    "deberta-v2-own-matrices": (
        transformers.DebertaV2Config,
        ENCODER
        | {
            "relative_attention": True,
            "pos_att_type": ["c2p", "p2c"],
            "max_relative_positions": 9,
            "type_vocab_size": 2,
            "pooler_hidden_act": "tanh",
            "tie_word_embeddings": False,
        },
    ),
    "deberta-v2-c2p": (transformers.DebertaV2Config, ENCODER | DEBERTA_3 | {"pos_att_type": "c2p", "legacy": False}),
    "deberta-v2-absolute": (transformers.DebertaV2Config, ENCODER | {"pos_att_type": ["p2c"]}),
    "modernbert": (transformers.ModernBertConfig, ENCODER | MODERN),
    "modernbert-biased-mean": (
        transformers.ModernBertConfig,
        ENCODER
        | MODERN
        | {
            "norm_bias": True,
            "attention_bias": True,
            "mlp_bias": True,
            "classifier_bias": True,
            "classifier_pooling": "mean",
            "classifier_activation": "silu",
            "decoder_bias": False,
            "tie_word_embeddings": False,
            "layer_types": MIXED,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 500.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 20.0},
            },
        },
    ),
    "distilbert": (transformers.DistilBertConfig, DISTIL),
    "distilbert-relu-untied": (
        transformers.DistilBertConfig,
        DISTIL | {"activation": "relu", "tie_word_embeddings": False, "max_position_embeddings": 30},
    ),
}
ENCODER_FAMILIES = (
    "bert",
    "roberta",
    "xlm-roberta",
    "camembert",
    "distilbert",
    "electra",
    "mpnet",
    "modernbert",
    "deberta",
)
DECODERS = [name for name in CASES if not name.startswith(ENCODER_FAMILIES)]
ENCODERS = [name for name in CASES if name not in DECODERS]
LABELS = ("O", "B-X", "I-X")

# Decoders of which transformers has no classifier of tokens, and none of texts.
NO_TAGGER, NO_CLASSIFIER = ("gemma3", "olmo", "granite", "qwen3_5"), ("granite",)
# Decoders that remember what they read in a state, which cannot go back.
REMEMBERING = [name for name in DECODERS if name.startswith("qwen3_5")]

AUTO: dict[str, Any] = {
    "token-classification": transformers.AutoModelForTokenClassification,
    "text-classification": transformers.AutoModelForSequenceClassification,
    "ranking": transformers.AutoModelForSequenceClassification,
    "embedding": transformers.AutoModel,
}


def has_class(name: str, kind: str) -> bool:
    """Whether transformers has a class for this head."""
    if kind == "token-classification":
        return not name.startswith(NO_TAGGER)
    return kind in ("language-modeling", "embedding") or not name.startswith(NO_CLASSIFIER)


def auto_class(name: str, kind: str) -> Any:
    """The class of transformers that holds this head."""
    if kind == "language-modeling":
        return transformers.AutoModelForCausalLM if name in DECODERS else transformers.AutoModelForMaskedLM
    return AUTO[kind]


def build(name: str, kind: str = "language-modeling", **more: Any) -> Any:
    """A random model of transformers whose biases and norms are not at their plain initial values."""
    torch.manual_seed(sum(map(ord, name + kind)))
    make, values = CASES[name]
    labels = {"token-classification": LABELS, "text-classification": LABELS, "ranking": ("score",)}.get(kind)
    if labels is not None:
        more = {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}} | more
    config = make(**copy.deepcopy(values | more))
    model = auto_class(name, kind).from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter *= 1.5
    return model


def saved(tmp_path: Path, name: str, kind: str = "language-modeling", **more: Any) -> tuple[Any, Path]:
    """A random model and the folder it was saved in."""
    model = build(name, kind, **more)
    folder = tmp_path / f"{name}-{kind}"
    model.save_pretrained(folder)
    return model, folder


def batch(padded: bool, rows: int = 3, length: int = POSITIONS, seed: int = 1) -> Batch:
    """Random ids away from special ones; padded on the right with rows of different lengths, one of them short."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(7, VOCAB, (rows, length), generator=generator)
    if not padded:
        return Batch(ids)
    lengths = torch.tensor([length, length // 2, 3][:rows])
    mask = torch.arange(length)[None] < lengths[:, None]
    return Batch(ids.masked_fill(~mask, 0), mask)


@torch.no_grad()
def theirs(model: Any, data: Batch) -> Tensor:
    """What transformers gives: logits, or the last hidden state."""
    values: dict[str, Any] = {"input_ids": data.ids}
    if data.mask is not None:
        values["attention_mask"] = data.mask.long()
    if data.segments is not None:
        values["token_type_ids"] = data.segments
    out = model(**values)
    found: Tensor = out.logits if hasattr(out, "logits") else out.last_hidden_state
    return found


def assert_same(ours: Tensor, other: Tensor, data: Batch, tolerance: float = 1e-4) -> None:
    """Equal within `tolerance` wherever there is a real token, and finite there."""
    assert ours.shape == other.shape
    if data.mask is not None and ours.dim() == 3:
        ours, other = ours[data.mask], other[data.mask]
    assert torch.isfinite(ours).all()
    assert (ours - other).abs().max().item() < tolerance
    assert other.std().item() > 0.01, "the reference is constant, so agreeing with it proves nothing"
