"""What other programs make of our exports: the same tokens, and how far their own rounding moves the perplexity.

    python benchmarks/exports.py                                                # SmolLM2-135M in llama.cpp
    python benchmarks/exports.py --model PACKED --formats "" f32
    python benchmarks/exports.py --model PACKED --compressed PYTHON

On windows of the test text of WikiText-2. Each format is one GGUF file (`""`: numbers as they are). Ours is torch in
float32, with the values that the file holds, read back by our own reader; llama.cpp keeps keys and values in float32,
so that nothing is rounded but weights and what it rounds itself, the inputs of products with rounded weights. `tokens`
are the same where both write the same greedy tokens behind every prompt; `ids` where both cut the text alike. llama.cpp
runs in the environment of `bench --peers`, which is made where there is none. PYTHON is one that has transformers and
compressed-tensors.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import data_folder, describe_machine, markdown, packaged_model

from chinchilla_lm.api import export
from chinchilla_lm.console import Console
from chinchilla_lm.models.batch import Batch
from chinchilla_lm.models.checkpoint import Checkpoint, load
from chinchilla_lm.models.transformer import Transformer
from chinchilla_lm.peers.environment import home, interpreter
from chinchilla_lm.peers.table import PEERS
from chinchilla_lm.runtime.engine.unpacking import unpack_checkpoint

HERE = Path(__file__).parent
PROMPT = 32  # tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="as `chinchilla export` takes it (default SmolLM2-135M)")
    parser.add_argument("--formats", nargs="*", default=["", "f32"], help="of GGUF files, as they are where empty")
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=512, help="of a window")
    parser.add_argument("--new", type=int, default=16, help="greedy tokens behind each of three prompts")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--llama", metavar="PYTHON", help="one that has llama-cpp-python, instead of that environment")
    parser.add_argument("--compressed", metavar="PYTHON", help="check the export in the format of compressed-tensors")
    args = parser.parse_args()
    args.model = args.model or packaged_model("SmolLM2-135M-Instruct")
    text = (Path(data_folder("wikitext2")) / "wiki.test.raw").read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder:
        print(describe_machine())
        if args.compressed:
            print(compressed(args, Path(folder) / "compressed", text))
            return
        rows = [gguf_row(args, form, Path(folder) / f"{form or 'codes'}.gguf", text) for form in args.formats]
    print(markdown(["format", "file, MB", "ids", "tokens", "ours", "llama.cpp", "difference"], rows))


def gguf_row(args: argparse.Namespace, form: str, path: Path, text: str) -> list[Any]:
    """One format's file, in both programs."""
    made = export(args.model, out=str(path), to="gguf", format=form or None, quiet=True)
    checkpoint = load(path)
    windows = cut(checkpoint, text, args.windows, args.tokens)
    texts = [text[:2000], "It's 1999!  naïve\n\n5 \t x", " x"]
    prompts = [window[:PROMPT] for window in windows[:3]]
    asked = {"model": str(path), "texts": texts, "windows": windows, "prompts": prompts}
    python = args.llama or interpreter("llama.cpp", PEERS["llama.cpp"], home(), Console())
    found = answer(python, "exports_llama.py", asked | {"new": args.new, "threads": args.threads})
    alike = [list(checkpoint.tokenizer(one)["input_ids"]) for one in texts] == found["ids"]
    same = [greedy(checkpoint.model, one, args.new) for one in prompts] == found["tokens"]
    ours, theirs = (perplexity(one, windows) for one in (nats(checkpoint.model, windows), found["nats"]))
    size = f"{made['bytes'] / 1e6:.1f}"
    return [
        form or "+".join(made["weights"]),
        size,
        alike,
        same,
        f"{ours:.4f}",
        f"{theirs:.4f}",
        f"{theirs / ours - 1:+.2e}",
    ]


def compressed(args: argparse.Namespace, folder: Path, text: str) -> str:
    """The folder in transformers with compressed-tensors, in float32: which matrices are the same, and the logits."""
    export(args.model, out=str(folder), to="compressed-tensors", quiet=True)
    twin = unpack_checkpoint(args.model)
    window = cut(twin, text, 1, args.tokens)[0]
    floats = folder.with_name("floats")
    export(args.model, out=str(floats), quiet=True)
    found = answer(
        args.compressed,
        "exports_transformers.py",
        {"folder": str(folder), "floats": str(floats), "window": window},
    )
    with torch.inference_mode():
        ours = twin.model(Batch(torch.tensor(window)[None]))[0, -1].numpy()
    apart = np.abs(np.array(found["logits"]) - ours).max()
    return (
        f"{found['same']} of {found['of']} linear layers are the same to the last bit; logits differ by {apart:.1e} at "
        f"most, of a deviation of {ours.std():.1f}"
    )


def answer(python: str, script: str, asked: dict[str, Any]) -> dict[str, Any]:
    """What a script says in another environment."""
    done = subprocess.run([python, str(HERE / script)], input=json.dumps(asked), capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{script}: {done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def cut(checkpoint: Checkpoint, text: str, count: int, size: int) -> list[list[int]]:
    """The first windows of a text."""
    ids = list(checkpoint.tokenizer(text[: 8 * count * size], add_special_tokens=False)["input_ids"])
    return [ids[start : start + size] for start in range(0, count * size, size)]


@torch.inference_mode()
def nats(model: Transformer, windows: Sequence[Sequence[int]]) -> list[float]:
    """Of each window's tokens after the first."""
    found = []
    for window in windows:
        chances = model(Batch(torch.tensor(window)[None]))[0, :-1].double().log_softmax(-1)
        found.append(-float(chances.gather(1, torch.tensor(window[1:])[:, None]).sum()))
    return found


def perplexity(nats: Sequence[float], windows: Sequence[Sequence[int]]) -> float:
    """Of all windows together."""
    return math.exp(sum(nats) / sum(len(window) - 1 for window in windows))


@torch.inference_mode()
def greedy(model: Transformer, prompt: Sequence[int], new: int) -> list[int]:
    """The most probable tokens, each read again with all before it."""
    ids = list(prompt)
    for _ in range(new):
        ids.append(int(model(Batch(torch.tensor(ids)[None]))[0, -1].argmax()))
    return ids[len(prompt) :]


if __name__ == "__main__":
    main()
