"""What llama.cpp's quantiser costs a language model at how many bits: SmolLM2-135M-Instruct on WikiText-2.

    python benchmarks/packing_peers.py
    python benchmarks/packing_peers.py --types Q4_0 Q4_K_M IQ3_XXS --max-tokens 2048

The same float values that `benchmarks/packing.py lm` begins with are written by llama.cpp's own quantiser, with an
importance matrix (mean squares of every matrix's inputs) of the same 65,536 tokens of calibration text. Each file is
read back and judged by one and the same engine in bfloat16, so that only its weights count: llama.cpp would round the
inputs of products to 8 bits besides. Bits a weight count everything in the file's matrices, embedding and head.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import data_folder, describe_machine, markdown, packaged_model, some_wikitext, write_result
from gguf import GGUFReader

from chinchilla_lm import api
from chinchilla_lm.console import Console
from chinchilla_lm.models.checkpoint import Checkpoint
from chinchilla_lm.peers.environment import home, interpreter
from chinchilla_lm.peers.table import PEERS
from chinchilla_lm.pipeline.job import Job
from chinchilla_lm.recipe import make_recipe

TYPES = (
    "Q4_0",
    "Q4_1",
    "Q4_K_S",
    "Q4_K_M",
    "IQ4_XS",
    "Q3_K_S",
    "Q3_K_M",
    "IQ3_XXS",
    "IQ3_S",
    "Q2_K",
    "IQ2_XS",
    "IQ2_M",
)
TOKENS = 65_536
# Which tensors of a file multiply the inputs of which of our matrices.
PLACES = {
    "attn.first": ("attn_q", "attn_k", "attn_v"),
    "attn.second": ("attn_output",),
    "mlp.first": ("ffn_gate", "ffn_up"),
    "mlp.second": ("ffn_down",),
}
QUANTISE = """
import ctypes, json, sys
import llama_cpp as lib
import numpy as np
source, target, kind, importance = sys.argv[1:]
kept = dict(np.load(importance))
rows = (lib.llama_model_imatrix_data * (len(kept) + 1))()
for row, (name, values) in zip(rows, kept.items()):
    row.name, row.size = name.encode(), values.size
    row.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
options = lib.llama_model_quantize_default_params()
options.ftype, options.allow_requantize, options.imatrix = getattr(lib, "LLAMA_FTYPE_MOSTLY_" + kind), True, rows
sys.exit(lib.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(options)))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--types", nargs="+", default=TYPES, help="file types, as llama.cpp names them")
    parser.add_argument("--max-tokens", type=int, default=512, help="longest window (default 512)")
    parser.add_argument("--characters", type=int, help="of the test set, its first ones (default: all)")
    parser.add_argument("--out", type=Path, default=Path("out/bench"))
    args = parser.parse_args()
    source, console = packaged_model("SmolLM2-135M-Instruct"), Console(quiet=True)
    python = interpreter("llama.cpp", PEERS["llama.cpp"], home(), console)
    rows, found = [], []
    with tempfile.TemporaryDirectory() as folder:
        importance = Path(folder) / "importance.npz"
        np.savez(importance, **importance_of(source, console))
        for kind in args.types:
            target = Path(folder) / f"{kind}.gguf"
            command = [python, "-c", QUANTISE, source, str(target), kind, str(importance)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                print(f"{kind}: {done.stderr.strip().splitlines()[-1:]}", flush=True)
                continue
            value = perplexity(str(target), some_wikitext(Path(folder), args.characters), args.max_tokens)
            rows.append([kind, f"{bits_of(target):.2f}", types_of(target), f"{value:.3f}"])
            found.append({"type": kind, "bits": bits_of(target), "perplexity": value})
            print(" | ".join(map(str, rows[-1])), flush=True)
            target.unlink()
    print(describe_machine())
    print(markdown(["llama.cpp's type", "bits a weight", "of which tensors", "perplexity"], rows))
    write_result(args.out, f"packing-peers-{args.max_tokens}", {"rows": found})


def perplexity(model: str, data: str, max_tokens: int) -> float:
    """On the test split, the weights in bfloat16."""
    fields: dict[str, Any] = {"task": "language-modeling", "data": data, "max_tokens": max_tokens}
    value: float = api.evaluate(model, **fields, dtype="bfloat16")["metrics"]["perplexity"]["value"]
    return value


def importance_of(source: str, console: Console) -> dict[str, np.ndarray]:
    """Mean squares of the inputs of every matrix, by the name of the tensor, float32 [K]."""
    fields = {"model": source, "task": "language-modeling", "data": data_folder("exllama_cal/wiki.utf8")}
    job = Job(make_recipe(fields | {"device": "cpu", "calibration_tokens": TOKENS}), console)
    checkpoint: Checkpoint = job.checkpoint
    model, (batches, _) = checkpoint.model.eval(), job.calibration
    sums: dict[str, torch.Tensor] = {}
    for matrix, linear in model.matrices().items():

        def see(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...], matrix: str = matrix) -> None:
            sums[matrix] = sums.get(matrix, torch.zeros(1)) + inputs[0].float().square().flatten(0, -2).sum(0)

        linear.register_forward_pre_hook(see)
    tokens = 0
    with torch.inference_mode():
        for one in batches:
            model(one.batch)
            tokens += one.batch.tokens
    named = {}
    for matrix, total in sums.items():
        block, _, place = matrix.partition(".")
        names = [f"blk.{block}.{tensor}.weight" for tensor in PLACES.get(place, ())]
        for name in names or ["token_embd.weight", "output.weight"]:
            named[name] = (total / tokens).numpy().astype(np.float32)
    return named


def bits_of(path: Path) -> float:
    """Bits a weight of all matrices of a file."""
    tensors = [one for one in GGUFReader(path).tensors if len(one.shape) > 1]
    return 8 * sum(int(one.n_bytes) for one in tensors) / sum(int(one.n_elements) for one in tensors)


def types_of(path: Path) -> str:
    """How many matrices have which type: rows of 576 are no whole blocks of 256, which K-quants need."""
    counts: dict[str, int] = {}
    for one in GGUFReader(path).tensors:
        if len(one.shape) > 1:
            counts[one.tensor_type.name] = counts.get(one.tensor_type.name, 0) + 1
    return json.dumps(counts)[1:-1].replace('"', "")


if __name__ == "__main__":
    main()
