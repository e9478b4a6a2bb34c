"""The chain of a model, what each link weighs, and what share of the time it takes here."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch

from chinchilla_lm.errors import InputError
from chinchilla_lm.models.batch import Batch
from chinchilla_lm.models.checkpoint import Checkpoint, load
from chinchilla_lm.models.transformer import Transformer
from chinchilla_lm.runtime.cpu import usable_cores
from chinchilla_lm.runtime.device import resolve_device
from chinchilla_lm.runtime.engine.native import engine_module
from chinchilla_lm.runtime.engine.packed import is_packed, read_packed
from chinchilla_lm.runtime.engine.program import Program
from chinchilla_lm.runtime.engine.served import NativeForward
from chinchilla_lm.runtime.engine.unpacking import unpack_checkpoint
from chinchilla_lm.runtime.measuring.roofline import size_of
from chinchilla_lm.runtime.measuring.shape import prompt
from chinchilla_lm.runtime.prepare import prepare
from chinchilla_lm.runtime.torch_backend import dtype_of, set_threads
from chinchilla_lm.score.timing import LinkTimes, time_links, time_native_links

KINDS = ("attn", "mlp")
DEFAULT_TOKENS = 128
SECONDS = 2.0  # of timing: for a look; a search measures for longer


def inspect(
    model: str,
    *,
    task: str | None = None,
    shape: tuple[int, int | None] | None = (1, None),
    device: str = "auto",
    dtype: str = "auto",
    threads: int | None = None,
) -> dict[str, Any]:
    """A model's chain as plain values. shape: sequences and tokens (None: 128, or as
    many as fit) to time; None: no timing. threads: of the engine, in which a packed model is timed.

    Raises InputError for a model that cannot be read, or a shape that it cannot take.
    """
    if threads is not None:
        set_threads(threads)
    program = read_packed(model)[0] if is_packed(model) else None
    if program is not None and shape is not None:
        _check_engine(device, dtype)
    checkpoint = load(model, task=task) if program is None else unpack_checkpoint(model, task)
    found = describe(checkpoint) | {"model": model}
    if program is not None:
        found |= {"dtype": program.header["format"], "bytes": int(program.data.size)}
        found["sizes"] = {name: {"parameters": one["parameters"]} for name, one in found["sizes"].items()}
    if shape is not None:
        rows, tokens = shape
        if tokens is None:
            tokens = min(DEFAULT_TOKENS, checkpoint.model.config.max_positions)
        _check_shape(checkpoint.model, rows, tokens)
        if program is None:
            times = _time(checkpoint.model, rows, tokens, device, dtype)
        else:
            times = _time_packed(checkpoint.model, program, rows, tokens, threads)
        found["time"] = {"batch": rows, "tokens": tokens, **asdict(times)}
    return found


def describe(checkpoint: Checkpoint) -> dict[str, Any]:
    """What a model is made of: its config in short, its blocks, and the parameters and bytes of its parts."""
    model = checkpoint.model
    config = model.config
    parts = {"embedding": size_of(model.embedding), "head": size_of(model.head), "total": size_of(model)}
    if model.norm is not None:
        parts["norm"] = size_of(model.norm)
    blocks = [
        {"block": block, **{kind: _link(model, f"{block}.{kind}") for kind in KINDS}}
        for block in range(config.num_blocks)
    ]
    return {
        "family": config.family,
        "head": config.head.kind,
        "tied": config.head.tied,
        "labels": list(config.head.labels),
        "causal": config.causal,
        "positions": config.max_positions,
        "vocabulary": config.vocab_size,
        "hidden": config.hidden_size,
        "heads": config.num_heads,
        "kv_heads": config.num_kv_heads,
        "intermediate": config.intermediate_size,
        "dtype": str(model.embedding.tokens.weight.dtype).removeprefix("torch."),
        "fresh": list(checkpoint.fresh),
        "dropped": dict(model.dropped),
        "blocks": blocks,
        "sizes": {name: asdict(size) for name, size in parts.items()},
        "parameters": parts["total"].parameters,
        "bytes": parts["total"].bytes,
    }


def _link(model: Transformer, name: str) -> dict[str, Any]:
    """A link that is left: its parameters; a dropped one: what became of its norm."""
    if name in model.dropped:
        return {"name": name, "parameters": 0, "dropped": model.dropped[name]}
    return {"name": name, "parameters": size_of(model.link(name)).parameters, "dropped": None}


def _check_shape(model: Transformer, rows: int, tokens: int) -> None:
    if rows < 1 or not 1 <= tokens <= model.config.max_positions:
        raise InputError(
            f"a batch of {rows} times {tokens} tokens is not 1 or more times 1 to {model.config.max_positions}; "
            "pass other --batch and --tokens"
        )


def _check_engine(device: str, dtype: str) -> None:
    """A packed model is timed in the engine or not at all."""
    if device not in ("auto", "cpu"):
        raise InputError(f"a packed model is timed on the CPU, not on {device}; leave --device away")
    if dtype != "auto":
        raise InputError(f"dtype {dtype} is not that of a packed model; leave --dtype away")
    if engine_module() is None:
        raise InputError("a packed model is timed in the native engine, which is not installed; pass --no-time")


def _time(model: Transformer, rows: int, tokens: int, device: str, dtype: str) -> LinkTimes:
    place = resolve_device(device)
    ready = prepare(model, place, dtype_of(dtype, place))
    return time_links(ready, _batch(model, rows, tokens).to(place), seconds=SECONDS)


def _time_packed(model: Transformer, program: Program, rows: int, tokens: int, threads: int | None) -> LinkTimes:
    """In the engine. model: the program's twin, which says what is what."""
    served = NativeForward(program, model.config.head.kind, threads or usable_cores())
    return time_native_links(model, served, _batch(model, rows, tokens), seconds=SECONDS)


def _batch(model: Transformer, rows: int, tokens: int) -> Batch:
    return Batch(torch.from_numpy(prompt(0, rows, tokens, model.config.vocab_size)))
