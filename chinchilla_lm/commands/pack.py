"""`chinchilla pack`: a model as a program of packed weights, which the native engine maps and runs."""

from __future__ import annotations

import argparse
from pathlib import Path

from chinchilla_lm.commands.inspect import add_cache_argument
from chinchilla_lm.console import Console


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The model, the format, and where to write."""
    from chinchilla_lm.pack.formats import FORMATS

    parser.add_argument(
        "model",
        metavar="MODEL",
        help="a folder, a hub id (NAME or NAME@REVISION), a GGUF file, or a run's model folder",
    )
    parser.add_argument("--format", required=True, metavar="F", help=f"one of {', '.join(FORMATS)}")
    parser.add_argument("--task", metavar="T", help="the head to pack, where the model's config names none")
    add_cache_argument(parser)
    parser.add_argument("-o", "--output", required=True, metavar="OUT", help="folder to write to")


def run(args: argparse.Namespace, console: Console) -> int:
    """Pack and say what was written."""
    from chinchilla_lm.pipeline.pack import pack

    console.result(pack(args.model, args.format, Path(args.output), console, args.task, args.cache))
    return 0
