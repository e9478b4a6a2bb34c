"""A rounded matrix that is trained: values and gradients are those of the plain expression, codes never move."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from chinchilla_lm.pack.formats import FORMATS
from chinchilla_lm.pack.quantized import Quantized, inputs_of
from chinchilla_lm.train import rounded as module
from chinchilla_lm.train.rounded import RoundedMatrix

FORMS = [
    "int8",
    "int8-row",
    "int4",
    "int4-sym-g64",
    "int3",
    "codebook-1x16",
    "codebook-2x64",
    "codebook-4x256",
    "codebook-4x256-row",
    "sparse-50",
    "sparse-75-codebook",
]


def rounded(form: str, outputs: int = 40, inputs: int = 150) -> Quantized:
    matrix = np.random.default_rng(0).standard_normal((outputs, inputs)).astype(np.float32) * 0.1 + 0.02
    how = FORMATS[form].rounding
    assert how is not None
    return how.round(matrix)


def moved(matrix: RoundedMatrix) -> RoundedMatrix:
    """In float64, some steps away from its start."""
    matrix.double()
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in matrix.parameters():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=random, dtype=torch.float64))
    return matrix


def plainly(matrix: RoundedMatrix) -> Tensor:
    """The weights by indexing, one after another, from the canonical matrix and the steps."""
    about = matrix.rounded
    inputs = about.shape[1]
    scales = torch.from_numpy(about.scales_NG).double() * (1 + matrix.scales)
    group = torch.arange(inputs) // (about.group or inputs)
    if about.codebook_ED is None:
        levels = torch.from_numpy(about.codes_NV).double() - about.middle
    else:
        book = torch.from_numpy(about.codebook_ED).double()
        if matrix.codebook is not None:
            spread = book.float().square().mean().sqrt().double()  # the unit is of the start, which is float32
            steps = matrix.codebook.clone()
            if about.mask_NK is not None:
                steps = torch.cat((torch.zeros_like(steps[:1]), steps[1:]))
            book = book + spread * steps
        where = torch.from_numpy(inputs_of(inputs, book.shape[1]))
        columns = [tuple(int(i) for i in (where == k).nonzero()[0]) for k in range(inputs)]
        codes = torch.from_numpy(about.codes_NV).long()
        levels = torch.stack([book[codes[:, code], place] for code, place in columns], dim=1)
    if about.mask_NK is not None:
        levels = levels * torch.from_numpy(about.mask_NK)
    values = levels * scales[:, group]
    if about.minima_NG is not None and matrix.minima is not None:
        first = torch.from_numpy(about.scales_NG).double().abs() * matrix.minima
        values = values + (torch.from_numpy(about.minima_NG).double() + first)[:, group]
    return values


@pytest.mark.parametrize("pieces", [1 << 20, 7 * 150])
@pytest.mark.parametrize("form", FORMS)
def test_values_and_gradients_are_those_of_the_plain_expression(form: str, pieces: int, monkeypatch):
    monkeypatch.setattr(module, "PIECE", pieces)
    matrix = moved(RoundedMatrix(rounded(form), learned=form != "int3"))
    assert (matrix.codebook is None) == (not form.startswith(("codebook", "sparse-75")))
    assert (matrix.minima is None) == (form != "int4")
    ours, theirs = matrix(), plainly(matrix)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    some = torch.tensor([31, 0, 7])
    assert torch.equal(matrix(rows=some), ours[some])
    upstream = torch.randn(ours.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    found, wanted = (torch.autograd.grad((one * upstream).sum(), list(matrix.parameters())) for one in (ours, theirs))
    for one, other in zip(found, wanted, strict=True):
        assert other.abs().max() > 0.1
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("form", FORMS)
def test_no_step_taken_is_the_matrix_that_was_given(form: str):
    begun = rounded(form)
    matrix = RoundedMatrix(begun)
    assert matrix.quantized() is begun
    assert np.array_equal(matrix().detach().numpy(), begun.values())


@pytest.mark.parametrize("form", FORMS)
def test_what_is_judged_is_what_is_packed(form: str):
    """Stored scales and entries as bytes; codes and mask are the given ones, and the bytes read back as they were."""
    begun = rounded(form)
    matrix = moved(RoundedMatrix(begun)).float().eval()
    found = matrix.quantized()
    assert np.array_equal(matrix().numpy(), found.values())
    assert found.codes_NV is begun.codes_NV
    assert found.mask_NK is begun.mask_NK
    assert found.scales_NG.dtype == begun.scales_NG.dtype
    assert not np.array_equal(found.values(), begun.values())
    if found.codebook_ED is not None:
        assert found.codebook_ED.dtype == np.int8
        assert abs(found.codebook_ED.astype(int)).max() == 127
        if found.mask_NK is not None:
            assert found.codebook_ED[0, 0] == 0
    form_ = FORMATS[form]
    room = np.empty(form_.bytes(*found.shape), np.uint8)
    form_.pack_into(found, room)
    assert np.array_equal(form_.unpack(room, *found.shape), found.values())
    wished = RoundedMatrix.forward(matrix.train()).detach().numpy()
    error = np.square(found.values() - wished).sum() / np.square(wished).sum()
    assert error < (3e-4 if found.codebook_ED is not None else 1e-6)
