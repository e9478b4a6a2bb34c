"""`chinchilla compress`: the main job. Score, search, shorten, recover, certify, report, in one run folder."""

from __future__ import annotations

import argparse

from chinchilla_lm.console import Console
from chinchilla_lm.recipe import add_flags, from_args

FIELDS = (
    "model", "task", "data", "train", "dev", "test", "calibration", "guard",
    "text_column", "label_column", "group_column", "time_column", "split_by", "encoding",
    "output", "speedup", "latency_ms", "formats", "memory_mb", "margin", "metric", "method", "max_measures",
    "device", "dtype", "backend", "threads", "parallel", "batch", "tokens", "new_tokens",
    "context", "max_tokens", "seed", "calibration_tokens", "score_loss", "recover",
)  # fmt: skip
CERTIFICATE_FAILED = 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Every field of a recipe."""
    add_flags(parser, FIELDS)


def run(args: argparse.Namespace, console: Console) -> int:
    """Run the main job. Returns 0 where the certificate passed, 3 where it failed."""
    from chinchilla_lm.pipeline.compress import compress

    result = compress(from_args(args), console)
    console.result(result)
    return 0 if result["verdict"] == "passed" else CERTIFICATE_FAILED
