"""The quality cost of rounding matrices: one alone, or all of a model, each in a format of its own.

Near the original, the loss is quadratic in what rounding changes, and what different matrices change is nearly
uncorrelated (the linearity theorem of HIGGS, Malinovskii et al. 2025, arXiv 2411.17525):

    KL of all ≈ Σ over matrices  a · e(format),    e = tr(Δ H Δᵀ) / tr(W H Wᵀ),    H = XᵀX of the matrix's inputs X

The relative error e of a format is arithmetic on one matrix. The coefficient a takes passes: the matrix alone is stored
in one format, and the KL that this comes to is measured; over the format's own e it gives a. So a matrix costs one
measurement, however many formats are offered. Without calibration text H is the identity and every a is 1.

What is in front of a matrix does not depend on it: streams are walked once, and a measurement starts at the link.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor, nn

from chinchilla_lm.data.batches import EncodedBatch
from chinchilla_lm.errors import InputError
from chinchilla_lm.models.batch import Batch
from chinchilla_lm.models.layers import Link
from chinchilla_lm.models.transformer import Transformer, key
from chinchilla_lm.pack.formats import FORMATS, Format
from chinchilla_lm.pack.mixed import Mixed
from chinchilla_lm.pack.solve import products
from chinchilla_lm.score.ledger import Cost, Ledger
from chinchilla_lm.score.measure import MAX_POSITIONS, Measure

# What a matrix is stored in while its coefficient is measured: far enough from the original to stand out of the noise
# of sums in float32, near enough for the theorem. Passes in bfloat16 will not do: of a late matrix of SmolLM2 in int8
# they gave a KL of 3e-3 or −5e-4, where it is 7e-6.
REFERENCE = FORMATS["int4-sym-g128"]
# Numbers of outputs that are held to compare with: 1,365 positions of SmolLM2's vocabulary, every one of a tagger.
HELD = 1 << 26
# Outputs whose errors are multiplied at a time.
ROWS = 4096
PLACES = ("first", "second")


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """What formats do to one matrix. errors: relative, by the format's name; reference: the one that it was stored in;
    cost: the KL that this came to, 1 an error without text. No reference: every format keeps the matrix as it is."""

    errors: Mapping[str, float]
    reference: str | None = None
    cost: float = 0.0

    def predicted(self, form: str) -> float:
        """Nats a position that this format costs at this matrix."""
        if self.reference is None:
            return 0.0
        return self.cost * (self.errors[form] / self.errors[self.reference])


def stored(weight: Tensor, form: Format) -> Tensor:
    """What a matrix becomes in a format, float32 [N, K]."""
    return torch.from_numpy(form.meant(weight.detach().float().numpy()))


def relative_error(weight: Tensor, changed: Tensor, hessian: Tensor | None = None) -> float:
    """tr(Δ H Δᵀ) / tr(W H Wᵀ) of matrices [N, K], with H [K, K] or the identity. Raises InputError where it is none."""
    error, whole = _energy(weight, changed, hessian), _energy(weight, None, hessian)
    if not (math.isfinite(error) and math.isfinite(whole)):
        raise InputError(
            "weights or activations on the calibration text are NaN or infinite; restore the checkpoint, or pass other "
            "text"
        )
    return max(0.0, error) / whole if whole > 0 else 0.0


def _energy(weight_NK: Tensor, changed_NK: Tensor | None, hessian_KK: Tensor | None) -> float:
    total = 0.0
    for first in range(0, len(weight_NK), ROWS):
        rows = weight_NK[first : first + ROWS]
        if changed_NK is not None:
            rows = rows - changed_NK[first : first + ROWS]
        seen = rows if hessian_KK is None else rows @ hessian_KK
        total += float((seen * rows).sum(dtype=torch.float64))
    return total


@contextmanager
def _replaced(linear: nn.Linear, values: Tensor) -> Iterator[None]:
    """A matrix, wherever it is used, with other weights meanwhile."""
    before = linear.weight.data
    linear.weight.data = values.to(before.dtype)
    try:
        yield
    finally:
        linear.weight.data = before


def errors_alone(
    model: Transformer, formats: Sequence[Format], ledger: Ledger, on_matrix: Callable[[str], None]
) -> dict[str, Sensitivity]:
    """What formats do to each matrix where there is no text: the relative squared errors, whose coefficients are 1."""
    found = {}
    for name, linear in model.matrices().items():
        errors = _errors(name, linear, formats, ledger, lambda: None)
        coarsest = max(errors, key=errors.__getitem__)
        found[name] = Sensitivity(errors, coarsest if errors[coarsest] > 0 else None, errors[coarsest])
        on_matrix(name)
    return found


def _errors(
    name: str, linear: nn.Linear, formats: Sequence[Format], ledger: Ledger, hessian: Callable[[], Tensor | None]
) -> dict[str, float]:
    """The relative error of each format; what the ledger has is not computed again."""
    places = {form.name: {name: f"error of {form.name}"} for form in formats}
    known = {form: ledger.get(place) for form, place in places.items()}
    weight, products_KK = linear.weight.detach(), None
    if None in known.values():
        products_KK = hessian()
    errors = {}
    for form in formats:
        cost = known[form.name]
        if cost is None:
            error = relative_error(weight, stored(weight, form), products_KK)
            ledger.put(places[form.name], cost := Cost(error, error, error))
        errors[form.name] = cost.value
    return errors


class Rounding:
    """The cost of rounding matrices of `model`: KL from the model as it is, over calibration batches with targets.

    What the ledger holds is not measured again; it must be of these batches. The model is in float32, and as it was
    after every call.
    """

    def __init__(self, model: Transformer, batches: Sequence[EncodedBatch], ledger: Ledger) -> None:
        self.model, self.batches, self.ledger = model.eval(), batches, ledger
        self.matrices = model.matrices()

    @cached_property
    def _measure(self) -> Measure:
        output = self.model.head.output
        positions = HELD // (1 if output is None else output.out_features)
        return Measure(self.model, self.batches, max_positions=max(MAX_POSITIONS, positions))

    def alone(
        self, formats: Sequence[Format], on_matrix: Callable[[str], None] = lambda name: None
    ) -> dict[str, Sensitivity]:
        """What each format does to each matrix when all others stay as they are."""
        formats = list(dict.fromkeys([*formats, REFERENCE]))
        streams = self._measure.start()
        found: dict[str, Sensitivity] = {}
        for position, name in enumerate(self.model.names):
            for place in PLACES if self._link(name) else ():
                matrix = f"{name}.{place}"
                passes = [partial(self._pass, position, *one) for one in self._pairs(streams)]
                found[matrix] = self._sensitivity(matrix, formats, passes, streams, position)
                on_matrix(matrix)
            streams = self._measure.advance(streams, position, position + 1)
        if "head" in self.matrices:
            passes = [partial(self._decode, *one) for one in self._pairs(streams)]
            start = None if self.model.config.head.tied else len(self.model.names)
            found["head"] = self._sensitivity("head", formats, passes, streams, start)
            on_matrix("head")
        return found

    def _sensitivity(
        self,
        matrix: str,
        formats: Sequence[Format],
        passes: Sequence[Callable[[], object]],
        streams: list[Tensor],
        start: int | None,
    ) -> Sensitivity:
        """passes: through the matrix, one a batch; streams: in front of chain position `start`. None: the matrix is the
        embedding too."""
        linear = self.matrices[matrix]

        def hessian() -> Tensor:
            return products(linear, [one.batch for one in self.batches], passes)

        with torch.inference_mode():
            errors = _errors(matrix, linear, formats, self.ledger, hessian)
        reference = REFERENCE.name if errors[REFERENCE.name] > 0 else max(errors, key=errors.__getitem__)
        if errors[reference] == 0:
            return Sensitivity(errors)
        cost = self.ledger.get({matrix: reference})
        if cost is None:
            with _replaced(linear, stored(linear.weight, FORMATS[reference])):
                damaged, first = (self._measure.start(), 0) if start is None else (streams, start)
                cost = self._measure.cost_of(self._measure.advance(damaged, first, None))
            self.ledger.put({matrix: reference}, cost)
        return Sensitivity(errors, reference, max(0.0, cost.value))

    def together(self, formats: Mixed, on_matrix: Callable[[str], None] = lambda name: None) -> Cost:
        """All matrices in their formats, of which only one link's are in memory twice."""
        place = {"all": str(formats)}
        found = self.ledger.get(place)
        if found is not None:
            return found
        head = self.matrices.get("head")
        tied = head is not None and self.model.config.head.tied
        _ = self._measure  # of the model as it is
        with self._rounded(["head"] if tied else [], formats):
            streams = self._measure.start()
        for position, name in enumerate(self.model.names):
            names = [f"{name}.{place}" for place in PLACES if self._link(name)]
            with self._rounded(names, formats):
                streams = self._measure.advance(streams, position, position + 1)
            for one in names:
                on_matrix(one)
        with self._rounded([] if head is None else ["head"], formats):
            found = self._measure.cost_of(streams)
        if head is not None:
            on_matrix("head")
        self.ledger.put(place, found)
        return found

    @contextmanager
    def _rounded(self, names: Sequence[str], formats: Mixed) -> Iterator[None]:
        with ExitStack() as stack:
            for name in names:
                linear = self.matrices[name]
                stack.enter_context(_replaced(linear, stored(linear.weight, formats.of(name))))
            yield

    def _link(self, name: str) -> bool:
        links = self.model.links
        return key(name) in links and isinstance(links[key(name)], Link)

    def _pairs(self, streams: list[Tensor]) -> list[tuple[Batch, Tensor]]:
        return [(one.batch, stream) for one, stream in zip(self.batches, streams, strict=True)]

    def _pass(self, position: int, batch: Batch, x_BTD: Tensor) -> Tensor:
        return self.model.run(x_BTD, self.model.embed(batch)[1], position, position + 1)

    def _decode(self, batch: Batch, x_BTD: Tensor) -> Tensor:
        return self.model.head(self.model.finish(x_BTD), batch)
