"""GGUF files that we write: read again by our own reader and by that of the gguf package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from chinchilla_lm.errors import InputError
from chinchilla_lm.export.gguf import Draft, draft
from chinchilla_lm.models.checkpoint import Checkpoint, load, save
from chinchilla_lm.pack.quantized import Quantized
from chinchilla_lm.runtime.engine.unpacking import unpack_with_codes
from chinchilla_lm.runtime.packing import write_packed
from tests.models.test_checkpoint import add_tokenizer, shortened
from tests.models.test_gguf import ALL_TURN
from tests.models.tiny import batch, saved

WORDS = {"tokenizer.ggml.model": "no_vocab"}
WIDE: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 96}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 8192, "rope_theta": 500_000.0}
EVERY: list[tuple[str, str, dict[str, Any]]] = [
    ("llama-gqa", "llama", {}),
    ("llama-linear-wide-heads", "llama", {}),
    ("llama-biased-llama3-tied", "llama", {"mlp_bias": False, "head_dim": 32, "rope_parameters": LLAMA3}),
    ("mistral-full", "llama", {}),
    ("qwen2", "qwen2", {}),
    ("qwen3", "qwen3", {}),
    ("gemma2", "gemma2", {"layer_types": None, "query_pre_attn_scalar": 16}),
    ("gemma3", "gemma3", {"layer_types": ["sliding_attention"] * 3, "query_pre_attn_scalar": 16}),
    ("smollm3", "smollm3", ALL_TURN),
    ("granite", "granite", {}),
    ("granite-biased-tied", "granite", {"mlp_bias": False}),
    ("olmo2", "olmo2", {}),
    ("phi3-window", "phi3", {}),
    ("phi3-partial-tied", "phi3", {}),
    ("phi3-longrope", "phi3", {}),
]
DROPS: list[dict[str, Any]] = [
    {},
    {"1.attn": "lose", "1.mlp": "lose"},
    {"0.attn": "lose", "2.mlp": "lose"},
    {"0.attn": "lose", "0.mlp": "lose", "1.mlp": "lose"},
]


def packed(folder: Path, form: str, tmp_path: Path) -> tuple[Checkpoint, dict[str, Quantized]]:
    """What a model is when it was packed: floats, and codes."""
    add_tokenizer(folder)
    write_packed(str(folder), form, tmp_path / "packed")
    return unpack_with_codes(tmp_path / "packed")


def drafted(checkpoint: Checkpoint, path: Path, codes: Any = None, **more: Any) -> Draft:
    return draft(checkpoint, codes or {}, path, vocabulary=lambda architecture: WORDS, **more)


@pytest.mark.parametrize("dropped", DROPS, ids=lambda drop: "-".join(drop))
@pytest.mark.parametrize(("name", "architecture", "more"), EVERY)
def test_every_architecture_comes_back(
    name: str, architecture: str, more: dict[str, Any], dropped: dict[str, Any], tmp_path: Path
) -> None:
    short = shortened(load(saved(tmp_path, name, **more)[1]), dropped)
    path, data = tmp_path / "tiny.gguf", batch(False)
    made = drafted(short, path)
    made.write(path)
    again = load(path)
    with torch.no_grad():
        assert torch.allclose(again.model(data), short.model(data), atol=1e-5)
    # Only Gemma 2 tells by a block's number whether it has a window: there a block that does nothing stays.
    gone = sum({f"{block}.attn", f"{block}.mlp"} <= set(dropped) for block in range(3))
    assert again.model.config.num_blocks == (3 if architecture == "gemma2" else 3 - gone)
    assert gguf.GGUFReader(path).fields["general.architecture"].contents() == architecture
    if not dropped and not architecture.startswith("gemma"):  # Gemma's norms are stored with one added
        for key, tensor in short.model.state_dict().items():
            assert torch.equal(again.model.state_dict()[key], tensor)


@pytest.mark.parametrize("form", ["int8", "int8,head=int4,1.mlp=bf16", "int4", "int4-sym", "int4-g64", "int4-sym-g128"])
@pytest.mark.parametrize("name", ["llama-gqa", "qwen2"])
def test_codes_of_a_packed_model_are_kept(name: str, form: str, tmp_path: Path) -> None:
    folder = saved(tmp_path, name, **WIDE)[1]
    twin, codes = packed(folder, form, tmp_path)
    path = tmp_path / "tiny.gguf"
    made = drafted(twin, path, codes)
    made.write(path)
    assert made.changes == {}
    again = load(path).model.state_dict()
    for key, tensor in twin.model.state_dict().items():
        assert torch.equal(again[key], tensor), key
    assert not torch.equal(again["links.0_mlp.up.weight"], load(folder).model.state_dict()["links.0_mlp.up.weight"])
    kinds = {one.name: one.tensor_type.name for one in gguf.GGUFReader(path).tensors}
    wanted = "Q8_0" if form.startswith("int8") else "Q4_0" if "sym" in form else "Q4_1"
    assert {kinds["blk.0.attn_q.weight"], kinds["blk.0.ffn_down.weight"]} == {wanted}
    assert kinds["blk.1.ffn_up.weight"] == ("BF16" if "bf16" in form else wanted)
    assert kinds["output_norm.weight"] == "F32"


def test_a_packed_shortened_model(tmp_path: Path) -> None:
    short = shortened(
        load(saved(tmp_path, "llama-gqa", **WIDE)[1]), {"0.attn": "lose", "0.mlp": "lose", "2.attn": "lose"}
    )
    save(short, tmp_path / "short", {})
    twin, codes = packed(tmp_path / "short", "int4", tmp_path)
    path, data = tmp_path / "tiny.gguf", batch(False)
    made = drafted(twin, path, codes)
    made.write(path)
    with torch.no_grad():
        assert torch.allclose(load(path).model(data), twin.model(data), atol=1e-6)
    tensors = {one.name: one for one in gguf.GGUFReader(path).tensors}
    assert tensors["blk.1.attn_output.weight"].tensor_type.name == "Q4_0"  # zeros, which nobody's codes are
    assert tensors["blk.0.attn_output.weight"].tensor_type.name == "Q4_1"


def test_a_scale_for_a_row_and_rows_that_are_no_whole_blocks(tmp_path: Path) -> None:
    twin, codes = packed(saved(tmp_path, "llama-gqa")[1], "int8-row", tmp_path)
    made = drafted(twin, tmp_path / "tiny.gguf", codes)
    assert made.entries["blk.0.ffn_down.weight"].kind.name == "f32"  # 48 inputs
    rounded = {"codes kept, scales rounded from float32 to float16": 19}
    assert made.changes == rounded | {"codes dequantised and written anew as f32": 3}


@pytest.mark.parametrize(
    ("form", "form_of_file", "changes"),
    [
        ("codebook-4x256-row", None, {"codebook or mask written out as codes of 8 bits, the same numbers": 22}),
        (
            "sparse-50-codebook,head=int8",
            None,
            {"codebook or mask written out as codes of 8 bits, the same numbers": 21},
        ),
        ("codebook-4x256-row", "q4_0", {"codes dequantised and written anew as q4_0": 21}),
    ],
)
def test_codebooks_and_masks_are_written_out(
    form: str, form_of_file: str | None, changes: dict[str, int], tmp_path: Path
) -> None:
    twin, codes = packed(saved(tmp_path, "llama-gqa", **WIDE)[1], form, tmp_path)
    path = tmp_path / "tiny.gguf"
    made = drafted(twin, path, codes, form=form_of_file)
    made.write(path)
    assert {change: made.changes.get(change) for change in changes} == changes
    assert not any("kept" in change for change in made.changes)
    if form_of_file is None:
        assert made.changes == changes
        again = load(path).model.state_dict()
        for key, tensor in twin.model.state_dict().items():
            assert torch.equal(again[key], tensor), key


@pytest.mark.parametrize("form", ["f32", "f16", "bf16", "q8_0", "q4_0", "q4_1"])
def test_what_is_asked_for_is_written(form: str, tmp_path: Path) -> None:
    short = shortened(load(saved(tmp_path, "llama-gqa", **WIDE)[1]), {"1.attn": "lose"})
    path = tmp_path / "tiny.gguf"
    drafted(short, path, form=form, name="a model").write(path)
    reader = gguf.GGUFReader(path)
    kinds = {one.name: one.tensor_type.name.lower() for one in reader.tensors}
    wider = "q8_0" if form.startswith("q4") else form
    assert (kinds["blk.0.ffn_up.weight"], kinds["blk.1.attn_q.weight"]) == (form, form)
    assert (kinds["token_embd.weight"], kinds["output.weight"]) == (wider, wider)
    found = {name: field.contents() for name, field in reader.fields.items()}
    assert found["general.name"] == "a model"
    numbers = {"f32": 0, "f16": 1, "bf16": 32, "q8_0": 7, "q4_0": 2, "q4_1": 3}
    assert found["general.file_type"] == numbers[form]
    assert found["llama.rope.freq_base"] == 10_000.0


def test_rows_of_query_and_key_are_in_llama_cpps_order(tmp_path: Path) -> None:
    checkpoint = load(saved(tmp_path, "llama-gqa")[1])
    drafted(checkpoint, tmp_path / "tiny.gguf").write(tmp_path / "tiny.gguf")
    tensors = {one.name: one.data for one in gguf.GGUFReader(tmp_path / "tiny.gguf").tensors}
    config, rows = checkpoint.model.config, checkpoint.model.state_dict()["links.0_attn.qkv.weight"].numpy()
    size = config.head_dim
    for head in range(config.num_heads):
        ours = rows[head * size : (head + 1) * size]
        theirs = tensors["blk.0.attn_q.weight"][head * size : (head + 1) * size]
        np.testing.assert_array_equal(theirs[0::2], ours[: size // 2])
        np.testing.assert_array_equal(theirs[1::2], ours[size // 2 :])


@pytest.mark.parametrize(
    ("name", "more", "said"),
    [
        ("mistral-window", {}, "no key for windows (7, 7, 7)"),
        ("qwen2-window", {}, "no key for windows"),
        ("llama-yarn", {}, "no key for ropes"),
        ("gemma3", {}, "no key for attention_scale"),
        ("granite-biased-tied", {}, "no key for mlp_bias"),
        ("olmo2-grouped-biased-tied", {"attention_bias": False}, "no key for activation 'gelu_tanh'"),
        ("qwen3-biased-mixed", {}, "loads no qwen3 with biases"),
        ("gemma2-uncapped-untied", {}, "loads no gemma2 with a decoder of its own"),
        ("gpt2", {}, "model_type gpt2 is not one of llama"),
        ("bert", {}, "model_type bert is not one of llama"),
    ],
)
def test_what_a_file_cannot_say_is_refused(name: str, more: dict[str, Any], said: str, tmp_path: Path) -> None:
    checkpoint = load(saved(tmp_path, name, **more)[1])
    for dropped in ({}, {"1.attn": "lose", "1.mlp": "lose"}):
        short = shortened(checkpoint, dropped) if name != "bert" else checkpoint
        with pytest.raises(InputError) as caught:
            drafted(short, tmp_path / "tiny.gguf")
        assert said in str(caught.value)
        assert str(caught.value).endswith("; pass --to hf")
    assert not (tmp_path / "tiny.gguf").exists()


def test_other_heads_and_directions_are_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path, "llama-gqa")[1]
    with pytest.raises(InputError, match="this model is for embedding"):
        drafted(load(folder, task="embedding"), tmp_path / "tiny.gguf")
    with pytest.raises(InputError, match="no key for causal False"):
        drafted(load(folder, bidirectional=True), tmp_path / "tiny.gguf")


def test_a_decoder_that_must_be_there_and_a_window_that_nobody_heeds(tmp_path: Path) -> None:
    tied = load(saved(tmp_path, "olmo2-grouped-biased-tied", attention_bias=False, hidden_act="silu")[1])
    entries = drafted(tied, tmp_path / "tiny.gguf").entries
    assert entries["output.weight"] == entries["token_embd.weight"]
    assert drafted(load(saved(tmp_path, "phi3-window")[1]), tmp_path / "tiny.gguf").ignored_window == 7
    assert drafted(load(saved(tmp_path, "phi3-longrope")[1]), tmp_path / "tiny.gguf").ignored_window is None


def test_a_weight_that_is_no_number_is_refused(tmp_path: Path) -> None:
    checkpoint = load(saved(tmp_path, "llama-gqa")[1])
    with torch.no_grad():
        checkpoint.model.state_dict()["links.1_mlp.down.weight"][0, 0] = float("nan")
    with pytest.raises(InputError, match=r"links\.1_mlp\.down\.weight has a weight that is NaN"):
        drafted(checkpoint, tmp_path / "tiny.gguf")
