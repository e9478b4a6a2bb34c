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
        help="a folder, a hub id (NAME or NAME@REVISION), a GGUF file, a run's model folder, or a packed model, whose "
        "codes are kept (those of codebooks and sparse matrices as 8 bits)",
    )
    parser.add_argument(
        "--to",
        required=True,
        metavar="TARGET",
        help="hf: a stock folder that transformers loads; compressed-tensors: the same with rounded matrices, for vLLM "
        "and transformers; gguf: a file that llama.cpp runs",
    )
    parser.add_argument(
        "--format",
        metavar="F",
        help="how numbers are written; hf: f32 or bf16; gguf: f32, f16, bf16, q8_0, q4_0 or q4_1; compressed-tensors, "
        "of a model that is not packed: int4-sym, int8 and as pack has them (default: as they are; hf: f32)",
    )
    parser.add_argument(
        "-o", "--output", required=True, metavar="OUT", help="folder to write to; for gguf a file NAME.gguf"
    )
    parser.add_argument("--force", action="store_true", help="replace an earlier export that is in OUT")


def run(args: argparse.Namespace, console: Console) -> int:
    """Export and say what was written."""
    from chinchilla_lm.pipeline.export import Exporting, export

    asked = Exporting(args.model, args.to, Path(args.output), args.format, args.force)
    console.result(export(asked, console))
    return 0
