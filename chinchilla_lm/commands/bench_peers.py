"""`chinchilla bench --peers`: the model in our engine beside other programs, each in a process of its own."""

from __future__ import annotations

import argparse
import math
import platform
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

    from chinchilla_lm.models.checkpoint import Checkpoint
    from chinchilla_lm.models.config import ModelConfig
    from chinchilla_lm.peers.work import Work
    from chinchilla_lm.pipeline.job import Job

# Text that a language model is judged on, and texts that quantisers are shown.
QUALITY_TOKENS, SAMPLES = 8192, 128
DEFAULT_TOKENS, DEFAULT_NEW_TOKENS = 512, 64


def run(args: argparse.Namespace, console: Console) -> int:
    """Race, print, and write what -o asks for. Raises InputError for an unknown peer, a model of another kind, a
    tagger without data, and a packed model without its original."""
    import torch

    from chinchilla_lm.peers import environment
    from chinchilla_lm.peers.run import Field, compete
    from chinchilla_lm.peers.sources import Sources
    from chinchilla_lm.peers.table import LANGUAGE, chosen
    from chinchilla_lm.pipeline.held import certificate_of
    from chinchilla_lm.runtime.cpu import usable_cores
    from chinchilla_lm.runtime.engine.packed import is_packed, read_packed
    from chinchilla_lm.runtime.measuring import machine
    from chinchilla_lm.runtime.measuring.roof import Roof
    from chinchilla_lm.runtime.measuring.roofline import pass_flops
    from chinchilla_lm.runtime.torch_backend import set_threads

    peers, commands = chosen(args.peers)
    _check(args)
    folder = None if args.output is None else Path(args.output)
    if folder is not None:
        check_writable(folder)
    set_threads(min(torch.get_num_threads(), usable_cores()) if args.threads is None else args.threads)
    job, original = _models(args, console)
    held = certificate_of(args.model, console)
    for line in [] if held is None else held.lines():
        console.say(line)
    checkpoint = job.checkpoint
    work, judge, quality = _work(args, job, original.model.config.max_positions)
    sizes = [work.tokens] if work.task == LANGUAGE else [len(text) for text in work.raced]
    flops = {
        whose: sum(pass_flops(one.model, 1, size) for size in sizes)
        for whose, one in (("ours", checkpoint), ("theirs", original))
    }
    roof = Roof()
    with tempfile.TemporaryDirectory(prefix="chinchilla-bench-") as temporary:
        below = Path(temporary)
        form = read_packed(args.model)[0].header["format"] if is_packed(args.model) else None
        field = Field(
            Sources(args.model, checkpoint, below, form),
            Sources(args.against or args.model, original, below),
            below,
            Path(args.peers_home) if args.peers_home else environment.home(),
            peers,
            commands,
            args.threads,
            work.texts[:: max(1, len(work.texts) // SAMPLES)][:SAMPLES],
        )
        result = compete(field, work, args.seconds, roof, flops, judge, console)
    result |= {"machine": machine.describe(), "roofline": roof.to_dict(), "quality": quality}
    result |= {"model": args.model, "against": args.against}
    _show(result, work, folder, console)
    console.result(result)
    return 0


def _check(args: argparse.Namespace) -> None:
    """Raise InputError for what has no meaning here, and for a time that is none."""
    ignored = {"batch": None, "backend": "auto", "dtype": "auto", "no_memory": False}
    for name, default in ignored.items():
        if getattr(args, name) != default:
            raise InputError(
                f"--{name.replace('_', '-')} has no meaning in a race with peers; leave one of the two away"
            )
    if args.device not in ("auto", "cpu"):
        raise InputError(f"peers race on the CPU, not on {args.device}; leave --device away")
    if not 0 < args.seconds < math.inf:
        raise InputError(f"seconds {args.seconds} is not a number above 0; pass --seconds 60")


def _models(args: argparse.Namespace, console: Console) -> tuple[Job, Checkpoint]:
    """A job on the model, which has it loaded, and the model that the others run."""
    from chinchilla_lm.models.checkpoint import load
    from chinchilla_lm.peers.table import LANGUAGE, TAGGING
    from chinchilla_lm.pipeline.job import Job
    from chinchilla_lm.recipe import make_recipe
    from chinchilla_lm.runtime.engine.packed import is_packed
    from chinchilla_lm.runtime.engine.unpacking import unpack_checkpoint

    packed = is_packed(args.model)
    if packed and args.against is None:
        raise InputError(
            f"other programs cannot run {args.model}, which is packed; pass --against ORIGINAL for them, or the "
            "original in its place, which is packed here in each format"
        )
    if args.against is not None and is_packed(args.against):
        raise InputError(f"other programs cannot run {args.against}, which is packed; pass the original to --against")
    checkpoint = (unpack_checkpoint if packed else load)(args.model, task=args.task)
    config = checkpoint.model.config
    task = config.head.kind
    if task not in (LANGUAGE, TAGGING) or (task == LANGUAGE and not config.causal):
        raise InputError(f"peers race causal language models and taggers; this one is for {task}; leave --peers away")
    if task == TAGGING and args.data is None:
        raise InputError("a tagger is raced on its texts: data is missing; pass --data FOLDER")
    original = checkpoint if args.against is None else load(args.against, task=args.task)
    if args.against is not None:
        _check_alike(args, config, original.model.config)
    given = {"model": args.model, "task": task, "data": args.data, "test": args.test, "threads": args.threads}
    job = Job(make_recipe({key: value for key, value in given.items() if value is not None}), console)
    job.checkpoint = checkpoint
    return job, original


def _show(result: dict[str, Any], work: Work, folder: Path | None, console: Console) -> None:
    """In the terminal and, where there is one, in a folder."""
    from chinchilla_lm.peers import outcome
    from chinchilla_lm.peers.leads import leads_table

    names, cells = outcome.table(result["rows"])
    others = "" if result["against"] is None else f" here, {result['against']} in the others"
    title = f"{result['model']}{others}, {result['rounds']} rounds in turn or more: medians [quartiles]"
    console.table(names, cells, title)
    tables, notes = [outcome.markdown_table(names, cells)], _notes(result, work)
    if result["leads"]:
        names, cells = leads_table(result["leads"])
        about = "how many times as fast as the fastest other: medians of ratios within rounds [quartiles]"
        console.table(names, cells, f"\n{about}")
        tables += [f"## {about[0].upper()}{about[1:]}", outcome.markdown_table(names, cells)]
    for note in notes:
        console.show(note)
    if folder is not None:
        write_atomic(folder / "bench.json", json_text(result, indent=1) + "\n")
        write_atomic(folder / "bench.md", outcome.document(title, tables, notes))
        write_atomic(folder / "bench.svg", outcome.chart(Path(result["model"]).name, result["rows"]))
        console.show(f"written: {folder / 'bench.md'}, bench.json and bench.svg")


def _notes(result: dict[str, Any], work: Work) -> list[str]:
    from chinchilla_lm.peers.contest import MOST_ROUNDS, WIDE
    from chinchilla_lm.peers.leads import LIKE_BITS, alone, form_text
    from chinchilla_lm.runtime.measuring.roof import roof_note

    cpu = result["machine"]["cpu"]
    commands = {row["engine"]: row["command"] for row in result["rows"] if "command" in row}
    notes = [
        f"{cpu['model']}, {cpu['usable_cores']} cores, {', '.join(cpu['instruction_sets'])}",
        roof_note(result["roofline"]),
        "every engine in a process of its own, stopped while another is on turn; no prompt comes twice",
        "threads: for each measure those that were faster in trials, as many as there are cores where nothing decided",
        f"rounds: more of those, up to {MOST_ROUNDS}, whose quartiles lay more than {WIDE:.0%} of the median apart",
        "bits a weight: of the whole file, its scales, head and embeddings counted, over the model's parameters; best "
        f"of as many bits: within {LIKE_BITS}",
        *(
            f"{form_text(row['format'], row['cache'])} stands alone: no other has {row['bits_per_weight']:.1f} ± "
            f"{LIKE_BITS} bits a weight"
            for row in alone(result["rows"])
        ),
        *(f"{engine}: {command}; it keeps its own time, of random tokens" for engine, command in commands.items()),
        f"quality: {result['quality']}",
        "of products: operations over the peak of the same numbers, bytes for weights of 8 and 4 bits",
    ]
    if work.task != "language-modeling":
        passes = f"texts/s: of passes over {len(work.raced):,} of them, from all over the data"
        return [*notes, passes, "p50 and p95: texts alone, one after the other"]
    if any("metrics_of" in row for row in result["rows"]):
        notes.append("* of llama.cpp on the same file, since llama-bench tells none")
    return [
        *notes,
        "of bandwidth: bytes of weights that a token reads x decode tokens/s over what the machine reads of as many "
        "bytes; neither the cache counts nor a table of embeddings that is only looked up (of other programs' files by "
        "its share of the parameters)",
        "keys, values: the format of the cache, as each program names it",
        f"p50 and p95: single steps of decoding; first token: of a prompt of {work.tokens} tokens, median of rounds",
    ]


def check_writable(folder: Path) -> None:
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


def _work(
    args: argparse.Namespace, job: Job, most: int
) -> tuple[Work, Callable[[list[NDArray[np.float32]]], dict[str, float]] | None, str]:
    """What all are asked to do, what judges a tagger's logits, and on what. most: positions of the others' model."""
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
        windows, what = _windows(args, job)
        return Work(config.head.kind, vocabulary, positions, tokens, new, windows=windows), None, what
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

    work = Work(config.head.kind, vocabulary, positions, texts=[one.ids for one in encoded])
    return work, judged, f"entity F1 on {len(records):,} texts of {args.data}"


def _windows(args: argparse.Namespace, job: Job) -> tuple[list[list[int]], str]:
    """Windows to judge a language model on, and what they are of: the data, or a text that every Python has."""
    from chinchilla_lm.data.records import Text

    whose = f"{args.data}"
    if args.data is not None:
        records = job.dataset.records("test")
    else:
        try:
            from pydoc_data.topics import topics
        except ImportError:  # some systems put it into a package of its own
            return [], "not measured: no --data was passed, and this Python has no pydoc_data"
        # A token has some four characters, and more than one in every tokenizer of words.
        records = [Text("topics", "topics", "\n\n".join(topics.values())[: 8 * QUALITY_TOKENS])]
        whose = f"the language reference of Python {platform.python_version()}; pass --data for another text"
    windows = [one.ids for one in job.encode(records)[: max(1, QUALITY_TOKENS // job.window)]]
    return windows, f"perplexity on {sum(map(len, windows)):,} tokens of {whose}"
