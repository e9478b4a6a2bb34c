"""Folders of compressed-tensors: unpacked bit by bit here, and by the library where it is installed."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor

from chinchilla_lm.errors import InputError
from chinchilla_lm.export.compressed import export_compressed
from chinchilla_lm.export.hf import export_hf
from chinchilla_lm.export.parts import rounded
from chinchilla_lm.models.checkpoint import Checkpoint, load
from chinchilla_lm.pack.mixed import mixed
from chinchilla_lm.runtime.engine.unpacking import unpack_with_codes
from chinchilla_lm.runtime.packing import write_packed
from tests.models.test_checkpoint import add_tokenizer, shortened
from tests.models.tiny import assert_same, auto_class, batch, saved, theirs

WIDE: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 96}


def dequantised(tensors: dict[str, Tensor], module: str, bits: int) -> Tensor:
    """A matrix by the format's own words: codes of `bits` bits in int32, the first one lowest, less half the range."""
    outputs, inputs = tensors[f"{module}.weight_shape"].tolist()
    words = [[word & 0xFFFFFFFF for word in row] for row in tensors[f"{module}.weight_packed"].tolist()]
    step, scales = 32 // bits, tensors[f"{module}.weight_scale"].float()
    group = inputs // scales.shape[1]
    values = torch.empty(outputs, inputs)
    for row in range(outputs):
        for column in range(inputs):
            code = words[row][column // step] >> (bits * (column % step)) & ((1 << bits) - 1)
            values[row, column] = (code - (1 << (bits - 1))) * scales[row, column // group]
    return values


def packed(
    tmp_path: Path, name: str, form: str, kind: str = "language-modeling", **more: Any
) -> tuple[Checkpoint, Any]:
    folder = saved(tmp_path, name, kind, **more)[1]
    add_tokenizer(folder)
    write_packed(str(folder), form, tmp_path / "packed")
    return unpack_with_codes(tmp_path / "packed")


@pytest.mark.parametrize("form", ["int8", "int8-row", "int4-sym", "int4-sym-g64", "int4-sym-g128"])
def test_codes_are_kept(form: str, tmp_path: Path) -> None:
    twin, codes = packed(tmp_path, "llama-gqa", form, **WIDE)
    export_compressed(twin, codes, tmp_path / "out")
    export_hf(twin, tmp_path / "floats")
    tensors, floats = (load_file(tmp_path / one / "model.safetensors") for one in ("out", "floats"))
    bits = 8 if form.startswith("int8") else 4
    for part in ("self_attn.q_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj"):
        module = f"model.layers.1.{part}"
        assert torch.equal(dequantised(tensors, module, bits), floats[f"{module}.weight"])
        assert tensors[f"{module}.weight_packed"].dtype == torch.int32
    assert torch.equal(tensors["model.norm.weight"], floats["model.norm.weight"])
    assert torch.equal(tensors["model.embed_tokens.weight"].float(), floats["model.embed_tokens.weight"])
    assert torch.allclose(tensors["lm_head.weight"].float(), floats["lm_head.weight"], rtol=2**-10)


def test_what_the_config_says(tmp_path: Path) -> None:
    twin, codes = packed(tmp_path, "qwen2", "int8,1.mlp=bf16,2.attn=int4-sym", **WIDE)
    export_compressed(twin, codes, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    said = config["quantization_config"]
    assert (config["dtype"], said["quant_method"], said["format"]) == (
        "float16",
        "compressed-tensors",
        "pack-quantized",
    )
    assert said["ignore"] == [*(f"model.layers.1.mlp.{name}_proj" for name in ("gate", "up", "down")), "lm_head"]
    groups = {one["weights"]["num_bits"]: one for one in said["config_groups"].values()}
    assert groups[4]["targets"] == [f"model.layers.2.self_attn.{name}_proj" for name in "qkvo"]
    assert (groups[4]["weights"]["group_size"], groups[4]["weights"]["symmetric"]) == (32, True)
    # Of 96 inputs groups of 64 are no whole ones: the same codes in groups of 32.
    eight = {
        one["weights"]["group_size"]: one for one in said["config_groups"].values() if one["weights"]["num_bits"] == 8
    }
    assert eight.keys() == {32, 64}
    assert eight[32]["targets"] == ["model.layers.0.mlp.down_proj", "model.layers.2.mlp.down_proj"]
    with pytest.raises(InputError, match="quantization_config"):
        load(tmp_path / "out")


def test_one_scheme_is_of_all_linear_layers_and_a_dropped_link_has_codes_of_zero(tmp_path: Path) -> None:
    short = shortened(
        load(saved(tmp_path, "llama-gqa", **WIDE)[1]), {"0.attn": "lose", "0.mlp": "lose", "2.attn": "lose"}
    )
    export_compressed(short, rounded(short, mixed("int4-sym")), tmp_path / "out")
    said = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert (said["config_groups"]["group_0"]["targets"], said["ignore"]) == (["Linear"], ["lm_head"])
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    assert not dequantised(tensors, "model.layers.1.self_attn.o_proj", 4).any()
    assert dequantised(tensors, "model.layers.1.mlp.up_proj", 4).any()
    assert "model.layers.2.input_layernorm.weight" not in tensors


@pytest.mark.parametrize(
    ("name", "form", "more", "said"),
    [
        ("llama-gqa", "int4", WIDE, "has minima, which compressed-tensors has no place for"),
        ("llama-gqa", "int8", {}, r"48 inputs, no whole groups of 32"),
        ("llama-gqa", "bf16", WIDE, "has no rounded matrix"),
        ("gpt2", "int8", {"n_embd": 64}, "gpt2 has no linear layers"),
    ],
)
def test_what_it_cannot_hold_is_refused(name: str, form: str, more: dict[str, Any], said: str, tmp_path: Path) -> None:
    twin, codes = packed(tmp_path, name, form, **more)
    with pytest.raises(InputError, match=said) as caught:
        export_compressed(twin, codes, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("embedding.tokens.weight", 70_001.0),
        ("embedding.tokens.weight", 131_072.0),  # exact in bfloat16
        ("norm.weight", 70_001.0),
        ("links.1_mlp.down.weight", 131_072.0),  # codes, whose scale float32 and float16 hold
    ],
)
def test_beyond_float16(name: str, value: float, tmp_path: Path) -> None:
    checkpoint = load(saved(tmp_path, "llama-gqa", **WIDE)[1])
    with torch.no_grad():
        checkpoint.model.get_parameter(name).fill_(value)
    codes = rounded(checkpoint, mixed("int8-row"))
    with pytest.raises(InputError, match=f"{re.escape(name)} has a weight that float16 cannot hold"):
        export_compressed(checkpoint, codes, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(importlib.util.find_spec("compressed_tensors") is None, reason="needs compressed-tensors")
@pytest.mark.parametrize(
    ("name", "kind"),
    [("llama-gqa", "language-modeling"), ("qwen2", "language-modeling"), ("bert", "token-classification")],
)
@pytest.mark.parametrize("form", ["int8", "int8-row", "int4-sym-g64", "int4-sym,1.mlp=bf16,0.*=int8"])
def test_transformers_computes_the_same(name: str, kind: str, form: str, tmp_path: Path) -> None:
    twin, codes = packed(tmp_path, name, form, kind, **WIDE)
    export_compressed(twin, codes, tmp_path / "out")
    stock = auto_class(name, kind).from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    data = batch(False)
    with torch.no_grad():
        for part in (twin.model.embedding.tokens, twin.model.head.output):  # what has no codes there is float16
            if part is not None:
                part.weight.copy_(part.weight.half().float())
        assert_same(twin.model(data), theirs(stock, data), data)
    assert transformers.AutoConfig.from_pretrained(tmp_path / "out").quantization_config
