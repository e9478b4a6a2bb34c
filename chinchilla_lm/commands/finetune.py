"""`chinchilla finetune`: train a pretrained model for a task and keep the weights that are best on dev."""

from __future__ import annotations

import argparse

from chinchilla_lm.console import Console
from chinchilla_lm.recipe import add_flags, from_args

FIELDS = (
    "model", "task", "data", "train", "dev", "test", "output", "text_column", "label_column",
    "group_column", "time_column", "split_by", "encoding",
    "device", "dtype", "threads", "parallel", "context", "bidirectional", "max_tokens", "seed", "finetune",
)  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The fields of a recipe that decide a fine-tuning."""
    add_flags(parser, FIELDS)


def run(args: argparse.Namespace, console: Console) -> int:
    """Fine-tune and print the test metrics."""
    from chinchilla_lm.pipeline.finetune import finetune

    result = finetune(from_args(args), console)
    console.result(result)
    return 0
