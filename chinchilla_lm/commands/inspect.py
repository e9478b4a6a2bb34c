"""`chinchilla inspect`: the chain of a model, what each link weighs, and what share of the time it takes here."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from chinchilla_lm.console import Console
from chinchilla_lm.errors import InputError

if TYPE_CHECKING:
    from chinchilla_lm.models.batch import Batch
    from chinchilla_lm.models.checkpoint import Checkpoint
    from chinchilla_lm.models.transformer import Transformer
    from chinchilla_lm.runtime.engine.program import Program
    from chinchilla_lm.score.timing import LinkTimes

TASKS = ("language-modeling", "token-classification", "text-classification", "ranking", "embedding")
KINDS = ("attn", "mlp")
DEFAULT_TOKENS = 128
_SECONDS = 2.0  # of timing: for a look; a search measures for longer
# Labels that are named in the summary; the JSON has them all.
_SHOWN_LABELS = 12


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The model, the shape of the timed batch, and whether to time at all."""
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="a folder (also a packed or a run's), a hub id (NAME or NAME@REVISION) or a GGUF file",
    )
    parser.add_argument("--task", choices=TASKS, help="give the model this head (default: the one it was saved with)")
    parser.add_argument("--batch", type=int, default=1, metavar="N", help="sequences a timed batch (default 1)")
    parser.add_argument("--tokens", type=int, metavar="N", help="tokens a sequence (default 128)")
    parser.add_argument("--no-time", action="store_true", help="do not run the model")
    add_device_arguments(parser)


def add_device_arguments(parser: argparse.ArgumentParser) -> None:
    """--device, --dtype and --threads, as a recipe has them."""
    parser.add_argument("--device", default="auto", metavar="{cpu,cuda,auto}", help="where it runs (default auto)")
    parser.add_argument(
        "--dtype",
        default="auto",
        metavar="{auto,float32,bfloat16}",
        help="number format; auto: bfloat16 where it is native",
    )
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: one for each core)")


def run(args: argparse.Namespace, console: Console) -> int:
    """Print the chain. Raises InputError for a model or a shape that cannot be."""
    from chinchilla_lm.runtime.torch_backend import set_threads

    if args.threads is not None:
        set_threads(args.threads)
    shape = None if args.no_time else (args.batch, args.tokens)
    how = {"device": args.device, "dtype": args.dtype, "threads": args.threads}
    console.result(inspect(args.model, console, task=args.task, shape=shape, **how))
    return 0


def inspect(
    model: str,
    console: Console,
    *,
    task: str | None = None,
    shape: tuple[int, int | None] | None = (1, None),
    device: str = "auto",
    dtype: str = "auto",
    threads: int | None = None,
) -> dict[str, Any]:
    """Show a model's chain and return it as plain values. shape: sequences and tokens (None: 128, or as
    many as fit) to time; None: no timing. threads: of the engine, in which a packed model is timed.

    Raises InputError for a model that cannot be read, or a shape that it cannot take.
    """
    from chinchilla_lm.models.checkpoint import load
    from chinchilla_lm.pipeline.held import certificate_in
    from chinchilla_lm.runtime.engine.packed import is_packed, read_packed
    from chinchilla_lm.runtime.engine.unpacking import unpack_checkpoint

    program = read_packed(model)[0] if is_packed(model) else None
    if program is not None and shape is not None:
        _check_engine(device, dtype)
    checkpoint = load(model, task=task) if program is None else unpack_checkpoint(model, task)
    issued = certificate_in(checkpoint.source, console)
    found = describe(checkpoint) | {"model": model, "certificate": None if issued is None else issued.model_dump()}
    if program is not None:
        found |= {"dtype": program.header["format"], "bytes": int(program.data.size)}
        found["sizes"] = {name: {"parameters": one["parameters"]} for name, one in found["sizes"].items()}
    times = None
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
    _show(found, times, console)
    for line in [] if issued is None else issued.lines():
        console.show(line)
    return found


