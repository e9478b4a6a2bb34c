"""A model as a program of packed weights, which the native engine maps and runs."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path

from chinchilla_lm import __version__
from chinchilla_lm.console import Console
from chinchilla_lm.data.records import records_sha256
from chinchilla_lm.errors import InputError
from chinchilla_lm.models import checkpoint as checkpoints
from chinchilla_lm.models.meta import meta_of
from chinchilla_lm.models.source import locate
from chinchilla_lm.pack.formats import CALIBRATION_TOKENS, SOLVERS
from chinchilla_lm.pack.mixed import Mixed, mixed, mixed_of
from chinchilla_lm.pipeline.held import certificate_of, how_to_certify
from chinchilla_lm.plan import Plan
from chinchilla_lm.results import PackResult
from chinchilla_lm.runtime.engine.packed import read_packed
from chinchilla_lm.runtime.engine.program import CACHES, cached_in
from chinchilla_lm.runtime.packing import Size, refuse_packed, write_checkpoint, write_packed

# In place of a format: those of the plan that the model was made by.
PLANNED = "plan"
# Tokens that say something of the inputs of a matrix.
LEAST_TOKENS = 1024


@dataclass(frozen=True, slots=True)
class Packing:
    """What to pack, and how.

    formats: one for all matrices, or several (`pack.mixed`), or `plan`: those of the model's own plan; task: the head,
    where the model's config names none; cache: of keys and values, as `load` takes it; solver: `round` or `gptq`, None:
    the better one where there are calibration data; calibration: data of the model's task, whose training split is
    read, `calibration_tokens` of it (None: 65,536).
    """

    model: str
    formats: str
    folder: Path
    task: str | None = None
    cache: str = "auto"
    solver: str | None = None
    calibration: str | None = None
    calibration_tokens: int | None = None

    @property
    def solved_by(self) -> str:
        """The solver's name."""
        return self.solver or ("round" if self.calibration is None else "gptq")

    def check(self) -> None:
        """Raises InputError for what does not go together, before anything is read."""
        formats, solver = mixed(self.formats), self.solved_by
        if solver not in SOLVERS:
            raise InputError(f"solver {solver!r} is not one of {', '.join(SOLVERS)}; pass one of them")
        if solver == "round" and self.calibration is not None:
            raise InputError("solver round looks at no data; leave --calibration away, or pass --solver gptq")
        if solver != "round" and self.calibration is None:
            raise InputError(f"solver {solver} needs text to calibrate on; pass --calibration DATA")
        if solver != "round" and all(form.rounding is None for form in formats.all()):
            raise InputError(f"format {formats} rounds each number by itself; leave --calibration away")
        if self.calibration == "":
            raise InputError("--calibration is empty; pass a folder, a file or a hub dataset")
        if self.calibration_tokens is not None and self.calibration is None:
            raise InputError("--calibration-tokens is of calibration data; pass --calibration DATA")
        if self.calibration_tokens is not None and self.calibration_tokens < 1:
            raise InputError(f"--calibration-tokens {self.calibration_tokens} is not above 0; leave it away")
        if self.cache not in ("auto", *CACHES):
            cached_in({}, self.cache)
        if self.folder.exists() and (not self.folder.is_dir() or any(self.folder.iterdir())):
            raise InputError(f"{self.folder} is there and not an empty folder; pass another -o")
        refuse_packed(self.model)


def pack(asked: Packing, console: Console) -> PackResult:
    """Write the packed model and return what was written as plain values.

    Raises InputError for an unknown format, model, head or solver, and for a folder that is not empty.
    """
    if asked.formats == PLANNED:
        asked = replace(asked, formats=planned(asked.model))
    asked.check()
    formats, begun = mixed(asked.formats), time.perf_counter()
    if asked.solved_by == "round":
        sizes = write_packed(asked.model, str(formats), asked.folder, asked.task, asked.cache)
    else:
        sizes = _solved(asked, console)
    seconds = time.perf_counter() - begun
    total, count = sum(size for _, size, _ in sizes), sum(weights for *_, weights in sizes)
    bits = 8 * total / count
    sources = "; ".join(form.source for form in formats.all())
    console.table(
        ["matrix", "bytes", "bits a weight"],
        [(what, size, f"{8 * size / weights:.2f}") for what, size, weights in [*sizes, ("all", total, count)]],
        f"{formats} ({sources}), {asked.solved_by}, written to {asked.folder} in {seconds:.1f} s",
    )
    held, kind = certificate_of(asked.model, console), read_packed(asked.folder)[1].kind
    what = (
        "nobody has judged this program"
        if held is None
        else f"that of {asked.model} is of its own weights, not of these"
    )
    original = "ORIGINAL" if held is None else held.original.name
    console.show(f"no certificate: {what}; one of its own: {how_to_certify(str(asked.folder), original, kind)}")
    console.show(f'load it with: import chinchilla_lm as ch; session = ch.load("{asked.folder}")')
    return {
        "format": str(formats),
        "solver": asked.solved_by,
        "output": str(asked.folder),
        "bytes": sum(path.stat().st_size for path in asked.folder.rglob("*") if path.is_file()),
        "bits": bits,
        "seconds": seconds,
        "certificate": None,
    }


