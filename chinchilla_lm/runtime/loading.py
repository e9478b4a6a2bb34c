"""From a path to a session: which backend runs it, and in what numbers."""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from chinchilla_lm.errors import InputError
from chinchilla_lm.files import user_path
from chinchilla_lm.installed import missing, needing
from chinchilla_lm.runtime.artifact import Snapshot
from chinchilla_lm.runtime.card import Card
from chinchilla_lm.runtime.engine.kept import WORTH, Place
from chinchilla_lm.runtime.engine.native import NativeBackend, NativeModel, engine_module, native_format
from chinchilla_lm.runtime.engine.packed import is_packed, read_packed
from chinchilla_lm.runtime.gpus import may_have_gpu
from chinchilla_lm.runtime.sampling import check_whole
from chinchilla_lm.runtime.session import Session

if TYPE_CHECKING:
    import torch

    from chinchilla_lm.models.checkpoint import Checkpoint
    from chinchilla_lm.pack.quantized import Quantized
    from chinchilla_lm.runtime.engine.program import Program

BACKENDS = ("auto", "native", "torch")


class EngineWarning(UserWarning):
    """There is no engine, so the model runs more slowly than it could."""


def load(
    path: str | Path,
    backend: str = "auto",
    device: str = "auto",
    dtype: str = "auto",
    threads: int | None = None,
    task: str | None = None,
    cache: str = "auto",
) -> Session:
    """A session on a model folder, a packed model, a run folder, a GGUF file or a hub model.

    backend: `native` is the C++ engine on the CPU, `torch` runs on any device; `auto` is native where the engine is
    there and the device is the CPU. dtype: `auto` is bfloat16 where the device multiplies it natively, else float32; a
    packed model has its own. threads: of a native session, or of all of torch; None means every core (torch: as it is).
    task: needed where the checkpoint says none. cache: how a native session keeps keys and values, `bf16` or `int8`;
    `auto` is int8 beside weights of 8 and 4 bits. Raises InputError for an unknown backend, device, dtype or cache, for
    a model that cannot be read, for a task whose head would have random weights, and where what is needed is not
    installed: a packed model in the engine needs no torch. An EngineWarning says where `auto` is torch for want of the
    engine.
    """
    session = _loaded(path, backend, device, dtype, threads, task, cache)
    source = session.card.source
    if source is not None and source.is_dir():
        session.files = Snapshot.of(source)
    return session


def _loaded(
    path: str | Path, backend: str, device: str, dtype: str, threads: int | None, task: str | None, cache: str
) -> Session:
    if backend not in BACKENDS:
        raise InputError(f"backend {backend!r} is not one of {', '.join(BACKENDS)}; pass one of them")
    if threads is not None:
        check_whole("threads", threads, 1, "leave --threads away to use every core")
    if backend == "native" and device not in ("auto", "cpu"):
        raise InputError(f"backend native runs on the CPU, not on {device}; pass --device cpu")
    packed = is_packed(path)
    native = backend == "native" or (backend == "auto" and engine_serves(device, packed))
    if packed and native:
        if dtype != "auto":
            raise InputError(f"dtype {dtype} is not that of a packed model; leave --dtype away")
        program, card = read_packed(path)
        if task is not None and task != card.kind:
            raise InputError(f"this packed model is for {card.kind}, not {task}; load another one")
        return Session(NativeBackend(NativeModel(program.with_cache(cache), threads), card), card)
    if native:
        with needing(_who(path, packed)):
            program, card = _kept_or_made(path, native_format(dtype), task)
        return Session(NativeBackend(NativeModel(program.with_cache(cache), threads), card), card)
    if cache != "auto":
        raise InputError(f"cache {cache} is the native engine's; leave --cache away on torch")
    with needing(_who(path, packed)):
        return _in_torch(path, packed, device, dtype, threads, task)


def _who(path: str | Path, packed: bool) -> str:
    """What needs more than packed models do."""
    if packed:
        return "a packed model outside of the native engine"
    if user_path(path).exists():
        return f"a model that is not packed, such as {path},"
    return f"there is no {path} here, and a model of the hub"


