"""A format for each matrix, so that the mean bits a weight keep within a budget and the loss is least.

Sensitivities are measured, a knapsack is solved exactly, and since its prediction is only that, the mix is then stored
whole and its true KL held against that of every single format that fits: the best of them is taken. Without
calibration text there is nothing to measure on, and matrices differ by their rounding errors alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from chinchilla_lm.console import Console
from chinchilla_lm.data.batches import EncodedBatch
from chinchilla_lm.errors import InputError
from chinchilla_lm.models.transformer import Transformer
from chinchilla_lm.pack.allocate import Option, allocate, worthwhile
from chinchilla_lm.pack.described import described
from chinchilla_lm.pack.formats import Format
from chinchilla_lm.pack.mixed import Mixed
from chinchilla_lm.pipeline.calibrating import Material
from chinchilla_lm.results import MixFound, MixTried
from chinchilla_lm.runtime.packing import shapes
from chinchilla_lm.score.ledger import Cost
from chinchilla_lm.score.rounding import Rounding, Sensitivity, errors_alone

# Products that the measuring of all matrices may take, each with a pass over what is behind it, and the tokens that
# this comes to: 2,048 for SmolLM2-135M, whose coefficients they give to about 15 %, more for smaller models, of which a
# tagger's differ more from text to text.
WORK = 26e12
LEAST_TOKENS, MOST_TOKENS = 2048, 8192


@dataclass(frozen=True, slots=True)
class Budget:
    """Bytes that the matrices of a model may take. shapes: outputs and inputs of each as it is laid out; weights: that
    it has; bits: of one, in the mean."""

    shapes: Mapping[str, tuple[int, int]]
    weights: int
    bits: float

    @property
    def bytes(self) -> int:
        """The whole."""
        return math.floor(self.bits * self.weights / 8)

    def size(self, formats: Mapping[str, Format] | Mixed) -> int:
        """Bytes of all matrices, with scales, minima and padding."""
        of = formats.of if isinstance(formats, Mixed) else formats.__getitem__
        return sum(of(name).bytes(*shape) for name, shape in self.shapes.items())

    def mean(self, size: int) -> float:
        """Bits a weight that so many bytes are."""
        return 8 * size / self.weights

    def check(self, candidates: Sequence[Format]) -> None:
        """Raises InputError where not even the smallest of these formats fit."""
        least = sum(min(form.bytes(*shape) for form in candidates) for shape in self.shapes.values())
        if least > self.bytes:
            bits = math.ceil(100 * self.mean(least)) / 100
            raise InputError(
                f"bits {self.bits:g} is below {bits:.2f}, the least that can be had of this model with "
                f"{', '.join(form.name for form in candidates)}; pass --bits {bits:.2f}, or offer smaller --formats"
            )


@dataclass(frozen=True, slots=True)
class Tried:
    """Formats for all matrices. predicted: nats a position, or the sum of relative errors without text; measured: the
    true KL, where there is text."""

    formats: Mixed
    size: int
    predicted: float
    measured: Cost | None

    @property
    def cost(self) -> float:
        """What one is chosen by."""
        return self.predicted if self.measured is None else self.measured.value


def choose(bits: float, candidates: Sequence[Format], of: Material, console: Console) -> tuple[Mixed, MixFound]:
    """The formats of all matrices, and what was found of them and of single formats.

    Raises InputError for a budget that the smallest formats exceed, a model without such matrices, and activations or
    weights that are not finite.
    """
    model = of.checkpoint.model
    weights = sum(linear.weight.numel() for linear in model.matrices().values())
    if weights == 0:
        raise InputError("the model has no large matrix whose bits could be chosen; pass --format bf16")
    budget = Budget(shapes(model), weights, bits)
    budget.check(candidates)
    found = _sensitivities(candidates, of, console)
    options = [
        worthwhile([Option(form.name, form.bytes(*shape), found[name].predicted(form.name)) for form in candidates])
        for name, shape in budget.shapes.items()
    ]
    chosen = allocate(options, budget.bytes)
    assert chosen is not None  # the smallest fit
    named = {form.name: form for form in candidates}
    mix = described({name: named[one.name] for name, one in zip(budget.shapes, chosen, strict=True)})
    singles = [single for form in candidates if budget.size(single := Mixed(form)) <= budget.bytes and single != mix]
    tried = _try([mix, *singles], found, budget, of, console)
    best = min(tried, key=lambda one: one.cost)
    _show(tried, best, budget, of, console)
    return best.formats, _found(tried, best, budget)


def _sensitivities(candidates: Sequence[Format], of: Material, console: Console) -> dict[str, Sensitivity]:
    model, ledger = of.checkpoint.model, of.ledger()
    total = len(model.matrices())
    if not of.batches:
        console.say("no calibration data: every matrix counts alike, by its relative squared error alone")
        with console.progress(total, "round", "matrices") as progress:
            return errors_alone(model, candidates, ledger, lambda name: progress.advance(1, name))
    rounding = Rounding(model, some(of.batches[::2], _tokens(model)), ledger)
    with console.progress(total, "measure", "matrices") as progress:
        return rounding.alone(candidates, lambda name: progress.advance(1, name))


def _try(
    formats: Sequence[Mixed], found: Mapping[str, Sensitivity], budget: Budget, of: Material, console: Console
) -> list[Tried]:
    """All of them, stored whole and measured where there is text to measure on."""
    costs: list[Cost | None] = [None] * len(formats)
    if of.batches:
        batches = some(of.batches[1::2] or of.batches, _tokens(of.checkpoint.model))
        rounding = Rounding(of.checkpoint.model, batches, of.ledger())
        with console.progress(len(formats) * len(budget.shapes), "verify", "matrices") as progress:
            costs = [rounding.together(one, lambda name: progress.advance(1, name)) for one in formats]
    return [
        Tried(one, budget.size(one), sum(found[name].predicted(one.of(name).name) for name in budget.shapes), cost)
        for one, cost in zip(formats, costs, strict=True)
    ]


def _tokens(model: Transformer) -> int:
    """Of calibration text on which each matrix alone is measured, and of other text for whole models."""
    matrices = model.matrices()
    weights = sum(linear.weight.numel() for name, linear in matrices.items() if name != "head")
    return max(LEAST_TOKENS, min(MOST_TOKENS, int(WORK / (len(matrices) * max(1, weights)))))


def some(batches: Sequence[EncodedBatch], tokens: int) -> list[EncodedBatch]:
    """Batches from all over, which are sorted by the length of their texts, of at most so many tokens; at least one."""
    mean = sum(one.batch.tokens for one in batches) / len(batches)
    count = max(1, min(len(batches), int(tokens / mean)))
    return [batches[index * len(batches) // count] for index in range(count)]


def _show(tried: Sequence[Tried], best: Tried, budget: Budget, of: Material, console: Console) -> None:
    unit = "KL, nats a position" if of.batches else "sum of relative errors"
    rows = [
        (
            "the mix" if one is tried[0] else str(one.formats),
            f"{budget.mean(one.size):.3f}",
            one.predicted,
            None if one.measured is None else one.measured.value,
            "taken" if one is best else "",
        )
        for one in tried
    ]
    console.table(
        ["formats", "bits a weight", "predicted", "measured", ""],
        rows,
        f"at most {budget.bits:g} bits a weight, {unit}; rounded by itself",
    )
    if best is not tried[0]:
        console.say(f"the mix of least predicted loss loses more than {best.formats} alone, which is taken")
    console.table(["blocks", *_places(budget)], _layout(best.formats, budget), "format of each matrix")


def _places(budget: Budget) -> list[str]:
    return list(dict.fromkeys(name.partition(".")[2] for name in budget.shapes if name != "head"))


def _layout(formats: Mixed, budget: Budget) -> list[list[str | None]]:
    """A row for each run of blocks that are alike, and one for the head."""
    places, rows = _places(budget), list[tuple[list[int], list[str | None]]]()
    for block in dict.fromkeys(int(name.partition(".")[0]) for name in budget.shapes if name != "head"):
        names = [f"{block}.{place}" for place in places]
        cells = [formats.of(name).name if name in budget.shapes else None for name in names]
        if rows and rows[-1][1] == cells:
            rows[-1][0].append(block)
        else:
            rows.append(([block], cells))
    shown: list[list[str | None]] = [
        [str(blocks[0]) if len(blocks) == 1 else f"{blocks[0]} to {blocks[-1]}", *cells] for blocks, cells in rows
    ]
    if "head" in budget.shapes:
        shown.append([f"head: {formats.of('head').name}", *[None] * len(places)])
    return shown


def _found(tried: Sequence[Tried], best: Tried, budget: Budget) -> MixFound:
    shown: list[MixTried] = [
        {
            "format": str(one.formats),
            "bits": budget.mean(one.size),
            "predicted": one.predicted,
            "kl": None
            if one.measured is None
            else {"value": one.measured.value, "low": one.measured.low, "high": one.measured.high},
        }
        for one in tried
    ]
    return {
        "asked": budget.bits,
        "bits": budget.mean(best.size),
        "mixed": best is tried[0],
        "formats": {name: best.formats.of(name).name for name in budget.shapes},
        "tried": shown,
    }
