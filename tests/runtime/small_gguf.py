"""A tiny GGUF file with all that a kept copy has to keep, and a session on it."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import quantize
from tokenizers import pre_tokenizers

from chinchilla_lm.runtime.engine import keeping
from chinchilla_lm.runtime.loading import load
from chinchilla_lm.runtime.session import Session
from tests.models.test_gguf import NAMES, add_config
from tests.models.tiny import build

MERGES = ["\u0120 t", "h e", "\u0120t he", "i n", "\u0120 \u0120"]
TOKENS = [
    *sorted(pre_tokenizers.ByteLevel.alphabet()),
    *(merge.replace(" ", "") for merge in MERGES),
    *("<|bos|>", "<|im_end|>", "<|end_of_text|>", "<think>"),
]
TEMPLATE = "{{ bos_token }}\r\n{% for m in messages %}<{{ m['content'] }}>\n{% endfor %}"


def write_model(path: Path, seed: int = 0, tokens: list[str] = TOKENS) -> Path:
    """A tiny Qwen 3 in Q8_0 with a byte-level tokenizer, a chat template and several stop tokens."""
    model = build("qwen3", vocab_size=len(tokens), eos_token_id=None, bos_token_id=None)
    with torch.no_grad():
        model.model.embed_tokens.weight += seed
    config, writer = model.config, GGUFWriter(path, "qwen3")
    add_config(writer, config)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * (len(tokens) - 4) + [3, 3, 3, 4])
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(tokens.index("<|bos|>"))
    writer.add_eos_token_id(tokens.index("<|end_of_text|>"))
    writer.add_add_bos_token(True)
    writer.add_chat_template(TEMPLATE)
    for name, tensor in model.state_dict().items():
        if config.tie_word_embeddings and name == "lm_head.weight":
            continue
        module, part = name.rsplit(".", 1)
        block = module.removeprefix("model.layers.").split(".", 1)
        ours = NAMES | {"post_attention_layernorm": "ffn_norm"}
        full = f"blk.{block[0]}.{ours[block[1]]}" if module.startswith("model.layers.") else ours[module]
        values = tensor.numpy()
        whole = values.ndim == 2 and values.shape[1] % 32 == 0
        kind = GGMLQuantizationType.Q8_0 if whole else GGMLQuantizationType.F32
        writer.add_tensor(f"{full}.{part}", np.ascontiguousarray(quantize(values, kind)), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def loaded(path: Path, dtype: str = "float32", **more: Any) -> Session:
    """A session, when its copy has been written."""
    session = load(path, "native", dtype=dtype, threads=1, **more)
    for thread in threading.enumerate():
        if thread.name == keeping.NAME:
            thread.join()
    return session
