"""`chinchilla export`: write a model as other programs read it."""

from __future__ import annotations

import argparse
from pathlib import Path

from chinchilla_lm.console import Console


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The model, the format, and where to write."""
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="a folder, a hub id (NAME or NAME@REVISION), a GGUF file, or a run's model folder",
    )
    parser.add_argument("--to", required=True, metavar="FORMAT", help="hf: a stock folder that transformers loads")
    parser.add_argument("-o", "--output", required=True, metavar="OUT", help="folder to write to")
    parser.add_argument("--force", action="store_true", help="replace an earlier export that is in OUT")


def run(args: argparse.Namespace, console: Console) -> int:
    """Export and say what was written."""
    from chinchilla_lm.pipeline.export import export

    console.result(export(args.model, args.to, Path(args.output), console, force=args.force))
    return 0
