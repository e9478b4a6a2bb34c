"""Codebooks and masks for the inputs of a matrix: less error than rounding, the exact update, steps that never harm."""

import itertools

import numpy as np
import pytest
import torch

from chinchilla_lm.errors import InputError
from chinchilla_lm.pack import gptvq
from chinchilla_lm.pack.alps import alps
from chinchilla_lm.pack.codebook import Codebook, normal_codebook
from chinchilla_lm.pack.formats import FORMATS
from chinchilla_lm.pack.gptq import gptq
from chinchilla_lm.pack.gptvq import solve_codes
from chinchilla_lm.pack.hessian import conditioned, error_of
from chinchilla_lm.pack.solve import solved
from chinchilla_lm.pack.sparse import Sparse
from chinchilla_lm.pack.uniform import Uniform
from tests.pack.test_gptq import inputs, matrix, product_error

CODES = {name: form.rounding for name, form in FORMATS.items() if isinstance(form.rounding, Codebook | Sparse)}


@pytest.mark.parametrize("name", CODES)
def test_the_error_of_products_is_a_fraction_of_rounding(name):
    """On inputs that were not calibrated on, drawn from the same directions; and all of it is laid out."""
    how, form = CODES[name], FORMATS[name]
    seen, weight = inputs(3000, 192), matrix(48, 192)
    calibration, held_out = seen[:2000], seen[2000:]
    solved = solve_codes(weight, calibration.T @ calibration, how)
    test = held_out.T @ held_out
    assert product_error(weight, solved, test) < 0.6 * product_error(weight, how.round(weight.numpy()), test)
    assert (form.unpack(form.pack(solved), 48, 192) == solved.values()).all()


@pytest.mark.parametrize("name", CODES)
def test_odd_shapes_and_inputs_that_are_never_seen(name):
    how, form = CODES[name], FORMATS[name]
    x, weight = inputs(20, 101), matrix(19, 101)
    x[:, 3], x[:, 5], weight[2] = 0, x[:, 6], 0
    solved = solve_codes(weight, x.T @ x, how)
    assert solved.shape == (19, 101)
    assert product_error(weight, solved, x.T @ x) < product_error(weight, how.round(weight.numpy()), x.T @ x)
    assert np.abs(solved.values()[2]).max() == 0
    assert (form.unpack(form.pack(solved), 19, 101) == solved.values()).all()
    nothing = solve_codes(weight, torch.zeros(101, 101), how)
    assert product_error(weight, nothing, torch.eye(101)) < 0.4


def rows_of(how: Codebook | Sparse, weight: torch.Tensor, x: torch.Tensor):
    """What the solver begins with."""
    hessian = conditioned(x.T @ x)
    seen = gptvq._seen(hessian, how)
    book = torch.from_numpy(how.begun()).float()
    mask = torch.from_numpy(alps(weight, hessian, how)) if isinstance(how, Sparse) else None
    return gptvq._start(weight, mask, seen, book), seen, book


@pytest.mark.parametrize("dims", [1, 2, 4])
def test_what_a_vector_does_wrong_is_taken_from_the_rest(dims):
    """Beside the plain definition in float64: each code has the least error once all that is to come made up for it."""
    how, size = Codebook(dims, 16, 0), 32
    weight, x = matrix(5, size), inputs(400, size)
    rows, seen, book = rows_of(how, weight, x)
    found = gptvq._round_in_order(rows, seen, book).codes
    hessian = conditioned(x.T @ x)
    for row in range(len(weight)):
        now, scale = weight[row].double(), float(rows.scales[row, 0])
        left = [int(v) for v in seen.order]
        for vector in list(left):
            left.remove(vector)
            own = seen.places[vector]
            rest = seen.places[left].reshape(-1)
            makes_up = torch.linalg.solve(hessian[rest][:, rest], hessian[rest][:, own])
            kept = hessian[own][:, own] - hessian[own][:, rest] @ makes_up
            lost = now[own] - book.double() * scale
            errors = ((lost @ kept) * lost).sum(1)
            chosen = int(found[row, vector])
            assert errors[chosen] <= errors.min() * (1 + 1e-4), (row, vector)
            now[rest] += makes_up @ lost[chosen]


def test_single_weights_with_even_entries_are_gptq():
    how, weight, x = Codebook(1, 8, 64, even=True), matrix(20, 128), inputs(500, 128)
    solved, plain = solve_codes(weight, x.T @ x, how), gptq(weight, x.T @ x, Uniform(3, 64))
    assert (solved.values() == plain.values()).all()


