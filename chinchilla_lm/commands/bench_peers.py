"""`chinchilla bench --peers`: the model in our engine beside other programs, each in a process of its own."""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chinchilla_lm.console import Console
from chinchilla_lm.errors import InputError
from chinchilla_lm.files import json_text, write_atomic

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from chinchilla_lm.commands.job import Job
    from chinchilla_lm.models.config import ModelConfig
    from chinchilla_lm.peers.work import Work

# Text that a language model is judged on, and texts that quantisers are shown.
QUALITY_TOKENS, SAMPLES = 8192, 128
DEFAULT_TOKENS, DEFAULT_NEW_TOKENS = 512, 64


def run(args: argparse.Namespace, console: Console) -> int:
    """Race, print, and write what -o asks for. Raises InputError for an unknown peer, a model of another kind, and a
    tagger without data."""
    from chinchilla_lm.commands.job import Job
    from chinchilla_lm.models.checkpoint import load
    from chinchilla_lm.peers import environment, outcome
    from chinchilla_lm.peers.run import Field, compete
    from chinchilla_lm.peers.sources import Sources
    from chinchilla_lm.peers.table import LANGUAGE, TAGGING, chosen
    from chinchilla_lm.recipe import make_recipe
    from chinchilla_lm.runtime import machine
    from chinchilla_lm.runtime.native import native_format
    from chinchilla_lm.runtime.roofline import pass_flops

    peers, commands = chosen(args.peers)
    ignored = {"batch": None, "backend": "auto", "dtype": "auto", "no_memory": False}
    for name, default in ignored.items():
        if getattr(args, name) != default:
            raise InputError(
                f"--{name.replace('_', '-')} has no meaning in a race with peers; leave one of the two away"
            )
    if args.device not in ("auto", "cpu"):
        raise InputError(f"peers race on the CPU, not on {args.device}; leave --device away")
    folder = None if args.output is None else Path(args.output)
    if folder is not None:
        _open(folder)
    if not 0 < args.seconds < math.inf:
        raise InputError(f"seconds {args.seconds} is not a number above 0; pass --seconds 60")
    checkpoint = load(args.model, task=args.task)
    config = checkpoint.model.config
    task = config.head.kind
    if task not in (LANGUAGE, TAGGING) or (task == LANGUAGE and not config.causal):
        raise InputError(f"peers race causal language models and taggers; this one is for {task}; leave --peers away")
    if task == TAGGING and args.data is None:
        raise InputError("a tagger is raced on its texts: data is missing; pass --data FOLDER")
    given = {"model": args.model, "task": task, "data": args.data, "test": args.test, "threads": args.threads}
    job = Job(make_recipe({key: value for key, value in given.items() if value is not None}), console)
    original = checkpoint if args.against is None else load(args.against, task=args.task)
    if args.against is not None:
        _check_alike(args, config, original.model.config)
    work, judge = _work(args, job, original.model.config.max_positions)
    sizes = [work.tokens] if task == LANGUAGE else [len(text) for text in work.texts]
    flops = {
        whose: sum(pass_flops(one.model, 1, size) for size in sizes)
        for whose, one in (("ours", checkpoint), ("theirs", original))
    }
    console.say("measuring the machine")
    dtype = {"bf16": "bfloat16", "f32": "float32"}[native_format("auto")]
    roof = {"bandwidth_gb_s": machine.measure_bandwidth(), "gemm_gflops": machine.measure_gemm(dtype)}
    with tempfile.TemporaryDirectory(prefix="chinchilla-bench-") as temporary:
        below = Path(temporary)
        field = Field(
            Sources(args.model, checkpoint, below),
            Sources(args.against or args.model, original, below),
            below,
            Path(args.peers_home) if args.peers_home else environment.home(),
            peers,
            commands,
            args.threads,
            work.texts[:: max(1, len(work.texts) // SAMPLES)][:SAMPLES],
        )
        result = compete(field, work, args.seconds, roof, flops, judge, console)
    result |= {"machine": machine.describe(), "roofline": roof, "model": args.model, "against": args.against}
    names, cells = outcome.table(result["rows"])
    others = "" if args.against is None else f" here, {args.against} in the others"
    title = f"{args.model}{others}, {result['rounds']} rounds in turn: medians [quartiles]"
    console.table(names, cells, title)
    if folder is not None:
        write_atomic(folder / "bench.json", json_text(result, indent=1) + "\n")
        write_atomic(folder / "bench.md", outcome.markdown(title, result["rows"], _notes(result, task)))
        write_atomic(folder / "bench.svg", outcome.chart(Path(args.model).name, result["rows"]))
        console.show(f"written: {folder / 'bench.md'}, bench.json and bench.svg")
    console.result(result)
    return 0


def _notes(result: dict[str, Any], task: str) -> list[str]:
    cpu, roof = result["machine"]["cpu"], result["roofline"]
    notes = [
        f"{cpu['model']}, {cpu['usable_cores']} cores, {', '.join(cpu['instruction_sets'])}",
        f"roof, measured: reads {roof['bandwidth_gb_s']:.1f} GB/s, products {roof['gemm_gflops']:,.0f} GFLOP/s",
        "every engine in a process of its own, stopped while another is on turn; no prompt comes twice",
    ]
    if task == "language-modeling":
        return [*notes, "of bandwidth: bytes of the weights x decode tokens/s over what the machine reads"]
    return [*notes, "latency: texts alone, one after the other"]


def _open(folder: Path) -> None:
    """What comes of hours is not to be lost for a folder that cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise InputError(f"{folder} cannot be written ({error.strerror}); pass another -o") from error


def _check_alike(args: argparse.Namespace, ours: ModelConfig, theirs: ModelConfig) -> None:
    for what, one, other in (
        ("task", ours.head.kind, theirs.head.kind),
        ("labels", ours.head.labels, theirs.head.labels),
        ("vocabulary", ours.vocab_size, theirs.vocab_size),
    ):
        if one != other:
            raise InputError(
                f"{args.model} and {args.against} differ in their {what}; pass the original that this was made from"
            )


def _work(args: argparse.Namespace, job: Job, most: int) -> tuple[Work, Callable[..., dict[str, float]] | None]:
    """What all are asked to do, and what judges a tagger's logits. most: positions of the others' model."""
    from chinchilla_lm.peers.work import Work

    config = job.checkpoint.model.config
    positions = min(config.max_positions, most)
    # Ids behind the tokenizer's, which fill a vocabulary up, are no text.
    vocabulary = min(config.vocab_size, len(job.checkpoint.tokenizer))
    if config.head.kind == "language-modeling":
        tokens = DEFAULT_TOKENS if args.tokens is None else args.tokens
        new = DEFAULT_NEW_TOKENS if args.new_tokens is None else args.new_tokens
        if tokens < 1 or new < 2 or tokens + new > positions:
            raise InputError(
                f"{tokens} + {new} tokens: at least 1 + 2 are needed, and no more than the model's "
                f"{positions} positions; pass others with --tokens and --new-tokens"
            )
        windows: list[list[int]] = []
        if args.data is not None:
            encoded = job.encode(job.dataset.records("test"))
            windows = [one.ids for one in encoded[: max(1, QUALITY_TOKENS // job.window)]]
        return Work(config.head.kind, vocabulary, positions, tokens, new, windows=windows), None
    for flag in ("tokens", "new_tokens"):
        if getattr(args, flag) is not None:
            raise InputError(
                f"--{flag.replace('_', '-')} has no meaning for a tagger, which is raced on its texts; leave it away"
            )
    from chinchilla_lm.data.batches import batches
    from chinchilla_lm.evaluate.judge import Judge

    records = job.dataset.records("test")
    encoded = job.encode(records)
    made = batches(encoded, max_tokens=4096, pad_id=job.checkpoint.pad_id)
    judge = Judge(job.recipe.task, records, encoded, made, job.labels, legal_tags=job.legal_tags)

    def judged(logits: list[NDArray[np.float32]]) -> dict[str, float]:
        import torch
        from torch.nn.utils.rnn import pad_sequence

        def batched() -> Iterator[torch.Tensor]:
            for batch in made:
                yield pad_sequence([torch.from_numpy(logits[row].copy()) for row in batch.rows], batch_first=True)

        outputs = batched()
        sums = judge(lambda _: next(outputs)).measurement.sums
        return {"entity_f1": sums["entity_f1"].value}

    return Work(config.head.kind, vocabulary, positions, texts=[one.ids for one in encoded]), judged
