"""GGUF files: tiny ones written here, against the model they were made of and against transformers' own reader."""

from __future__ import annotations

import importlib.util
import math
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFWriter
from gguf.quants import dequantize, quantize

from chinchilla_lm.errors import InputError
from chinchilla_lm.models.checkpoint import load, save
from chinchilla_lm.models.config import RopeConfig
from chinchilla_lm.models.gguf_file import open_file
from chinchilla_lm.models.rope import inverse_frequencies
from tests.models.tiny import VOCAB, assert_same, batch, build, theirs

NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
    "self_attn.qkv_proj": "attn_qkv",
    "mlp.gate_up_proj": "ffn_up",
}
INTERLEAVED, FOUR_NORMS = ("llama", "smollm3", "granite"), ("gemma2", "gemma3", "olmo2")
TOKENS = ["a", "b", "ab", *(f"<{index}>" for index in range(VOCAB - 3))]


def permuted(weight: np.ndarray, heads: int) -> np.ndarray:
    """As llama.cpp's converter writes query and key (convert_hf_to_gguf.py, LlamaModel.permute)."""
    return (
        weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)
    )


def add_config(writer: GGUFWriter, config: Any) -> None:
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(int(head_dim * config.rope_parameters.get("partial_rotary_factor", 1.0)))
    writer.add_vocab_size(config.vocab_size)
    parameters = config.rope_parameters.get("full_attention", config.rope_parameters)
    writer.add_rope_freq_base(parameters["rope_theta"])
    if parameters["rope_type"] == "linear":
        writer.add_string(f"{writer.arch}.rope.scaling.type", "linear")
        writer.add_rope_scaling_factor(parameters["factor"])


def add_features(writer: GGUFWriter, config: Any) -> None:
    """What llama.cpp's converter says of single architectures."""
    arch, rope = writer.arch, config.rope_parameters
    if arch in ("gemma2", "gemma3", "phi3"):
        writer.add_sliding_window(config.sliding_window or 0)
    if arch == "gemma2":
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    if arch == "granite":
        writer.add_attention_scale(config.attention_multiplier)
        writer.add_embedding_scale(config.embedding_multiplier)
        writer.add_residual_scale(config.residual_multiplier)
        writer.add_logit_scale(config.logits_scaling)
    if arch == "phi3":
        writer.add_rope_scaling_orig_ctx_len(config.original_max_position_embeddings)
        if rope["rope_type"] == "longrope":
            old = config.original_max_position_embeddings
            stretch = config.max_position_embeddings / old
            writer.add_rope_scaling_attn_factors(math.sqrt(1 + math.log(stretch) / math.log(old)))
            for kind in ("short", "long"):
                factors = np.array(rope[f"{kind}_factor"], np.float32)
                writer.add_tensor(f"rope_factors_{kind}.weight", factors)


def write_gguf(path: Path, model: Any, arch: str, kind: GGMLQuantizationType = GGMLQuantizationType.F32) -> Path:
    """A model of transformers as llama.cpp's converter would write it."""
    config, writer = model.config, GGUFWriter(path, arch)
    add_config(writer, config)
    add_features(writer, config)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(TOKENS)
    writer.add_token_types([1] * VOCAB)
    writer.add_token_merges(["a b"])
    tied = config.tie_word_embeddings
    for name, tensor in model.state_dict().items():
        if tied and name == "lm_head.weight":
            continue
        values = tensor.float().numpy()
        module, part = name.rsplit(".", 1)
        if arch in INTERLEAVED and module.endswith(("q_proj", "k_proj")):
            values = permuted(values, config.num_attention_heads if "q_proj" in name else config.num_key_value_heads)
        if arch.startswith("gemma") and module.endswith("norm"):
            values = values + 1
        ours = NAMES | {"post_attention_layernorm": "post_attention_norm" if arch in FOUR_NORMS else "ffn_norm"}
        block = module.removeprefix("model.layers.").split(".", 1)
        full = f"blk.{block[0]}.{ours[block[1]]}" if module.startswith("model.layers.") else ours[module]
        packed = kind if values.ndim == 2 and values.shape[1] % 32 == 0 else GGMLQuantizationType.F32
        data = np.ascontiguousarray(quantize(values, packed))
        writer.add_tensor(f"{full}.{part}", data, raw_dtype=packed)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


