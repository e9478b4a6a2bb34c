"""The verbs for Python: a function for each, with the object of ``--json`` as its result.

The types of the results are in :mod:`chinchilla_lm.results`. Some have the name of a part of the package, which
would shadow them there, so all are called from here::

    from chinchilla_lm import api
    found = api.evaluate("out/short", task="token-classification", data="my-data", against="out/tagger/model")
    found["metrics"]["entity_f1"]["value"]

``generate`` is a method of the session that :func:`chinchilla_lm.load` gives, and `demo` is for the command line.

Each prints what happens on the way as its verb does; ``quiet=True`` leaves results and warnings only. ``**fields`` are
those of a recipe, as a YAML file for ``--recipe`` has them: ``margin=1.0``, ``recover={"epochs": 2}``. Every function
raises ``InputError`` for bad input, also where it needs a part that is not installed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from chinchilla_lm.console import Console
from chinchilla_lm.installed import needing
from chinchilla_lm.recipe import Recipe, layered, make_recipe
from chinchilla_lm.results import (
    BenchResult,
    CompressResult,
    DoctorResult,
    EvaluateResult,
    ExportResult,
    FinetuneResult,
    InspectResult,
    PackResult,
    RecoverResult,
    ScoreResult,
    SearchResult,
    ShortenResult,
)


def compress(model: str, *, task: str, data: str, out: str, quiet: bool = False, **fields: Any) -> CompressResult:
    """Shorten a model to a target speed and certify it; see `chinchilla compress --help` for the fields.

    out: the run folder; the model is in `<out>/model`, and with `formats` the packed program in `<out>/packed`. A run
    that was stopped goes on where it was. Raises InputError for bad input, ContractError where the speed cannot be had.
    A certificate that fails is no error: see `verdict`.
    """
    with needing("compress"):
        from chinchilla_lm.pipeline.compress import compress as run

        return run(_recipe(model, task, data, fields | {"output": out}), Console(quiet=quiet))


def finetune(model: str, *, task: str, data: str, out: str, quiet: bool = False, **fields: Any) -> FinetuneResult:
    """Train a pretrained model for a task; see `chinchilla finetune --help` for the fields.

    out: the run folder; the model is in `<out>/model`. Raises InputError for bad input.
    """
    with needing("finetune"):
        from chinchilla_lm.pipeline.finetune import finetune as run

        return run(_recipe(model, task, data, fields | {"output": out}), Console(quiet=quiet))


def evaluate(
    model: str,
    *,
    task: str,
    data: str,
    split: str = "test",
    against: str | None = None,
    predictions: str | None = None,
    quiet: bool = False,
    **fields: Any,
) -> EvaluateResult:
    """A model's quality on a split, alone or paired against an original.

    See `chinchilla evaluate --help` for the fields. split: train, dev or test. against: the original; the result then
    has a `certificate`, held against the field `margin`, in points of F1 and accuracy or percent of perplexity, and on
    test it is also written beside the model. predictions: a file to write, one JSON line an example. Raises InputError
    for bad input.
    """
    with needing("evaluate"):
        from chinchilla_lm.pipeline.evaluate import evaluate as run

        recipe = _recipe(model, task, data, fields)
        return run(recipe, Console(quiet=quiet), split=split, against=against, predictions=predictions)


def inspect(
    model: str,
    *,
    task: str | None = None,
    time: bool = True,
    batch: int = 1,
    tokens: int | None = None,
    device: str = "auto",
    dtype: str = "auto",
    threads: int | None = None,
    quiet: bool = False,
) -> InspectResult:
    """What a model is made of: its links, their parameters, and the microseconds that each takes.

    time: whether it is timed, in a pass of `batch` texts of `tokens` tokens (None: 128, or as many as fit). task: the
    head to give it, None for the one that was saved. threads: of the CPU, None for one a core. A packed model needs no
    torch. Raises InputError for a model that cannot be read, and a shape that it cannot take.
    """
    with needing("inspect"):
        from chinchilla_lm.pipeline.inspect import inspect as run

        shape = (batch, tokens) if time else None
        console = Console(quiet=quiet)
        return run(model, console, task=task, shape=shape, device=device, dtype=dtype, threads=threads)


def bench(
    model: str,
    *,
    against: str | None = None,
    task: str | None = None,
    batch: int | None = None,
    tokens: int | None = None,
    new_tokens: int | None = None,
    seconds: float = 20.0,
    memory: bool = True,
    backend: str = "auto",
    device: str = "auto",
    dtype: str = "auto",
    threads: int | None = None,
    cache: str = "auto",
    quiet: bool = False,
) -> BenchResult:
    """How fast a model is, alone or beside another one, in one interleaved run of about so many seconds.

    against: the other one, such as the original. batch: texts at a time (None: 1, or 32 for what only reads). tokens:
    of each (None: 128). new_tokens: that a language model writes (None: 64). memory: measure that and the load time
    too, in processes of their own. cache: as in :func:`pack`. Raises InputError for a shape that a model cannot take.
    Sets torch's CPU threads for the whole process.
    """
    with needing("bench"):
        from chinchilla_lm.pipeline.bench import Asked
        from chinchilla_lm.pipeline.bench import bench as run

        asked = Asked(
            model, against, task, batch, tokens, new_tokens, seconds, memory, backend, device, dtype, threads, cache
        )
        return run(asked, Console(quiet=quiet))


def pack(
    model: str,
    *,
    out: str,
    format: str | None = None,
    bits: float | None = None,
    formats: str | Sequence[str] | None = None,
    task: str | None = None,
    cache: str = "auto",
    solver: str | None = None,
    calibration: str | None = None,
    calibration_tokens: int | None = None,
    distil: int = 0,
    margin: float | None = None,
    data: str | None = None,
    against: str | None = None,
    screen_head: bool = False,
    quiet: bool = False,
) -> PackResult:
    """Round a model's weights to a format (such as `int8` or `int4`) and write a program for the native engine.

    format: of all large matrices, and behind it others for some, as in `int4,head=int8`. In its place `bits`: of a
    weight in the mean over all these matrices, at most; each then has one of `formats` (None: all that round; a list or
    names with commas), so that the model loses least. out: a folder, empty or not there yet. task: the head to pack,
    where the model's config names none. cache: how keys and values are kept, `bf16` or `int8` (`auto`: int8 beside
    weights of 8 and 4 bits). solver: `round` or `gptq` (None: the latter where there is `calibration`), which needs
    `calibration`, data of the model's task, and reads so many tokens of their training split (None: 65,536). `bits`
    measures on it what each matrix costs; without it, matrices differ by their rounding errors alone. distil: tokens of
    it from which scales, codebooks, norms and biases of the rounded model learn the original's outputs.

    margin: the largest loss of quality that passes on the test split of `data`, against the model `against` (None:
    `model`); the certificate is written into `out`, whether it passed or not: see `certificate`. None: not judged.
    screen_head: add a copy of a language model's decoder in fewer bits, by which greedy choice finds the same tokens
    and reads little of the decoder itself.
    Raises InputError for an unknown format or solver, bits that cannot be had, a head that has no use for a
    screen, and for a model that cannot be read, has no trained head, or is packed already.
    """
    with needing("pack"):
        from chinchilla_lm.pipeline.pack import pack as run
        from chinchilla_lm.pipeline.packing import Packing

        asked = Packing(
            model=model,
            folder=Path(out),
            form=format,
            bits=bits,
            offered=formats if formats is None or isinstance(formats, str) else ",".join(formats),
            task=task,
            cache=cache,
            solver=solver,
            calibration=calibration,
            calibration_tokens=calibration_tokens,
            distil=distil,
            against=against,
            margin=margin,
            data=data,
            screen_head=screen_head,
        )
        return run(asked, Console(quiet=quiet))


def export(
    model: str, *, out: str, to: str = "hf", format: str | None = None, force: bool = False, quiet: bool = False
) -> ExportResult:
    """Write a model as other programs read it.

    to: `hf` is a stock folder that transformers loads, `compressed-tensors` one with rounded matrices, `gguf` a file
    for llama.cpp. format: how numbers are written, None: as they are; a packed model's codes are then kept. force:
    replace an earlier export that is in `out`. Raises InputError for an unknown target or format, for a model that the
    target cannot say, and for a folder that is not empty or not ours to replace.
    """
    with needing("export"):
        from chinchilla_lm.pipeline.export import Exporting
        from chinchilla_lm.pipeline.export import export as run

        return run(Exporting(model, to, Path(out), format, force), Console(quiet=quiet))


def doctor(seconds: float = 10.0, *, quiet: bool = False) -> DoctorResult:
    """What this machine is, how fast it can be, and what would spoil a run on it, measured for about so many seconds.

    Raises InputError when seconds is not a positive number. Shows its progress only; the checks are in the result.
    """
    from chinchilla_lm.pipeline.doctor import doctor as run

    return run(seconds, Console(quiet=quiet))


def score(out: str, *, quiet: bool = False, **fields: Any) -> ScoreResult:
    """One stage of `compress`: what each removal costs, in the unit of the table, and saves, in microseconds.

    out: the run folder. Fields that are left out stand in its recipe.yaml, from an earlier stage. Raises InputError for
    bad input.
    """
    with needing("score"):
        from chinchilla_lm.pipeline.one_stage import score as run

        return run(_of_folder(out, fields), Console(quiet=quiet))


def search(out: str, *, quiet: bool = False, **fields: Any) -> SearchResult:
    """One stage of `compress`: the plan, from the measured costs and the target, `speedup` or `latency_ms`.

    See `score` for `out` and the fields. Raises InputError for bad input, ContractError where the target cannot be had.
    """
    with needing("search"):
        from chinchilla_lm.pipeline.one_stage import search as run

        return run(_of_folder(out, fields), Console(quiet=quiet))


def shorten(out: str, *, quiet: bool = False, **fields: Any) -> ShortenResult:
    """One stage of `compress`: carries out the plan in `<out>/plan.json`, which may be edited by hand.

    See `score` for `out` and the fields. Raises InputError for bad input.
    """
    with needing("shorten"):
        from chinchilla_lm.pipeline.one_stage import shorten as run

        return run(_of_folder(out, fields), Console(quiet=quiet))


def recover(out: str, *, quiet: bool = False, **fields: Any) -> RecoverResult:
    """One stage of `compress`: trains the short model on the original's outputs.

    See `score` for `out` and the fields. Raises InputError for bad input.
    """
    with needing("recover"):
        from chinchilla_lm.pipeline.one_stage import recover as run

        return run(_of_folder(out, fields), Console(quiet=quiet))


def _recipe(model: str, task: str, data: str, fields: dict[str, Any]) -> Recipe:
    return make_recipe({**fields, "model": model, "task": task, "data": data})


def _of_folder(out: str, fields: dict[str, Any]) -> Recipe:
    from chinchilla_lm.pipeline.one_stage import earlier

    return layered(earlier(out), fields | {"output": out})
