"""`chinchilla inspect`: the chain of a model, what each link weighs, and what share of the time it takes here."""

from __future__ import annotations

import argparse
from typing import Any

from chinchilla_lm.console import Console
from chinchilla_lm.results import BlockParameters, InspectResult, PassTime

TASKS = ("language-modeling", "token-classification", "text-classification", "ranking", "embedding")
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


def add_cache_argument(parser: argparse.ArgumentParser) -> None:
    """--cache, for what writes."""
    parser.add_argument(
        "--cache",
        default="auto",
        metavar="{auto,bf16,int8}",
        help="how the engine keeps keys and values; auto: int8 beside weights of 8 and 4 bits, else bf16",
    )


def run(args: argparse.Namespace, console: Console) -> int:
    """Print the chain."""
    from chinchilla_lm.pipeline.inspect import inspect

    shape = None if args.no_time else (args.batch, args.tokens)
    found = inspect(
        args.model, console, task=args.task, shape=shape, device=args.device, dtype=args.dtype, threads=args.threads
    )
    show(found, console)
    console.result(found)
    return 0


def show(found: InspectResult, console: Console) -> None:
    """What `inspect` found, as a table between two lines, and the certificate."""
    from chinchilla_lm.pipeline.held import lines_of

    timed = found.get("time")
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
    share = [] if timed is None else ["share"]
    columns = ["block", "attention", *share, "MLP", *share]
    rows = [_row(block, timed) for block in found["blocks"]]
    console.table(columns, rows, "parameters a link" + ("" if timed is None else ", and its share of the time"))
    console.show(_rest(found))
    for line in lines_of(found["certificate"]):
        console.show(line)


def _row(block: BlockParameters, timed: PassTime | None) -> list[Any]:
    row: list[Any] = [block["block"]]
    for link in (block["attn"], block["mlp"]):
        gone = {"keep": "norm only", "lose": ""}
        row.append(link["parameters"] if link["dropped"] is None else gone[link["dropped"]])
        if timed is not None:
            spent = timed["link_us"].get(link["name"])
            row.append("" if spent is None else f"{spent / timed['total_us']:.1%}")
    return row


def _rest(found: InspectResult) -> str:
    sizes = found["sizes"]
    head = "shared with the embedding" if found["tied"] else f"{sizes['head']['parameters']:,}"
    text = f"embedding {sizes['embedding']['parameters']:,} parameters, head {head}"
    if found["dropped"]:
        text += f"; {len(found['dropped'])} of {2 * len(found['blocks'])} links dropped"
    timed = found.get("time")
    if timed is not None:
        text += (
            f"; {timed['total_us'] / 1e3:,.2f} ms a pass of {timed['batch']} x {timed['tokens']} tokens, "
            f"{timed['fixed_us'] / timed['total_us']:.1%} of it outside the links"
        )
    return text
