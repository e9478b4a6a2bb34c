"""A decoder's copy in fewer bits, by which greedy choice finds the words that can be the largest: native/screen.cpp has
the bound, and the proof.

The bound is Cauchy's and Schwarz's, some 20 times the error that the copy really makes of a state of 576 features. It
leaves few words all the same, as states and copy are made to fit each other:

- What all rows have in common is taken out, for it moves all logits alike: of SmolLM2-135M half of the weights' energy.
- The copy stands by the principal axes of the model's states. Of SmolLM2-135M's energy 45 % lie on the first axis,
  92 % on the first 64 of 576: these have 8 bits, the others 4.
- A residual is measured in the metric in which its bound is least for such states.

V words, K inputs, J axes (as many), T tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from chinchilla_lm.errors import InputError
from chinchilla_lm.pack.bf16 import from_halves, to_halves
from chinchilla_lm.pack.formats import FORMATS, Format
from chinchilla_lm.pack.panels import LANES, Bytes, Floats, rows_of
from chinchilla_lm.pack.quantized import Quantized
from chinchilla_lm.pack.uniform import Uniform

Doubles = NDArray[np.float64]
# Some rows [V', K] of the matrix as its kernels multiply them, exact; they begin with a panel.
Rows = Callable[[slice], Doubles]

LEAD = 64  # axes in the first matrix: a group of its format
LEAD_FORMAT, REST_FORMAT, AXES_FORMAT = FORMATS["int8"], FORMATS["int4-sym-g64"], FORMATS["bf16"]
SHRINKS = (1.0, 0.93, 0.86, 0.8)  # scales of 4 bits that are tried: what is largest is clipped, the others gain
PIECE = 1 << 21  # weights that are worked on at a time: 17 MB as doubles
SAMPLE = 4096  # rows that the metric is made for, about; it holds for all
SAFE = 1.0 + 1e-6  # far more than double precision rounds


@dataclass(frozen=True, slots=True)
class Screen:
    """axes_JK: float32 [J, K], numbers of bfloat16; lead_inputs: axes of the first matrix; lead, rest: packed, the
    latter None where all axes lead; the others as native/program.h has them, rounded up where they are bounds."""

    axes_JK: Floats
    lead_inputs: int
    lead: Bytes
    rest: Bytes | None
    center_K: Floats
    metric_J: Floats
    sizes_V: Floats
    residual: float
    length: float
    stray: float
    stretch: float
    largest: float
    bias: float


def screen(rows: Rows, outputs: int, moments_KK: Doubles, bias_V: Floats | None = None) -> Screen:
    """The copy of a matrix of `outputs` rows for inputs x of which moments_KK is Σ x xᵀ, and its bounds.

    Raises InputError for moments that are not finite numbers.
    """
    if not np.isfinite(moments_KK).all():
        raise InputError(
            "the model's states are not numbers (NaN or infinite): a weight is damaged; pack without a screen"
        )
    inputs = len(moments_KK)
    axes = _Axes.of(moments_KK)
    pieces = [slice(first, min(first + _step(inputs), outputs)) for first in range(0, outputs, _step(inputs))]
    center_K = np.asarray(sum(rows(some).sum(0) for some in pieces) / outputs, np.float32)
    lead = min(LEAD, inputs)
    lead_room = np.zeros(LEAD_FORMAT.bytes(outputs, lead), np.uint8)
    rest_room = np.zeros(REST_FORMAT.bytes(outputs, inputs - lead), np.uint8)
    copy = _Copy(axes, center_K.astype(np.float64), lead, outputs, lead_room, rest_room)
    spaced = range(0, outputs, LANES * max(1, outputs // SAMPLE))
    sample = np.concatenate([rows(slice(first, min(first + LANES, outputs))) for first in spaced])
    metric_J = _metric(copy.residuals(sample)[1], np.sqrt(np.maximum(axes.energies_J, 0.0)))
    found = [copy.measured(rows(some), some, metric_J.astype(np.float64)) for some in pieces]
    residuals_V, lengths_V, strays_V, norms_V = (np.concatenate(one) for one in zip(*found, strict=True))
    residual = float(np.median(residuals_V)) or 1.0
    usual = lengths_V / np.maximum(residuals_V, 1e-6 * residual)
    length = residual * (float(np.quantile(usual, 0.75)) or 1.0)
    residual, length = _up(residual), _up(length)
    return Screen(
        axes_JK=axes.rows_JK.astype(np.float32),
        lead_inputs=lead,
        lead=lead_room,
        rest=rest_room if lead < inputs else None,
        center_K=center_K,
        metric_J=metric_J,
        sizes_V=_up_all(np.maximum(residuals_V / residual, lengths_V / length)),
        residual=residual,
        length=length,
        stray=_up(float(strays_V.max())),
        stretch=_up(float(np.linalg.norm(axes.rows_JK, 2))),
        largest=_up(float(norms_V.max())),
        bias=0.0 if bias_V is None else _up(float(np.abs(bias_V).max())),
    )


@dataclass(frozen=True, slots=True)
class _Axes:
    """rows_JK: what the program holds; inverse_KJ: of it; energies_J: of the states along each."""

    rows_JK: Doubles
    inverse_KJ: Doubles
    energies_J: Doubles

    @staticmethod
    def of(moments_KK: Doubles) -> _Axes:
        """The principal axes, the longest first, rounded to bfloat16."""
        peak = float(np.abs(moments_KK).max()) or 1.0
        _, vectors = np.linalg.eigh(moments_KK / peak)
        rows = from_halves(to_halves(vectors.T[::-1].astype(np.float32))).astype(np.float64)
        energies = np.einsum("jk,kl,jl->j", rows, moments_KK / peak, rows, optimize=True)
        return _Axes(rows, np.asarray(np.linalg.inv(rows), np.float64), energies)


@dataclass(frozen=True, slots=True)
class _Copy:
    """Makes the copy's rows by the axes, a piece at a time, into the rooms of its two matrices."""

    axes: _Axes
    center_K: Doubles
    lead: int
    outputs: int
    lead_room: Bytes
    rest_room: Bytes

    def residuals(self, rows_VK: Doubles) -> tuple[list[Quantized], Doubles, Doubles, Doubles]:
        """The copy of some rows; by the axes, what it lacks [V, J]; of that, what no axis holds [V, K]; and the copy's
        numbers [V, J]."""
        centred = rows_VK - self.center_K
        by_axes = (centred @ self.axes.inverse_KJ).astype(np.float32)
        made = [_rounded(LEAD_FORMAT, by_axes[:, : self.lead])]
        if self.lead < by_axes.shape[1]:
            made.append(_rounded(REST_FORMAT, by_axes[:, self.lead :]))
        copy_VJ = np.concatenate([exact(one) for one in made], axis=1)
        lacking = centred - copy_VJ @ self.axes.rows_JK
        by_axes_lacking = lacking @ self.axes.rows_JK.T
        return made, by_axes_lacking, lacking - by_axes_lacking @ self.axes.rows_JK, copy_VJ

    def measured(self, rows_VK: Doubles, some: slice, metric_J: Doubles) -> tuple[Doubles, Doubles, Doubles, Doubles]:
        """Lay out the copy of rows `some`; bounds for each [V] on the residual in the metric, on the copy's length, on
        what no axis holds, and on the row's own length."""
        made, lacking_VJ, stray_VK, copy_VJ = self.residuals(rows_VK)
        panels = slice(some.start // LANES, -(-some.stop // LANES))
        for one, form, room in zip(made, (LEAD_FORMAT, REST_FORMAT), (self.lead_room, self.rest_room), strict=False):
            rows_of(room, self.outputs)[panels] = rows_of(form.lay(one), len(rows_VK))
        norms = np.linalg.norm(rows_VK, axis=1)
        rounding = 1e-12 * (norms + np.linalg.norm(self.center_K))  # of the double precision in which this is computed
        least = metric_J.min()
        return (
            np.linalg.norm(lacking_VJ / metric_J, axis=1) * SAFE + rounding / least,
            np.linalg.norm(copy_VJ, axis=1) * SAFE,
            np.linalg.norm(stray_VK, axis=1) * SAFE + rounding,
            norms * SAFE,
        )


def exact(rounded: Quantized) -> Doubles:
    """What codes without minima mean, in double precision: float32 would round a scale of 24 bits."""
    inputs = rounded.shape[1]
    scales = np.repeat(rounded.scales_NG.astype(np.float64), rounded.group or inputs, axis=1)[:, :inputs]
    return (rounded.codes_NV.astype(np.float64) - rounded.middle) * scales


def _rounded(form: Format, values_VJ: Floats) -> Quantized:
    """The nearest in squares of a group, of some scales that are tried."""
    how = form.rounding
    assert isinstance(how, Uniform)
    best = how.round(values_VJ)
    if how.bits == 8:
        return best
    outputs, inputs = values_VJ.shape
    groups_VGJ = np.pad(values_VJ, ((0, 0), (0, -inputs % how.group))).reshape(outputs, -1, how.group)
    tried = [(best.scales_NG * np.float16(shrink)).astype(np.float16) for shrink in SHRINKS]
    codes = [how.codes(groups_VGJ, scales) for scales in tried]
    meant = [
        (some.astype(np.float32) - how.middle) * scales[..., None] for some, scales in zip(codes, tried, strict=True)
    ]
    chosen = np.argmin([((one - groups_VGJ) ** 2).sum(2) for one in meant], axis=0)
    codes_VGJ = np.choose(chosen[..., None], codes)
    return Quantized(codes_VGJ.reshape(outputs, -1)[:, :inputs], np.choose(chosen, tried), None, how.group, how.middle)


def _metric(lacking_VJ: Doubles, states_J: Doubles) -> Floats:
    """The weights of the axes, above 0: √(residual / state), by which ‖u / m‖ ‖m x‖ comes nearest to Σ |u| |x|."""
    lacking_J = np.sqrt((lacking_VJ**2).mean(0))
    lacking_J = np.maximum(lacking_J, 1e-3 * lacking_J.max() + 1e-30)
    states_J = np.maximum(states_J, 1e-3 * states_J.max() + 1e-30)
    weights = np.sqrt(lacking_J / states_J)
    return np.asarray(np.maximum(weights / weights.max(), 1e-6), np.float32)


def _step(inputs: int) -> int:
    """Rows of a piece, whole panels."""
    return max(1, PIECE // (LANES * inputs)) * LANES


def _up(value: float) -> float:
    """A bound as float32, not below it."""
    return float(np.nextafter(np.float32(value * SAFE), np.float32(np.inf)))


def _up_all(values: Doubles) -> Floats:
    return np.nextafter((values * SAFE).astype(np.float32), np.float32(np.inf))
