"""What a packed model is made of, from its program's header alone, and its times in the engine. Without torch."""

from __future__ import annotations

from typing import Any

import numpy as np

from chinchilla_lm.errors import InputError
from chinchilla_lm.models.config import ModelConfig
from chinchilla_lm.pipeline.inspect_shape import Wanted, fitting
from chinchilla_lm.results import BlockParameters, InspectResult, LinkParameters, PassTime, Size
from chinchilla_lm.runtime.card import Card
from chinchilla_lm.runtime.engine import demand
from chinchilla_lm.runtime.engine.native import NativeModel, engine_module
from chinchilla_lm.runtime.engine.packed import read_packed
from chinchilla_lm.runtime.engine.program import Program
from chinchilla_lm.runtime.measuring.operations import time_operations
from chinchilla_lm.runtime.measuring.shape import prompt


def inspect_packed(
    model: str,
    task: str | None,
    shape: Wanted | None,
    device: str,
    dtype: str,
    threads: int | None,
    seconds: float,
) -> InspectResult:
    """See `inspect`. Raises InputError for a damaged folder, another task, and what a packed model is not timed in."""
    program, card = read_packed(model)
    if task not in (None, card.kind):
        raise InputError(f"this packed model is for {card.kind}, not {task}; load another one")
    if shape is not None:
        _check_engine(device, dtype)
    try:  # what the engine has no use for may be damaged still
        found = describe(program, card, model)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise InputError(
            f"the program in {model} does not fit its config ({error}); run chinchilla pack again"
        ) from error
    if shape is not None:
        found["time"] = _time(program, card, *fitting(shape, card.max_positions), threads, seconds)
    return found


def describe(program: Program, card: Card, name: str) -> InspectResult:
    """A model's config in short, its blocks, and the parameters of its parts. name: what it was called.

    Raises ValueError, or what a header of other types leads to, where the program is not that of its config.
    """
    header, config = program.header, card.config()
    _check_links(header["operations"], config)
    tied = card.kind == "language-modeling" and config.head.tied
    sizes = {
        "embedding": demand.embedding_parameters(header) + (_decoder(header) if tied else 0),
        "head": demand.head_parameters(header),
        "total": demand.count_parameters(header),
    }
    if header["head"]["norm"] is not None:
        sizes["norm"] = demand.norm_parameters(header)
    blocks = _blocks(header, config.num_blocks)
    links = [link for block in blocks for link in (block["attn"], block["mlp"])]
    return InspectResult(
        model=name,
        family=config.family,
        head=card.kind,
        tied=tied,
        labels=list(card.labels),
        causal=card.causal,
        positions=card.max_positions,
        vocabulary=card.vocabulary,
        hidden=card.hidden,
        heads=config.num_heads,
        kv_heads=config.num_kv_heads,
        intermediate=config.intermediate_size,
        dtype=str(header["format"]),
        fresh=[],
        dropped={link["name"]: link["dropped"] for link in links if link["dropped"] is not None},
        blocks=blocks,
        sizes={part: Size(parameters=count) for part, count in sizes.items()},
        parameters=sizes["total"],
        bytes=program.size,
        certificate=None,
    )


def _decoder(header: dict[str, Any]) -> int:
    """Weights of a head's last matrix, which is the embedding too where they are tied."""
    output = header["head"]["output"]
    return int(output["outputs"] * output["inputs"])


def _check_links(operations: list[dict[str, Any]], config: ModelConfig) -> None:
    """Each operation is a link of the config, and of its widths. Raises ValueError where one is not."""
    wanted: dict[str, dict[str, int]] = {
        "attention": {"heads": config.num_heads, "kv_heads": config.num_kv_heads, "head_dim": config.head_dim},
        "delta": {},
        "mlp": {"gated": config.gated},
        "norm": {},
    }
    known = {f"{block}.{kind}" for block in range(config.num_blocks) for kind in ("attn", "mlp")}
    for one in operations:
        if one["name"] not in known:
            raise ValueError(f"{one['name']!r:.60} is no link of {config.num_blocks} blocks")
        for key, value in wanted[one["kind"]].items():
            if one[key] != value:
                raise ValueError(f"{key} of {one['name']} is {one[key]!r:.60}, not {value}")
        if one["kind"] == "mlp" and one["second"]["inputs"] != config.intermediate_size:
            raise ValueError(f"{one['name']} is {one['second']['inputs']!r:.60} wide, not {config.intermediate_size}")


def _blocks(header: dict[str, Any], count: int) -> list[BlockParameters]:
    operations = {one["name"]: one for one in header["operations"]}

    def link(name: str) -> LinkParameters:
        one = operations.get(name)
        if one is None or one["kind"] == "norm":
            return LinkParameters(name=name, parameters=0, dropped="lose" if one is None else "keep")
        return LinkParameters(name=name, parameters=demand.parameters_of(one, header["hidden"]), dropped=None)

    return [
        BlockParameters(block=block, attn=link(f"{block}.attn"), mlp=link(f"{block}.mlp")) for block in range(count)
    ]


def _check_engine(device: str, dtype: str) -> None:
    """A packed model is timed in the engine or not at all."""
    if device not in ("auto", "cpu"):
        raise InputError(f"a packed model is timed on the CPU, not on {device}; leave --device away")
    if dtype != "auto":
        raise InputError(f"dtype {dtype} is not that of a packed model; leave --dtype away")
    if engine_module() is None:
        raise InputError("a packed model is timed in the native engine, which is not installed; pass --no-time")


def _time(program: Program, card: Card, rows: int, tokens: int, threads: int | None, seconds: float) -> PassTime:
    """Passes as a server has them: of a causal language model only the last position's logits."""
    model = NativeModel(program, threads)
    everywhere = card.kind == "token-classification" or (card.kind == "language-modeling" and not card.causal)
    ids = list(prompt(0, rows, tokens, card.vocabulary).astype(np.int32))

    def read() -> None:
        model.run(ids, everywhere=everywhere)
        model.rest()

    links = [one for one in program.header["operations"] if one["kind"] != "norm"]
    times = time_operations(model, read, {one["name"]: _geometry(one) for one in links}, seconds)
    return PassTime(batch=rows, tokens=tokens, total_us=times.total_us, fixed_us=times.fixed_us, link_us=times.link_us)


def _geometry(one: dict[str, Any]) -> object:
    """What decides how long an operation takes."""
    shapes = ((one[part]["outputs"], one[part]["inputs"]) for part in ("first", "second"))
    return one["kind"], one.get("window"), *shapes
