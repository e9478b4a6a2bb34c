"""The chain of a model, what each link weighs, and what share of the time it takes here.

A packed model is looked at without torch, which is imported for the others alone.
"""

from __future__ import annotations

from pathlib import Path

from chinchilla_lm.console import Console
from chinchilla_lm.files import user_path
from chinchilla_lm.pipeline.held import certificate_in
from chinchilla_lm.pipeline.inspect_packed import inspect_packed
from chinchilla_lm.pipeline.inspect_shape import Wanted, fitting
from chinchilla_lm.results import InspectResult
from chinchilla_lm.runtime.engine.packed import is_packed
from chinchilla_lm.runtime.sampling import check_whole

SECONDS = 2.0  # of timing: for a look; a search measures for longer


def inspect(
    model: str,
    console: Console,
    *,
    task: str | None = None,
    shape: Wanted | None = (1, None),
    device: str = "auto",
    dtype: str = "auto",
    threads: int | None = None,
) -> InspectResult:
    """A model's chain as plain values.

    shape: sequences and tokens (None: 128, or as many as fit) of the pass to time; None: no timing. threads: of torch,
    or of the engine, in which a packed model is timed. Raises InputError for a model that cannot be read, or a shape
    that it cannot take.
    """
    if threads is not None:
        check_whole("threads", threads, 1, "leave --threads away to use every core")
    if is_packed(model):
        found = inspect_packed(model, task, shape, device, dtype, threads, SECONDS)
        return _with_certificate(found, user_path(model), console)
    from chinchilla_lm.models.checkpoint import load
    from chinchilla_lm.pipeline.inspect_model import describe, time_model
    from chinchilla_lm.runtime.torch_backend import set_threads

    if threads is not None:
        set_threads(threads)
    checkpoint = load(model, task=task)
    found = _with_certificate(describe(checkpoint, model), checkpoint.source, console)
    if shape is not None:
        found["time"] = time_model(checkpoint.model, *fitting(shape, found["positions"]), device, dtype, SECONDS)
    return found


def _with_certificate(found: InspectResult, folder: Path | None, console: Console) -> InspectResult:
    issued = certificate_in(folder, console)
    found["certificate"] = None if issued is None else issued.model_dump()
    return found
