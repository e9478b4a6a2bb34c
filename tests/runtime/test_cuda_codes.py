"""Codes on a GPU; where there is none, Triton's interpreter runs the same kernels on the CPU (see conftest.py)."""

import numpy as np
import pytest
import torch

from chinchilla_lm.pack.formats import FORMATS
from chinchilla_lm.pack.quantized import Quantized
from chinchilla_lm.runtime.engine.unpacking import unpack_with_codes
from chinchilla_lm.runtime.packing import write_packed
from chinchilla_lm.runtime.prepare import prepare
from chinchilla_lm.runtime.torch_backend import TorchBackend
from tests.models.tiny import VOCAB

pytest.importorskip("triton")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

from chinchilla_lm.runtime.cuda.linear import FEW, PackedLinear, PackedMatrix, pack_into  # noqa: E402

ROUNDED = [name for name, form in FORMATS.items() if form.rounding is not None]
MIXED = "codebook-2x64,*.second=sparse-50,head=codebook-4x256-row,1.mlp=sparse-75-codebook,0.attn=int3,2.attn=int4"


def rounded_matrix(name: str, outputs: int, inputs: int, seed: int) -> Quantized:
    rounding = FORMATS[name].rounding
    assert rounding is not None
    return rounding.round(np.random.default_rng(seed).standard_normal((outputs, inputs)).astype(np.float32))


def error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


@pytest.mark.parametrize("name", ROUNDED)
def test_products_and_values_of_each_format(name):
    """Outputs that are no multiple of 16 or a tile, inputs that are none of a group; some rows of x lie apart."""
    rounded = rounded_matrix(name, 50, 200, 1)
    matrix = PackedMatrix(rounded, torch.float32).to(DEVICE)
    values = torch.from_numpy(rounded.values()).to(DEVICE)
    assert torch.equal(matrix.values(), values)
    some = torch.tensor([49, 3, 3, 17, 32], device=DEVICE)
    assert torch.equal(matrix.rows(some), values[some])
    x = torch.randn(2 * FEW + 2, 200, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    for rows in (x[:1], x[:34:2], x[: FEW + 1]):
        found = matrix.product(rows)
        assert found.shape == (len(rows), 50)
        assert error(found, rows.double() @ values.double().T) < 1e-6
        assert torch.equal(found, matrix.product(rows))


def test_a_bias_and_the_rows_of_a_batch():
    rounded = rounded_matrix("int4", 40, 64, 2)
    bias = torch.arange(40.0)
    linear = PackedLinear(rounded, bias, torch.float32).to(DEVICE)
    x = torch.randn(2, 3, 64, device=DEVICE)
    wanted = x.double() @ torch.from_numpy(rounded.values()).double().T.to(DEVICE) + bias.to(DEVICE)
    assert linear(x).shape == (2, 3, 40)
    assert error(linear(x), wanted) < 1e-6


@pytest.mark.skipif(DEVICE.type == "cpu", reason="the interpreter has no bfloat16")
@pytest.mark.parametrize("name", ROUNDED)
def test_bfloat16_sums_in_float32(name):
    """576 inputs and 1,536, as SmolLM2 has them: what is left is the rounding of the result."""
    for outputs, inputs in ((960, 576), (576, 1536)):
        rounded = rounded_matrix(name, outputs, inputs, 3)
        matrix = PackedMatrix(rounded, torch.bfloat16).to(DEVICE)
        values = torch.from_numpy(rounded.values()).to(DEVICE)
        for rows in (1, 7, 33, FEW):
            x = torch.randn(rows, inputs, device=DEVICE, dtype=torch.bfloat16)
            assert error(matrix.product(x), x.double() @ values.double().T) < 3e-3


@pytest.mark.parametrize("formats", ["int8", MIXED])
@pytest.mark.parametrize("name", ["llama-gqa", "gemma3"])
def test_a_packed_model_with_its_codes_is_its_twin(model_folder, tmp_path, name, formats):
    """With a decoder of its own, and one that is the embedding; read at once, and token by token with a cache."""
    write_packed(str(model_folder(name)), formats, tmp_path / "packed")
    checkpoint, codes = unpack_with_codes(tmp_path / "packed")
    ids = np.random.default_rng(0).integers(7, VOCAB, 6).tolist()
    twin = TorchBackend.prepared(checkpoint.model, torch.device("cpu"), torch.float32).logits(ids)
    ready = prepare(checkpoint.model, torch.device("cpu"), torch.float32, fold=False)
    pack_into(ready, codes, torch.float32)
    floats = [name for name, one in ready.state_dict().items() if one.ndim == 2 and one.numel()]
    assert floats == ([] if checkpoint.model.config.head.tied else ["embedding.tokens.weight"])
    backend = TorchBackend(ready.to(DEVICE))
    np.testing.assert_allclose(backend.logits(ids), twin, rtol=0, atol=1e-4 * np.abs(twin).max())
    cache = backend.cache(6)
    for place in range(6):
        last = backend.read([ids[place : place + 1]], [cache])[0]
    np.testing.assert_allclose(last, twin[-1], rtol=0, atol=1e-4 * np.abs(twin).max())


def test_an_encoder_keeps_what_is_not_rounded(model_folder, tmp_path):
    write_packed(str(model_folder("bert", "token-classification")), "int4", tmp_path / "packed")
    checkpoint, codes = unpack_with_codes(tmp_path / "packed")
    ready = prepare(checkpoint.model, torch.device("cpu"), torch.float32)
    before = ready.state_dict()
    pack_into(ready, codes, torch.float32)
    left = ready.state_dict()
    assert left.keys() == before.keys() - codes.keys() - {name.replace(".weight", ".bias") for name in codes}
    assert "embedding.tokens.weight" in left
