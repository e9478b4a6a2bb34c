"""`chinchilla evaluate`: a model's quality on a split, alone or paired against another model."""

from __future__ import annotations

import argparse

from chinchilla_lm.console import Console
from chinchilla_lm.recipe import add_flags, from_args

FIELDS = (
    "model", "task", "data", "train", "dev", "test", "text_column", "label_column",
    "group_column", "time_column", "split_by", "encoding", "margin", "metric",
    "device", "dtype", "backend", "threads", "context", "max_tokens", "seed",
)  # fmt: skip
CERTIFICATE_FAILED = 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The fields of a recipe that decide an evaluation, and what to compare with."""
    add_flags(parser, FIELDS)
    parser.add_argument("--split", default="test", metavar="SPLIT", help="train, dev or test (default test)")
    parser.add_argument(
        "--against",
        metavar="MODEL",
        help="certify MODEL against this original, paired; with --margin, on test, beside it as certificate.json",
    )
    parser.add_argument("--predictions", metavar="FILE", help="write one JSON line an example")


def run(args: argparse.Namespace, console: Console) -> int:
    """Evaluate and print. Returns 3 where a comparison was asked for and its certificate failed."""
    from chinchilla_lm.pipeline.evaluate import evaluate

    recipe = from_args(args)
    result = evaluate(recipe, console, split=args.split, against=args.against, predictions=args.predictions)
    console.result(result)
    certificate = result.get("certificate")
    return CERTIFICATE_FAILED if certificate and not certificate["passed"] else 0
