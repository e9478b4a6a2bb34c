"""What a person asks of `pack`, and what of it does not go together: refused before anything is read."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from chinchilla_lm.errors import InputError
from chinchilla_lm.models import checkpoint as checkpoints
from chinchilla_lm.models.meta import meta_of
from chinchilla_lm.models.source import locate
from chinchilla_lm.pack.formats import FORMATS, SOLVERS, Format, format_named
from chinchilla_lm.pack.mixed import Mixed, mixed, mixed_of
from chinchilla_lm.plan import Plan
from chinchilla_lm.runtime.engine.program import CACHES, cached_in
from chinchilla_lm.runtime.packing import refuse_packed

# In place of a format: those of the plan that the model was made by.
PLANNED = "plan"
# Bits a weight of the largest format that a budget may ask for, bf16.
MOST_BITS = 16


@dataclass(frozen=True, kw_only=True)
class Packing:
    """What to pack, and how.

    form: the format of all matrices, or several (`pack.mixed`), or `plan`: those of the model's own plan; or, in its
    place, bits: of a weight in the mean over all matrices, at most, with the formats `offered`, their names with commas
    (None: all that round); task: the head, where the model's config names none; cache: of keys and values, as `load`
    takes it; solver: `round` or `gptq`, None: the better one where there are calibration data; calibration: data of the
    model's task, whose training split is read, `calibration_tokens` of it (None: 65,536). distil: tokens of it that the
    rounded model then learns from. margin: largest loss of quality on the test split of `data` that passes, against the
    model `against` (None: `model`); None: the result is not judged. screen_head: with a copy of the decoder by which
    greedy choice reads little of it.
    """

    model: str
    folder: Path
    form: str | None = None
    bits: float | None = None
    offered: str | None = None
    task: str | None = None
    cache: str = "auto"
    solver: str | None = None
    calibration: str | None = None
    calibration_tokens: int | None = None
    distil: int = 0
    against: str | None = None
    margin: float | None = None
    data: str | None = None
    screen_head: bool = False

    @property
    def solved_by(self) -> str:
        """The solver's name."""
        return self.solver or ("round" if self.calibration is None else "gptq")

    @cached_property
    def formats(self) -> Mixed | None:
        """What was asked for by name. Raises InputError for an unknown format."""
        return None if self.form is None else mixed(self.form)

    @cached_property
    def candidates(self) -> list[Format]:
        """The formats that a budget may be spent on. Raises InputError for an unknown one."""
        if self.offered is None:
            return [form for form in FORMATS.values() if form.rounding is not None]
        return list(dict.fromkeys(format_named(name.strip()) for name in self.offered.split(",")))

    @property
    def original(self) -> str:
        """What the packed model is judged against."""
        return self.against or self.model

    def check(self) -> None:
        """Raises InputError for what does not go together, before anything is read."""
        self._check_formats()
        self._check_solver()
        self._check_judging()
        if self.cache not in ("auto", *CACHES):
            cached_in({}, self.cache)
        if self.folder.exists() and (not self.folder.is_dir() or any(self.folder.iterdir())):
            raise InputError(f"{self.folder} is there and not an empty folder; pass another -o")
        refuse_packed(self.model)

    def _check_formats(self) -> None:
        if (self.form is None) == (self.bits is None):
            both = "no format is named, nor bits" if self.form is None else "a format and bits are two ways to say it"
            raise InputError(f"{both}; pass either --format F or --bits B")
        if self.bits is None:
            if self.offered is not None:
                raise InputError("--formats are what --bits may choose from; pass --bits B, or --format F for one")
            _ = self.formats
            return
        if not (math.isfinite(self.bits) and self.bits > 0):
            raise InputError(f"bits {self.bits:g} is no number of bits above 0; pass --bits 4.5")
        if self.bits > MOST_BITS:
            raise InputError(f"bits {self.bits:g} is above {MOST_BITS}, the most that can be had (bf16); pass --bits 8")
        _ = self.candidates

    def _check_solver(self) -> None:
        solver, rounds = self.solved_by, self.candidates if self.formats is None else self.formats.all()
        if solver not in SOLVERS:
            raise InputError(f"solver {solver!r} is not one of {', '.join(SOLVERS)}; pass one of them")
        if solver == "round" and self.calibration is not None and self.bits is None:
            raise InputError("solver round looks at no data; leave --calibration away, or pass --solver gptq")
        if solver != "round" and self.calibration is None:
            raise InputError(f"solver {solver} needs text to calibrate on; pass --calibration DATA")
        if solver != "round" and all(form.rounding is None for form in rounds):
            names = ", ".join(form.name for form in rounds) if self.formats is None else self.formats
            raise InputError(f"format {names} rounds each number by itself; leave --calibration away")
        if self.calibration == "":
            raise InputError("--calibration is empty; pass a folder, a file or a hub dataset")
        if self.calibration_tokens is not None and self.calibration is None:
            raise InputError("--calibration-tokens is of calibration data; pass --calibration DATA")
        if self.calibration_tokens is not None and self.calibration_tokens < 1:
            raise InputError(f"--calibration-tokens {self.calibration_tokens} is not above 0; leave it away")
        if self.distil < 0:
            raise InputError(f"--distil {self.distil} is below 0; pass a number of tokens, or 0 for none")
        if self.distil and solver == "round":
            remedy = "pass --calibration DATA" if self.calibration is None else "leave --solver round away"
            raise InputError(f"--distil {self.distil} trains what a solver rounded on calibration data; {remedy}")

    def _check_judging(self) -> None:
        if self.against is not None and self.margin is None:
            raise InputError("--against names what a certificate is against; pass --margin M and --data DATA with it")
        if self.margin is not None and self.data is None:
            raise InputError("a margin is held or not on test data; pass --data DATA with --margin")
        if self.data is not None and self.margin is None:
            raise InputError("--data are what a certificate is judged on; pass --margin M with it")
        for flag, value in (("--data", self.data), ("--against", self.against)):
            if value == "":
                raise InputError(f"{flag} is empty; pass a path or a name")


def planned(model: str) -> str:
    """The formats that the plan of a run's model gives its links. Raises InputError where it has none."""
    refuse_packed(model)
    values = meta_of(locate(model)).get("plan")
    formats = None if values is None else mixed_of(Plan.from_dict(values))
    if formats is None:
        raise InputError(f"{model} has no plan with formats; pass a format, such as --format int8")
    return str(formats)


def kind_of(asked: Packing) -> str:
    """The task that the model's head is for, where data are asked for. Raises InputError for one of which there are no
    such data, and for what else does not go with this model, before it is read."""
    with checkpoints.unread(asked.model, task=asked.task) as (checkpoint, _):
        config, matrices = checkpoint.model.config, list(checkpoint.model.matrices())
    if asked.formats is not None:
        asked.formats.check(matrices)
        if asked.calibration is not None and all(asked.formats.of(one).rounding is None for one in matrices):
            raise InputError(f"format {asked.formats} rounds no matrix of this model; leave --calibration away")
    if asked.cache != "auto":
        cached_in({"causal": config.causal}, asked.cache)
    kind = config.head.kind
    if kind == "embedding" or (kind == "language-modeling" and not config.causal):
        what = "makes vectors" if kind == "embedding" else "fills in masked words"
        flag = "--calibration" if asked.calibration is not None else "--margin and --data"
        raise InputError(f"{asked.model} {what}, for which no data are read; leave {flag} away")
    return kind
