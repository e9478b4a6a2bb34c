"""GPTQ: less error than rounding each weight by itself, on inputs that go together; and inputs of every bad kind."""

import itertools

import numpy as np
import pytest
import torch

from chinchilla_lm.errors import InputError
from chinchilla_lm.pack.formats import FORMATS
from chinchilla_lm.pack.gptq import gptq
from chinchilla_lm.pack.quantized import Quantized
from chinchilla_lm.pack.uniform import Uniform


def inputs(tokens: int, size: int, seed: int = 0) -> torch.Tensor:
    """Activations as a transformer has them: few directions carry most, and some features are large."""
    random = torch.Generator().manual_seed(seed)
    basis = torch.randn(size, size, generator=random)
    strength = torch.logspace(0.5, -1.5, size)[:, None]
    x = torch.randn(tokens, size, generator=random) @ (strength * basis)
    x[:, ::17] *= 5
    return x


def matrix(outputs: int, size: int, seed: int = 1) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(outputs, size, generator=random) * (0.1 + torch.rand(outputs, 1, generator=random))


def product_error(weight_NK: torch.Tensor, rounded: Quantized, hessian_KK: torch.Tensor) -> float:
    """Squared error of the products over their squared size: tr(D H Dᵀ) / tr(W H Wᵀ), D = W − Ŵ."""
    lost = weight_NK - torch.from_numpy(rounded.values())
    return float(((lost @ hessian_KK) * lost).sum() / ((weight_NK @ hessian_KK) * weight_NK).sum().clamp_min(1e-30))


@pytest.mark.parametrize(
    ("name", "most"),
    [
        ("int8", 0.6),
        ("int8-row", 0.5),
        ("int4", 0.5),
        ("int4-sym", 0.5),
        ("int4-g64", 0.5),
        ("int4-sym-g128", 0.4),
    ],
)
def test_the_error_of_products_is_a_fraction_of_rounding(name, most):
    """On inputs that were not calibrated on, drawn from the same directions."""
    how = FORMATS[name].rounding
    assert isinstance(how, Uniform)
    seen, weight = inputs(3000, 192), matrix(48, 192)
    calibration, held_out = seen[:2000], seen[2000:]
    solved = gptq(weight, calibration.T @ calibration, how)
    test = held_out.T @ held_out
    rounded = product_error(weight, how.round(weight.numpy()), test)
    assert product_error(weight, solved, test) < most * rounded
    assert solved.codes_NV.min() >= how.least
    assert solved.codes_NV.max() <= how.most
    assert solved.scales_NG.dtype == (np.float16 if how.group else np.float32)


def test_hardly_any_codes_of_a_tiny_matrix_are_better():
    """Of all 16⁴ codes of each output, with the scales that were chosen."""
    how = Uniform(4, 0)
    x, weight = inputs(200, 4), matrix(6, 4)
    hessian = x.T @ x
    solved = gptq(weight, hessian, how)
    every = torch.tensor(list(itertools.product(range(16), repeat=4)), dtype=torch.float32)
    for row in range(len(weight)):
        lost = weight[row] - (every - how.middle) * float(solved.scales_NG[row, 0])
        errors = ((lost @ hessian) * lost).sum(1)
        ours = weight[row] - torch.from_numpy(solved.values()[row])
        better = int((errors < 0.999 * float(ours @ hessian @ ours)).sum())
        assert better <= len(every) // 500, f"{better} of {len(every)}"


@pytest.mark.parametrize("name", [name for name, form in FORMATS.items() if isinstance(form.rounding, Uniform)])
def test_no_output_is_worse_than_rounded(name):
    """Few inputs, a feature that is always zero, one that is another's copy, and a row of zeros."""
    how = FORMATS[name].rounding
    assert isinstance(how, Uniform)
    x, weight = inputs(20, 100), matrix(17, 100)
    x[:, 3], x[:, 5], weight[2] = 0, x[:, 6], 0
    hessian = x.T @ x
    solved, rounded = gptq(weight, hessian, how), how.round(weight.numpy())
    for row in range(17):
        ours, plain = (
            product_error(weight[row : row + 1], one.part(slice(row, row + 1)), hessian) for one in (solved, rounded)
        )
        assert ours <= plain * 1.001 + 1e-9
    assert (solved.values()[2] == 0).all()


def test_inputs_that_were_never_seen_are_rounded():
    """All activations zero: every weight counts alike."""
    how = Uniform(4, 32)
    weight = matrix(8, 64)
    solved, rounded = gptq(weight, torch.zeros(64, 64), how), how.round(weight.numpy())
    lost = [np.square(weight.numpy() - one.values()).sum() for one in (solved, rounded)]
    assert lost[0] <= lost[1]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_activations_that_are_no_numbers_are_refused(value):
    hessian = torch.eye(64)
    hessian[3, 3] = value
    with pytest.raises(InputError, match="activations that are NaN or infinite"):
        gptq(matrix(4, 64), hessian, Uniform(4, 32))
