"""The model in the forms that peers read: a stock Hugging Face folder, and a GGUF file for llama.cpp.

In the GGUF file token ids are all there is of the vocabulary, since ids are what peers are given. llama.cpp rotates
neighbouring features where transformers rotates halves, for the architectures named here, so rows of query and key are
put in its order.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from chinchilla_lm.errors import InputError
from chinchilla_lm.export.hf import export_hf
from chinchilla_lm.files import read_json
from chinchilla_lm.models.checkpoint import Checkpoint

# model_type → (llama.cpp's architecture, whether it rotates neighbours).
ARCHITECTURES = {"llama": ("llama", True), "mistral": ("llama", True), "qwen2": ("qwen2", False)}
NAMES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
WHOLE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


class Sources:
    """Makes each form when it is first asked for, below a folder."""

    def __init__(self, path: str, checkpoint: Checkpoint, below: Path, form: str | None = None) -> None:
        """form: of a model that is packed already."""
        self.path, self.checkpoint, self.below, self.form = path, checkpoint, below, form

    def of(self, kind: str) -> str:
        """`model`, `folder`, `ready` or `gguf`, as a path. Raises InputError where the model has no such form."""
        if kind == "model":
            return self.path
        return str(self.gguf if kind == "gguf" else self.folder)

    @cached_property
    def folder(self) -> Path:
        """As stock transformers loads it."""
        export_hf(self.checkpoint, self.below / "folder")
        return self.below / "folder"

    @cached_property
    def gguf(self) -> Path:
        """In float32."""
        path = self.below / "model.gguf"
        write_gguf(self.folder, path)
        return path


def write_gguf(folder: Path, path: Path) -> None:
    """A Hugging Face folder of a Llama-like model as a GGUF file. Raises InputError for another architecture."""
    config: dict[str, Any] = read_json(folder / "config.json", "model config")
    kind = config["model_type"]
    if kind not in ARCHITECTURES:
        raise InputError(f"model_type {kind} is not one of {', '.join(ARCHITECTURES)}; leave llama.cpp out of --peers")
    architecture, neighbours = ARCHITECTURES[kind]
    heads = config["num_attention_heads"]
    kv_heads = config.get("num_key_value_heads") or heads
    size = config.get("head_dim") or config["hidden_size"] // heads
    rope = config.get("rope_parameters") or {}
    if config.get("rope_scaling") or rope.get("rope_type", "default") != "default":
        raise InputError(
            "rotary embeddings that are scaled are not written to GGUF here; leave llama.cpp out of --peers"
        )
    writer = gguf.GGUFWriter(str(path), architecture)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_rope_dimension_count(size)
    writer.add_key_length(size)
    writer.add_value_length(size)
    writer.add_rope_freq_base(float(rope.get("rope_theta") or config.get("rope_theta") or 10000.0))
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("no_vocab")
    for name, tensor in _tensors(folder).items():
        stem, _, what = name.rpartition(".")
        if stem in WHOLE:
            writer.add_tensor(f"{WHOLE[stem]}.{what}", tensor)
            continue
        _, _, block, part = stem.split(".", 3)
        if neighbours and part.endswith(("q_proj", "k_proj")):
            tensor = _neighbours(tensor, heads if part.endswith("q_proj") else kv_heads)
        writer.add_tensor(f"blk.{block}.{NAMES[part]}.{what}", tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _tensors(folder: Path) -> dict[str, NDArray[np.float32]]:
    return {
        name: np.ascontiguousarray(one, np.float32) for name, one in load_file(folder / "model.safetensors").items()
    }


def _neighbours(rows: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Rows of heads with halves (a0 … an b0 … bn) as rows with neighbours (a0 b0 … an bn)."""
    parted = rows.reshape(heads, 2, rows.shape[0] // heads // 2, -1).swapaxes(1, 2)
    return np.ascontiguousarray(parted.reshape(rows.shape))