# No name of a block that does not see positions is stored: it is every fourth, so of three none.
ALL_TURN = {"no_rope_layers": [1, 1, 1]}
OTHERS: list[tuple[str, str, dict[str, Any]]] = [
    ("gemma3", "gemma3", {"layer_types": ["sliding_attention"] * 3, "query_pre_attn_scalar": 16}),
    ("gemma2", "gemma2", {"layer_types": None, "query_pre_attn_scalar": 16}),
    ("smollm3", "smollm3", ALL_TURN),
    ("granite", "granite", {}),
    ("granite-biased-tied", "granite", {"mlp_bias": False}),
    ("olmo2", "olmo2", {}),
    ("phi3-window", "phi3", {}),
    ("phi3-partial-tied", "phi3", {}),
    ("phi3-longrope", "phi3", {}),
]
MODELS = [("llama-gqa", "llama"), ("llama-linear-wide-heads", "llama"), ("qwen2", "qwen2"), ("qwen3", "qwen3")]


@pytest.mark.parametrize(("name", "arch", "more"), [*((name, arch, {}) for name, arch in MODELS), *OTHERS])
def test_weights_and_config_are_those_of_the_original(
    name: str, arch: str, more: dict[str, Any], tmp_path: Path
) -> None:
    reference, data = build(name, **more), batch(True)
    checkpoint = load(write_gguf(tmp_path / "tiny.gguf", reference, arch))
    assert checkpoint.source == tmp_path / "tiny.gguf"
    with torch.no_grad():
        assert_same(checkpoint.model(data), theirs(reference, data), data)
    save(checkpoint, tmp_path / "hf")
    stock = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf").eval()
    assert_same(theirs(stock, data), theirs(reference, data), data)
    assert stock.config.rms_norm_eps == reference.config.rms_norm_eps
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")("abba")["input_ids"] == [2, 1, 0]


