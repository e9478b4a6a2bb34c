"""A model as a program of packed weights, which the native engine maps and runs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from chinchilla_lm.console import Console
from chinchilla_lm.data.load import load_dataset
from chinchilla_lm.errors import InputError
from chinchilla_lm.models import checkpoint as checkpoints
from chinchilla_lm.models.source import locate
from chinchilla_lm.pack.mixed import Mixed
from chinchilla_lm.pack.quantized import Quantized
from chinchilla_lm.pipeline.calibrating import Material, material
from chinchilla_lm.pipeline.distilling import distilled
from chinchilla_lm.pipeline.evaluate import evaluate
from chinchilla_lm.pipeline.held import certificate_of, how_to_certify
from chinchilla_lm.pipeline.issuing import original_for
from chinchilla_lm.pipeline.mixing import choose
from chinchilla_lm.pipeline.packing import PLANNED, Packing, kind_of, planned
from chinchilla_lm.recipe import Recipe, make_recipe
from chinchilla_lm.results import Distillation, EvaluateResult, MixFound, PackResult
from chinchilla_lm.runtime.engine.packed import read_packed
from chinchilla_lm.runtime.packing import Size, check_screen, write_checkpoint
from chinchilla_lm.runtime.prepare import prepare


@dataclass(frozen=True, slots=True)
class _Packed:
    """What was written: the formats, the sizes of the parts, what a budget found, and what distillation did."""

    formats: Mixed
    sizes: list[Size]
    mix: MixFound | None
    distilled: Distillation | None


def pack(asked: Packing, console: Console) -> PackResult:
    """Write the packed model, judge it where a margin is asked for, and return what was found as plain values.

    Raises InputError for what does not go together, an unknown format, model, head or solver, a folder that is not
    empty, a budget that no formats meet, and data that cannot be read.
    """
    if asked.form == PLANNED:
        asked = replace(asked, form=planned(asked.model))
    asked.check()
    reads = asked.calibration is not None or asked.margin is not None
    kind = kind_of(asked) if reads else None
    judged = None if asked.margin is None else _judged_by(asked, kind)
    test_records = [] if judged is None else _test_records(judged)
    begun = time.perf_counter()
    packed = _packed(asked, kind, test_records, console)
    seconds = time.perf_counter() - begun
    bits = _show(asked, packed, seconds, console)
    evaluation = None if judged is None else _evaluated(asked, judged, console)
    if evaluation is None:
        _show_no_certificate(asked, console)
    console.show(f'load it with: import chinchilla_lm as ch; session = ch.load("{asked.folder}")')
    return {
        "format": str(packed.formats),
        "solver": asked.solved_by,
        "output": str(asked.folder),
        "bytes": sum(path.stat().st_size for path in asked.folder.rglob("*") if path.is_file()),
        "bits": bits,
        "seconds": seconds,
        "mix": packed.mix,
        "distilled": packed.distilled,
        "evaluation": evaluation,
        "certificate": None if evaluation is None else evaluation.get("certificate"),
    }


def _packed(asked: Packing, kind: str | None, test_records: Sequence[Any], console: Console) -> _Packed:
    """Choose, solve, write. A run that is stopped leaves what it has beside the folder, and the next one goes on."""
    of = material(asked, kind, test_records, console)
    mix: MixFound | None = None
    rounded: dict[str, Quantized] | None = None
    learnt: Distillation | None = None
    try:
        formats = asked.formats
        if asked.screen_head:
            check_screen(of.checkpoint, "bf16" if formats is None else str(formats))
        if formats is None:
            assert asked.bits is not None
            formats, mix = choose(asked.bits, asked.candidates, of, console)
            if asked.screen_head:
                check_screen(of.checkpoint, str(formats))
        if asked.solved_by != "round":
            rounded, learnt = _solved(asked, formats, of, console)
        sizes = write_checkpoint(of.checkpoint, str(formats), asked.folder, asked.cache, rounded, asked.screen_head)
    except KeyboardInterrupt:
        if of.unfinished.exists():
            console.say(f"what is done is kept in {of.unfinished}; the same command goes on from there")
        raise
    of.clear()
    return _Packed(formats, sizes, mix, learnt)


def _solved(
    asked: Packing, formats: Mixed, of: Material, console: Console
) -> tuple[dict[str, Quantized], Distillation | None]:
    """The codes of all matrices that round, by the name of the parameter, and what learning the original's outputs
    did, where it was asked for."""
    from chinchilla_lm.pack.solve import Solver

    original = prepare(of.checkpoint.model, torch.device("cpu"), of.dtype) if asked.distil else None
    batches = [one.batch for one in of.batches]
    solver = Solver(of.checkpoint.model, batches, formats, dtype=of.dtype, unfinished=of.solved(formats))
    with console.progress(len(solver.roundings), asked.solved_by, "matrices") as progress:
        solver.on_matrix = lambda name: progress.advance(1, name)
        rounded = solver.run()
    return (rounded, None) if original is None else distilled(of, original, rounded, formats, asked.distil)


def _judged_by(asked: Packing, kind: str | None) -> Recipe:
    """How the packed model will be judged. Raises InputError for a margin that is none, and an original that it cannot
    be certified against."""
    values = {"model": str(asked.folder), "task": kind, "data": asked.data, "margin": asked.margin, "device": "cpu"}
    recipe = make_recipe(values)
    original_for(locate(asked.model), asked.original)
    with checkpoints.unread(asked.original, task=kind) as (original, _):
        if original.fresh:
            raise InputError(f"{asked.original} has no trained head for {kind}; pass another --against")
    return recipe


def _test_records(recipe: Recipe) -> list[Any]:
    """What the model will be judged on. Raises InputError where there is no test split."""
    assert recipe.data is not None
    return load_dataset(recipe.data, recipe.task).records("test")


def _evaluated(asked: Packing, recipe: Recipe, console: Console) -> EvaluateResult:
    """The verdict on what was written, whose certificate lies beside it, passed or failed."""
    try:
        return evaluate(recipe, console, against=asked.original)
    except InputError as error:
        raise InputError(f"{asked.folder} is packed, but it could not be judged: {error}") from error


def _show(asked: Packing, packed: _Packed, seconds: float, console: Console) -> float:
    """What was written; the bits of a weight."""
    total, count = sum(size for _, size, _ in packed.sizes), sum(weights for *_, weights in packed.sizes)
    sources = "; ".join(form.source for form in packed.formats.all())
    console.table(
        ["matrix", "bytes", "bits a weight"],
        [(what, size, f"{8 * size / weights:.2f}") for what, size, weights in [*packed.sizes, ("all", total, count)]],
        f"{packed.formats} ({sources}), {asked.solved_by}, written to {asked.folder} in {seconds:.1f} s",
    )
    return 8 * total / count


def _show_no_certificate(asked: Packing, console: Console) -> None:
    held, kind = certificate_of(asked.model, console), read_packed(asked.folder)[1].kind
    what = (
        "nobody has judged this program"
        if held is None
        else f"that of {asked.model} is of its own weights, not of these"
    )
    original = "ORIGINAL" if held is None else held.original.name
    console.show(f"no certificate: {what}; one of its own: {how_to_certify(str(asked.folder), original, kind)}")