def _in_torch(
    path: str | Path, packed: bool, device: str, dtype: str, threads: int | None, task: str | None
) -> Session:
    from chinchilla_lm.models import checkpoint as checkpoints
    from chinchilla_lm.runtime.engine.unpacking import unpack_with_codes

    checkpoint, codes = unpack_with_codes(path, task) if packed else (checkpoints.load(path, task=task), None)
    _refuse_fresh(checkpoint, path, task)
    if threads is not None:
        from chinchilla_lm.runtime.torch_backend import set_threads

        set_threads(threads)
    return torch_session(checkpoint, device, dtype, codes)


def _kept_or_made(path: str | Path, form: str, task: str | None) -> tuple[Program, Card]:
    """What `compile_file` makes, or made at an earlier time of the same GGUF file; `kept` says when."""
    place, begun = Place.of(path, form, task), time.perf_counter()
    found = None if place is None else place.read()
    if found is not None:
        return found
    program, card = compile_file(path, form, task)
    if place is not None and time.perf_counter() - begun > WORTH:
        place.keep(program, card)
    return program, card


def compile_file(path: str | Path, form: str, task: str | None = None) -> tuple[Program, Card]:
    """The program of a model that is not packed, and what it is, without the model itself in memory.

    Raises InputError as `load` does.
    """
    from chinchilla_lm.models import checkpoint as checkpoints
    from chinchilla_lm.runtime.engine.compile import compile_model

    with checkpoints.unread(path, task=task) as (checkpoint, weights):
        _refuse_fresh(checkpoint, path, task)
        card = Card.of(checkpoint)
        with ThreadPoolExecutor(1) as meanwhile:
            if card.source is not None and card.source.is_file():
                # A GGUF file's tokenizer is built here; what is wrong with it is said when somebody asks for it.
                meanwhile.submit(lambda: card.tokenizer)
            return compile_model(checkpoint.model, form, weights.read), card


def _refuse_fresh(checkpoint: Checkpoint, path: str | Path, task: str | None) -> None:
    if checkpoint.fresh:
        raise InputError(f"{path} has no trained head for {task}; run chinchilla finetune first")


def torch_session(
    checkpoint: Checkpoint,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    codes: Mapping[str, Quantized] | None = None,
) -> Session:
    """A session in torch on a model in memory, which stays as it is. codes: see TorchBackend.prepared."""
    from chinchilla_lm.runtime.device import resolve_device
    from chinchilla_lm.runtime.torch_backend import TorchBackend, dtype_of

    card = Card.of(checkpoint)
    place = resolve_device(device) if isinstance(device, str) else device
    pad = 0 if card.kind == "language-modeling" else card.pad_id
    backend = TorchBackend.prepared(checkpoint.model, place, dtype_of(dtype, place), pad, codes)
    return Session(backend, card)


def native_session(checkpoint: Checkpoint, dtype: str = "auto", threads: int | None = None) -> Session:
    """A session in the engine on a model in memory, packed here and now in float32 or bfloat16."""
    from chinchilla_lm.runtime.engine.compile import compile_model

    card = Card.of(checkpoint)
    program = compile_model(checkpoint.model, native_format(dtype))
    return Session(NativeBackend(NativeModel(program, threads), card), card)


def engine_serves(device: str, packed: bool = False) -> bool:
    """Whether `auto` means the engine; an EngineWarning where it would, were it there."""
    if device not in ("auto", "cpu"):
        return False
    if device == "auto" and not packed and ("torch" in sys.modules or may_have_gpu()) and "torch" not in missing():
        from chinchilla_lm.runtime.device import resolve_device

        if resolve_device(device).type != "cpu":
            return False
    if engine_module() is not None:
        return True
    warnings.warn(
        "this installation has no native engine, so the model runs on torch, which is slower; "
        "install a C++ compiler and chinchilla-lm anew, without CHINCHILLA_NO_ENGINE",
        EngineWarning,
        stacklevel=3,
    )
    return False