def planned(model: str) -> str:
    """The formats that the plan of a run's model gives its links. Raises InputError where it has none."""
    refuse_packed(model)
    values = meta_of(locate(model)).get("plan")
    formats = None if values is None else mixed_of(Plan.from_dict(values))
    if formats is None:
        raise InputError(f"{model} has no plan with formats; pass a format, such as --format int8")
    return str(formats)


def _kind_of(asked: Packing, formats: Mixed) -> str:
    """The task that the model's head is for. Raises InputError for one of which there are no such data, and for what
    else does not go with this model, before it is read."""
    with checkpoints.unread(asked.model, task=asked.task) as (checkpoint, _):
        config, matrices = checkpoint.model.config, list(checkpoint.model.matrices())
    formats.check(matrices)
    if all(formats.of(matrix).rounding is None for matrix in matrices):
        raise InputError(f"format {formats} rounds no matrix of this model; leave --calibration away")
    if asked.cache != "auto":
        cached_in({"causal": config.causal}, asked.cache)
    kind = config.head.kind
    if kind == "embedding" or (kind == "language-modeling" and not config.causal):
        what = "makes vectors" if kind == "embedding" else "fills in masked words"
        raise InputError(f"{asked.model} {what}, for which no data are read; leave --calibration away")
    return kind


def _solved(asked: Packing, console: Console) -> list[Size]:
    """Calibrate, solve, write. A run that is stopped leaves what it has beside the folder, and the next one goes on."""
    from chinchilla_lm.pack.solve import Solver
    from chinchilla_lm.pack.unfinished import Unfinished
    from chinchilla_lm.pipeline.job import Job
    from chinchilla_lm.recipe import make_recipe

    tokens = CALIBRATION_TOKENS if asked.calibration_tokens is None else asked.calibration_tokens
    formats = mixed(asked.formats)
    values = {"model": asked.model, "task": _kind_of(asked, formats), "data": asked.calibration, "device": "cpu"}
    job = Job(make_recipe(values | {"calibration_tokens": tokens}), console)
    if "train" not in job.dataset.splits:
        there = ", ".join(job.dataset.splits)
        raise InputError(f"{asked.calibration} has no training split (but {there}); pass other --calibration data")
    checkpoint, (batches, _) = job.checkpoint, job.calibration
    found = sum(one.batch.tokens for one in batches)
    if found < LEAST_TOKENS:
        raise InputError(f"{found} tokens of calibration text are too few; pass data with {LEAST_TOKENS:,} or more")
    if found < tokens:
        console.warn(f"the calibration data have {found:,} tokens, not {tokens:,}")
    data = records_sha256(job.calibration_records)
    decides = (__version__, checkpoint.sha256, data, formats, tokens, job.window, job.dtype)
    folder = asked.folder.resolve()
    unfinished = Unfinished(folder.with_name(f"{folder.name}.unfinished"), " ".join(map(str, decides)))
    solver = Solver(checkpoint.model, [one.batch for one in batches], formats, dtype=job.dtype, unfinished=unfinished)
    try:
        with console.progress(len(solver.roundings), asked.solved_by, "matrices") as progress:
            solver.on_matrix = lambda name: progress.advance(1, name)
            rounded = solver.run()
        sizes = write_checkpoint(checkpoint, str(formats), asked.folder, asked.cache, rounded)
    except KeyboardInterrupt:
        console.say(f"what is done is kept in {unfinished.folder}; the same command goes on from there")
        raise
    unfinished.clear()
    return sizes
