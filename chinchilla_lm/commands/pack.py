"""`chinchilla pack`: a model as a program of packed weights, which the native engine maps and runs."""

from __future__ import annotations

import argparse
from pathlib import Path

from chinchilla_lm.commands.inspect import add_cache_argument
from chinchilla_lm.console import Console

CERTIFICATE_FAILED = 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The model, its formats or a budget of bits, what to calibrate and judge on, and where to write."""
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="a folder, a hub id (NAME or NAME@REVISION), a GGUF file, or a run's model folder",
    )
    _add_formats(parser)
    parser.add_argument("--task", metavar="T", help="the head to pack, where the model's config names none")
    _add_solving(parser)
    _add_judging(parser)
    parser.add_argument(
        "--screen-head",
        action="store_true",
        help="add a copy of the decoder in 4 and 8 bits, by which greedy choice finds the same tokens and reads little "
        "of the decoder itself; most beside a head of bf16 or f32, and a large vocabulary",
    )
    add_cache_argument(parser)
    parser.add_argument("-o", "--output", required=True, metavar="OUT", help="folder to write to")


def _add_formats(parser: argparse.ArgumentParser) -> None:
    from chinchilla_lm.pack.formats import FORMATS

    parser.add_argument(
        "--format",
        metavar="F",
        help=f"one of {', '.join(FORMATS)}; behind it others for some matrices: int4,head=int8,3.mlp=bf16; "
        "plan: those that compress --formats chose for the model",
    )
    parser.add_argument(
        "--bits",
        type=float,
        metavar="B",
        help="in place of --format: for each matrix the format with which the model loses least, at most so many bits "
        "a weight in the mean over all matrices, scales and padding counted",
    )
    parser.add_argument(
        "--formats", metavar="F,F", help="what --bits chooses from (default: all that round weights to codes)"
    )


def _add_solving(parser: argparse.ArgumentParser) -> None:
    from chinchilla_lm.pack.formats import CALIBRATION_TOKENS, SOLVERS

    parser.add_argument(
        "--solver",
        metavar="S",
        help=f"how weights are rounded: {'; '.join(f'{name}: {what}' for name, what in SOLVERS.items())} "
        "(default: gptq where there are calibration data)",
    )
    parser.add_argument(
        "--calibration",
        metavar="DATA",
        help="data of the model's task, on whose training split --bits measures and the solver calibrates",
    )
    parser.add_argument(
        "--calibration-tokens",
        type=int,
        metavar="N",
        help=f"tokens of it (default {CALIBRATION_TOKENS:,})",
    )
    parser.add_argument(
        "--distil",
        type=int,
        default=0,
        metavar="TOKENS",
        help="tokens of it from which scales, codebooks and norms then learn the original's outputs (default 0)",
    )


def _add_judging(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--margin",
        type=float,
        metavar="M",
        help="judge the packed model on the test split of --data and write its certificate into OUT: the largest loss "
        "that passes, in points of F1 or accuracy, or percent of perplexity; exit status 3 where it is not held",
    )
    parser.add_argument("--data", metavar="DATA", help="data of the model's task, on whose test split it is judged")
    parser.add_argument("--against", metavar="ORIGINAL", help="the model that it is judged against (default: MODEL)")


def run(args: argparse.Namespace, console: Console) -> int:
    """Pack and say what was written. Returns 3 where it was judged and the margin is not held."""
    from chinchilla_lm.pipeline.pack import pack
    from chinchilla_lm.pipeline.packing import Packing

    asked = Packing(
        model=args.model,
        folder=Path(args.output),
        form=args.format,
        bits=args.bits,
        offered=args.formats,
        task=args.task,
        cache=args.cache,
        solver=args.solver,
        calibration=args.calibration,
        calibration_tokens=args.calibration_tokens,
        distil=args.distil,
        against=args.against,
        margin=args.margin,
        data=args.data,
        screen_head=args.screen_head,
    )
    result = pack(asked, console)
    console.result(result)
    certificate = result["certificate"]
    return CERTIFICATE_FAILED if certificate and not certificate["passed"] else 0
