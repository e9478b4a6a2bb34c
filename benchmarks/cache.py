"""What keys and values of 8 bits cost, up to a model's longest text.

    python benchmarks/cache.py
    python benchmarks/cache.py --tokens 4096 --documents 2

SmolLM2-135M-Instruct in bfloat16 weights reads stretches of WikiText-2's test set through a cache, 512 tokens at a
time, once with keys and values in bf16 and once in int8. Printed for each stretch of positions: perplexity with both,
the change, and how often the most probable next token is the same. Nothing but the cache differs.
"""

from __future__ import annotations

import argparse
from itertools import pairwise
from pathlib import Path

import numpy as np
from common import data_folder, describe_machine, markdown, packaged_model, write_result

from chinchilla_lm.data.load import load_dataset
from chinchilla_lm.runtime.engine.native import NativeModel
from chinchilla_lm.runtime.engine.program import CACHES
from chinchilla_lm.runtime.loading import compile_file

PIECE = 512


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--tokens", type=int, default=8192, help="of each stretch (default: as many as the model takes)"
    )
    parser.add_argument("--documents", type=int, default=4, help="stretches of text")
    parser.add_argument("--out", type=Path, default=Path("out/bench"))
    args = parser.parse_args()
    program, card = compile_file(packaged_model("SmolLM2-135M-Instruct"), "bf16")
    tokens = min(args.tokens, card.max_positions)
    records = load_dataset(data_folder("wikitext2"), "language-modeling").records("test")
    ids = np.array(card.tokenizer("\n\n".join(record.text for record in records))["input_ids"], np.int32)
    stretches = [ids[i * tokens : (i + 1) * tokens] for i in range(args.documents)]
    nats, best = {}, {}
    for cache in CACHES:
        model = NativeModel(program.with_cache(cache), None)
        found = [read(model, stretch) for stretch in stretches]
        nats[cache], best[cache] = (np.stack([each[i] for each in found]) for i in (0, 1))
    rows = []
    edges = [0, *(2**k for k in range(9, 20) if 2**k < tokens), tokens - 1]
    for begin, end in pairwise(edges):
        perplexity = {cache: float(np.exp(nats[cache][:, begin:end].mean())) for cache in CACHES}
        change = 100 * (perplexity["int8"] / perplexity["bf16"] - 1)
        same = (best["int8"][:, begin:end] == best["bf16"][:, begin:end]).mean()
        rows.append(
            [
                f"{begin + 1:,} to {end:,}",
                *(f"{perplexity[cache]:.3f}" for cache in CACHES),
                f"{change:+.3f} %",
                f"{same:.2%}",
            ]
        )
    print(describe_machine())
    print(markdown(["positions", *(f"perplexity, {cache}" for cache in CACHES), "change", "same next token"], rows))
    write_result(args.out, "cache", {"rows": rows, "documents": args.documents, "tokens": tokens})


def read(model: NativeModel, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Nats of every token but the first, and the most probable token before each: [tokens - 1] both."""
    cache = model.cache(len(ids))
    nats, best = [], []
    for begin in range(0, len(ids), PIECE):
        logits = model.run([ids[begin : begin + PIECE]], [cache], everywhere=True).astype(np.float64)
        targets = ids[begin + 1 : begin + 1 + len(logits)]
        logits = logits[: len(targets)]
        top = logits.max(1, keepdims=True)
        nats.append(np.log(np.exp(logits - top).sum(1)) + top[:, 0] - logits[np.arange(len(targets)), targets])
        best.append(logits.argmax(1))
    model.rest()
    return np.concatenate(nats), np.concatenate(best)


if __name__ == "__main__":
    main()
