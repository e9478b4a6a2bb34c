"""`chinchilla pack`: a model as a program of packed weights, which the native engine maps and runs."""

from __future__ import annotations

import argparse
from pathlib import Path

from chinchilla_lm.commands.inspect import add_cache_argument
from chinchilla_lm.console import Console


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The model, the format, and where to write."""
    from chinchilla_lm.pack.formats import CALIBRATION_TOKENS, FORMATS, SOLVERS

    parser.add_argument(
        "model",
        metavar="MODEL",
        help="a folder, a hub id (NAME or NAME@REVISION), a GGUF file, or a run's model folder",
    )
    parser.add_argument(
        "--format",
        required=True,
        metavar="F",
        help=f"one of {', '.join(FORMATS)}; behind it others for some matrices: int4,head=int8,3.mlp=bf16; "
        "plan: those that compress --formats chose for the model",
    )
    parser.add_argument("--task", metavar="T", help="the head to pack, where the model's config names none")
    parser.add_argument(
        "--solver",
        metavar="S",
        help=f"how weights are rounded: {'; '.join(f'{name}: {what}' for name, what in SOLVERS.items())} "
        "(default: gptq where there are calibration data)",
    )
    parser.add_argument(
        "--calibration", metavar="DATA", help="data of the model's task, whose training split the solver reads"
    )
    parser.add_argument(
        "--calibration-tokens",
        type=int,
        metavar="N",
        help=f"tokens of it (default {CALIBRATION_TOKENS:,})",
    )
    add_cache_argument(parser)
    parser.add_argument("-o", "--output", required=True, metavar="OUT", help="folder to write to")


def run(args: argparse.Namespace, console: Console) -> int:
    """Pack and say what was written."""
    from chinchilla_lm.pipeline.pack import Packing, pack

    asked = Packing(
        args.model,
        args.format,
        Path(args.output),
        args.task,
        args.cache,
        args.solver,
        args.calibration,
        args.calibration_tokens,
    )
    console.result(pack(asked, console))
    return 0