@pytest.mark.parametrize("kind", [GGMLQuantizationType.Q8_0, GGMLQuantizationType.Q4_1, GGMLQuantizationType.BF16])
@pytest.mark.parametrize(("name", "arch"), [MODELS[0], MODELS[2]])
def test_quantised_files_are_what_transformers_reads(name: str, arch: str, kind: Any, tmp_path: Path) -> None:
    if importlib.util.find_spec("accelerate") is None:
        pytest.skip("transformers reads GGUF only with accelerate")
    path = write_gguf(tmp_path / "tiny.gguf", build(name), arch, kind)
    reference = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=path.name, dtype=torch.float32)
    checkpoint, data = load(tmp_path), batch(False)
    with torch.no_grad():
        assert_same(checkpoint.model(data), theirs(reference.eval(), data), data)
    changed = checkpoint.model(data) - theirs(build(name), data)
    assert 1e-4 < changed.abs().max().item() < 10  # it did lose something


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q8_0", "Q6_K", "IQ4_XS"])
def test_values_read_in_pieces_are_those_of_the_whole(kind: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("chinchilla_lm.models.gguf_file.PIECE", 1024)
    form = GGMLQuantizationType[kind]
    block, size = GGML_QUANT_SIZES[form]
    raw = np.random.default_rng(0).integers(0, 60, (2, 5, 512 // block * size), np.uint8)  # halves far from NaN
    writer = GGUFWriter(tmp_path / "one.gguf", "llama")
    writer.add_tensor("x", raw, raw_dtype=form)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with open_file(tmp_path / "one.gguf") as file:
        found = file.read("x")
    assert found.shape == (2, 5, 512)
    assert torch.equal(found, torch.from_numpy(dequantize(raw, form)))


def test_llama3_scaling_is_recognised(tmp_path: Path) -> None:
    """Llama 3.1's GGUF files hold only the table of divisors."""
    values = {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    values |= {"original_max_position_embeddings": 8192}
    config = RopeConfig(500_000.0, tuple(sorted(values.items())))  # type: ignore[arg-type]
    cpu = torch.device("cpu")
    table = inverse_frequencies(RopeConfig(500_000.0), 64, cpu) / inverse_frequencies(config, 64, cpu)
    model = build("llama-gqa", head_dim=64, rope_parameters={"rope_type": "default", "rope_theta": 500_000.0})

    class WithTable:
        config = model.config

        @staticmethod
        def state_dict() -> dict[str, torch.Tensor]:
            return model.state_dict() | {"rope_freqs.weight": table}

    NAMES["rope_freqs"] = "rope_freqs"
    checkpoint = load(write_gguf(tmp_path / "tiny.gguf", WithTable, "llama"))
    assert checkpoint.model.config.ropes == (config,) * 3
    table[3] *= 1.5
    with pytest.raises(InputError, match="rope_freqs"):
        load(write_gguf(tmp_path / "other.gguf", WithTable, "llama"))


def test_truncation_anywhere_is_refused(tmp_path: Path) -> None:
    whole = write_gguf(tmp_path / "tiny.gguf", build("llama-gqa"), "llama").read_bytes()
    for kept in [0, 3, 4, 7, 8, 15, 23, 24, 30, 60, 200, 1000, 2000, 4000, len(whole) // 2, len(whole) - 40]:
        (tmp_path / "cut.gguf").write_bytes(whole[:kept])
        with pytest.raises(InputError, match=r"cut\.gguf") as caught:
            load(tmp_path / "cut.gguf")
        assert "\n" not in str(caught.value)


def test_headers_that_claim_too_much_are_refused(tmp_path: Path) -> None:
    whole = write_gguf(tmp_path / "tiny.gguf", build("llama-gqa"), "llama").read_bytes()
    huge = struct.pack("<Q", 1 << 61)
    array = whole.index(b"tokenizer.ggml.tokens") + len(b"tokenizer.ggml.tokens") + 8
    entry = whole.index(b"output_norm.weight") + len(b"output_norm.weight")
    for at, value in [
        (0, b"PICK"),
        (4, struct.pack("<I", 99)),
        (8, huge),  # tensors
        (16, huge),  # metadata entries
        (24, huge),  # the first key's length
        (array, huge),  # strings in an array
        (entry, struct.pack("<I", 900)),  # dimensions
        (entry + 4, huge),  # a width
        (entry + 12, struct.pack("<I", 77)),  # a type
        (entry + 16, huge),  # an offset
    ]:
        (tmp_path / "bad.gguf").write_bytes(whole[:at] + value + whole[at + len(value) :])
        with pytest.raises(InputError, match=r"bad\.gguf"):
            load(tmp_path / "bad.gguf")


def test_models_that_we_do_not_have_are_refused(tmp_path: Path) -> None:
    cases: list[tuple[str, str | int, str]] = [
        ("general.architecture", "mamba", "mamba"),
        ("llama.expert_count", 8, "expert_count"),
        ("llama.rope.dimension_count", 4, "rope.dimension_count"),
        ("llama.attention.head_count", 0, "head_count"),
        ("llama.rope.scaling.type", "yarn", "yarn"),
    ]
    for key, value, named in cases:
        path = write_gguf(tmp_path / "tiny.gguf", build("llama-gqa"), "llama")
        changed = rewrite(path, key, value)
        with pytest.raises(InputError, match=named):
            load(changed)


def rewrite(path: Path, key: str, value: str | int) -> Path:
    """The same file with one metadata entry added or changed."""
    from gguf import GGUFReader

    reader = GGUFReader(path)
    arch = value if key == "general.architecture" else "llama"
    writer = GGUFWriter(path.with_name("changed.gguf"), str(arch))
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name not in ("general.architecture", key):
            kind = field.types[0]
            inner = field.types[-1] if len(field.types) > 1 else None
            writer.add_key_value(name, field.contents(), kind, sub_type=inner)
    if key != "general.architecture":
        (writer.add_string if isinstance(value, str) else writer.add_uint32)(key, value)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, np.array(tensor.data), raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.with_name("changed.gguf")