@pytest.mark.parametrize("name", ["codebook-1x16", "codebook-2x64", "codebook-4x256", "sparse-50-codebook"])
def test_no_step_raises_the_error(name):
    how, weight, x = CODES[name], matrix(64, 128), inputs(500, 128)
    rows, seen, book = rows_of(how, weight, x)
    fixed = int(isinstance(how, Sparse))

    def error(rows, book):
        return float(error_of(gptvq._lost(rows, seen, book), seen.hessian).sum())

    rows = gptvq._round_in_order(rows, seen, book)
    errors = [error(rows, book)]
    for _ in range(2):
        book = gptvq._with_gradients(rows, seen, book, fixed)
        errors.append(error(rows, book))
        rows = gptvq._with_scales(rows, seen, book)
        errors.append(error(rows, book))
        rows = gptvq._descended(rows, seen, book)
        errors.append(error(rows, book))
    assert all(after < before for before, after in itertools.pairwise(errors)), errors
    if fixed:
        assert float(book[0]) == 0.0


@pytest.mark.parametrize("name", ["sparse-50", "sparse-75-codebook", "sparse-2of4"])
def test_a_mask_keeps_what_products_need(name):
    """Less is lost than by the largest weights, both refitted on what they keep; and no block keeps too much."""
    how = CODES[name]
    assert isinstance(how, Sparse)
    weight, x = matrix(32, 128), inputs(600, 128)
    hessian = conditioned(x.T @ x)
    masks = [alps(weight, hessian, how), how.mask(weight.abs().numpy())]
    lost = []
    for mask in masks:
        blocks = mask.reshape(2, 16, 32, 4).transpose(0, 2, 1, 3)
        assert (blocks.sum((2, 3)) == how.kept).all()
        if how.of_four:
            assert (blocks.sum(3) == how.of_four).all()
        total = 0.0
        for row, kept in zip(weight.double(), torch.from_numpy(mask), strict=True):
            best = torch.linalg.solve(hessian[kept][:, kept], hessian[kept] @ row)
            full = row.clone()
            full[kept], full[~kept] = row[kept] - best, row[~kept]
            total += float(full @ hessian @ full)
        lost.append(total)
    assert lost[0] < 0.8 * lost[1]


def test_a_codebook_is_learned_from_some_outputs_where_there_are_many(monkeypatch):
    monkeypatch.setattr(gptvq, "LEARNED", 40)
    monkeypatch.setattr(gptvq, "OUTPUTS", 30)
    how, weight, x = CODES["codebook-2x16"], matrix(100, 64), inputs(500, 64)
    solved = solve_codes(weight, x.T @ x, how)
    assert product_error(weight, solved, x.T @ x) < 0.7 * product_error(weight, how.round(weight.numpy()), x.T @ x)


def test_the_codebook_without_data_is_for_normal_numbers():
    """Single weights: Lloyd and Max's levels for 16 (Max 1960), of which the mean squared error is 0.0095."""
    drawn = np.random.default_rng(5).standard_normal((200, 640)).astype(np.float32)
    for dims, entries, most in [(1, 16, 0.0105), (2, 256, 0.0095), (2, 16, 0.118), (4, 256, 0.105)]:
        lost = Codebook(dims, entries, 64).round(drawn).values() - drawn
        assert np.square(lost).mean() < most * np.square(drawn).mean()
        book = normal_codebook(dims, entries)
        assert book.shape == (entries, dims)
        assert np.abs(book.astype(int)).max() == 127


@pytest.mark.parametrize("name", ["int4", "codebook-2x16", "sparse-50", "sparse-50-codebook"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(name, value):
    weight, x, how = matrix(16, 64), inputs(200, 64), FORMATS[name].rounding
    assert how is not None
    weight[3, 5] = value
    with pytest.raises(InputError, match="a weight that is NaN or infinite"):
        solved(weight, x.T @ x, how)


def test_a_matrix_of_products_that_rounding_left_without_a_factor():
    """Two inputs that are nearly one: their part of H, in float32, has none."""
    x = inputs(500, 64)
    hessian = x.T @ x
    hessian[0, 4] = hessian[4, 0] = 1.01 * float((hessian[0, 0] * hessian[4, 4]).sqrt())
    assert np.isfinite(solve_codes(matrix(16, 64), hessian, CODES["codebook-2x16"]).values()).all()


def test_outputs_are_solved_in_parts(monkeypatch):
    """So that memory does not grow with the matrix; the mask is chosen within parts too."""
    monkeypatch.setattr(gptvq, "OUTPUTS", 16)
    monkeypatch.setattr("chinchilla_lm.pack.alps.OUTPUTS", 16)
    weight, x = matrix(50, 64), inputs(500, 64)
    for name in ("sparse-50", "sparse-50-codebook"):
        parted = solve_codes(weight, x.T @ x, CODES[name])
        assert product_error(weight, parted, x.T @ x) < 0.6 * product_error(
            weight, CODES[name].round(weight.numpy()), x.T @ x
        )


def test_activations_that_are_no_numbers_are_refused():
    with pytest.raises(InputError, match="activations that are NaN or infinite"):
        solve_codes(matrix(4, 64), torch.full((64, 64), float("nan")), CODES["codebook-2x16"])