def describe(checkpoint: Checkpoint) -> dict[str, Any]:
    """What a model is made of: its config in short, its blocks, and the parameters and bytes of its parts."""
    from chinchilla_lm.runtime.measuring.roofline import size_of

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
    from chinchilla_lm.runtime.measuring.roofline import size_of

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
    from chinchilla_lm.runtime.engine.native import engine_module

    if device not in ("auto", "cpu"):
        raise InputError(f"a packed model is timed on the CPU, not on {device}; leave --device away")
    if dtype != "auto":
        raise InputError(f"dtype {dtype} is not that of a packed model; leave --dtype away")
    if engine_module() is None:
        raise InputError("a packed model is timed in the native engine, which is not installed; pass --no-time")


def _time(model: Transformer, rows: int, tokens: int, device: str, dtype: str) -> LinkTimes:
    from chinchilla_lm.runtime.device import resolve_device
    from chinchilla_lm.runtime.prepare import prepare
    from chinchilla_lm.runtime.torch_backend import dtype_of
    from chinchilla_lm.score.timing import time_links

    place = resolve_device(device)
    ready = prepare(model, place, dtype_of(dtype, place))
    return time_links(ready, _batch(model, rows, tokens).to(place), seconds=_SECONDS)


def _time_packed(model: Transformer, program: Program, rows: int, tokens: int, threads: int | None) -> LinkTimes:
    """In the engine. model: the program's twin, which says what is what."""
    from chinchilla_lm.runtime.cpu import usable_cores
    from chinchilla_lm.runtime.engine.served import NativeForward
    from chinchilla_lm.score.timing import time_native_links

    served = NativeForward(program, model.config.head.kind, threads or usable_cores())
    return time_native_links(model, served, _batch(model, rows, tokens), seconds=_SECONDS)


def _batch(model: Transformer, rows: int, tokens: int) -> Batch:
    import torch

    from chinchilla_lm.models.batch import Batch
    from chinchilla_lm.runtime.measuring.shape import prompt

    return Batch(torch.from_numpy(prompt(0, rows, tokens, model.config.vocab_size)))


def _show(found: dict[str, Any], times: LinkTimes | None, console: Console) -> None:
    direction = "causal" if found["causal"] else "bidirectional"
    console.show(
        f"{found['model']}: {found['family']}, {direction}, {found['head']}; {found['parameters']:,} parameters, "
        f"{found['bytes'] / 1e6:,.1f} MB in {found['dtype']}; {found['positions']:,} positions, "
        f"{found['vocabulary']:,} words, {found['hidden']} features"
    )
    if found["labels"]:
        more = len(found["labels"]) - _SHOWN_LABELS
        console.show(
            "labels: " + ", ".join(found["labels"][:_SHOWN_LABELS]) + (f" and {more} more" if more > 0 else "")
        )
    if found["fresh"]:
        console.warn(f"the head has new, random weights ({', '.join(found['fresh'])}); fine-tune the model before use")
    share = ["share"] if times else []
    columns = ["block", "attention", *share, "MLP", *share]
    rows = [_row(block, times) for block in found["blocks"]]
    console.table(columns, rows, "parameters a link" + (", and its share of the time" if times else ""))
    console.show(_rest(found, times))


def _row(block: dict[str, Any], times: LinkTimes | None) -> list[Any]:
    row: list[Any] = [block["block"]]
    for link in (block[kind] for kind in KINDS):
        gone = {"keep": "norm only", "lose": ""}
        row.append(link["parameters"] if link["dropped"] is None else gone[link["dropped"]])
        if times is not None:
            spent = times.link_us.get(link["name"])
            row.append("" if spent is None else f"{spent / times.total_us:.1%}")
    return row


def _rest(found: dict[str, Any], times: LinkTimes | None) -> str:
    sizes = found["sizes"]
    head = "shared with the embedding" if found["tied"] else f"{sizes['head']['parameters']:,}"
    text = f"embedding {sizes['embedding']['parameters']:,} parameters, head {head}"
    if found["dropped"]:
        text += f"; {len(found['dropped'])} of {2 * len(found['blocks'])} links dropped"
    if times is not None:
        timed = found["time"]
        text += (
            f"; {times.total_us / 1e3:,.2f} ms a pass of {timed['batch']} x {timed['tokens']} tokens, "
            f"{times.fixed_us / times.total_us:.1%} of it outside the links"
        )
    return text
