"""What a screen of the decoder saves: words left of all, time of the head, and of greedy decoding.

    python benchmarks/head.py
    python benchmarks/head.py --models smollm2 --formats bf16 --new-tokens 64 --runs 3

Two models: SmolLM2-135M (49,152 words), and one with Gemma 3 270M's shape, 262,144 words and random weights
(benchmarks/vocabulary.py makes it), whose states lie along no few axes: a screen's worst case. Each is packed with and
without a screen, and both write the same texts on and read the same WikiText-2 tokens one by one; the words that they
choose must be the same at every step. Times are medians over runs, with and without in turn; `head` is what the
engine counts outside of the links, embedding included.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from common import ROOT, data_folder, describe_machine, markdown, packaged_model, write_result
from numpy.typing import NDArray
from vocabulary import OUT as VOCABULARY
from vocabulary import write_model

from chinchilla_lm.runtime.engine.native import NativeModel
from chinchilla_lm.runtime.engine.packed import PROGRAM, read_packed
from chinchilla_lm.runtime.engine.program import Program, read_program, write_program
from chinchilla_lm.runtime.engine.screening import moments, with_screen
from chinchilla_lm.runtime.packing import write_packed

OUT = ROOT / "out" / "head"
PROMPTS = ["The tower is 324 metres tall and", "Once upon a time there was", "In 1815 the army of"]

Ids = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Pair:
    """A model with a screen and without."""

    plain: NativeModel
    screened: NativeModel
    tokenizer: Any
    head_mb: float
    screen_mb: float
    made_s: float

    def both(self) -> dict[str, NativeModel]:
        """In the order in which they take turns."""
        return {"whole head": self.plain, "screened": self.screened}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=["smollm2", "random"], default=["smollm2", "random"])
    parser.add_argument("--formats", nargs="+", default=["bf16", "int8"], help="of the head (default bf16 int8)")
    parser.add_argument("--links", default="int8", help="format of all else (default int8)")
    parser.add_argument("--tokens", type=int, default=400, help="of WikiText-2 that are read one by one (default 400)")
    parser.add_argument("--new-tokens", type=int, default=128, help="that are written behind a prompt (default 128)")
    parser.add_argument("--runs", type=int, default=5, help="of decoding (default 5)")
    parser.add_argument("--threads", type=int, help="of the engine (default: one a core)")
    args = parser.parse_args()
    print(describe_machine())
    found, rows = {}, []
    for name in args.models:
        for form in args.formats:
            pair = packed(name, f"{args.links},head={form}", args.threads)
            left = {"WikiText-2": read_on(pair, args.tokens), "its own": written(pair, args.new_tokens)}
            times = decoding(pair, args.new_tokens, args.runs)
            found[f"{name}, {form}"] = {"left": left, "times": times, "made_s": pair.made_s}
            rows += [line(name, form, pair, text, left[text], times) for text in left]
    columns = ["model", "head", "head MB", "screen MB", "text", "words left", "panels left", "no bound"]
    columns += ["head ms", "screened", "token ms", "screened"]
    print(markdown(columns, rows))
    write_result(OUT, "head", found)
    print(json.dumps(found))


def line(name: str, form: str, pair: Pair, text: str, left: dict[str, float], times: dict[str, Any]) -> list[str]:
    """A row of the table."""
    clocks = [f"{times[which][what]:.2f}" for what in ("head_ms", "token_ms") for which in ("whole head", "screened")]
    shares = [f"{left['words']:.2%}", f"{left['panels']:.2%}", f"{left['whole']:.2%}"]
    return [name, form, f"{pair.head_mb:.1f}", f"{pair.screen_mb:.1f}", text, *shares, *clocks]


def packed(name: str, formats: str, threads: int | None) -> Pair:
    """The model in these formats, packed in out/head where it is not there yet."""
    folder = OUT / f"{name}-{formats}"
    if not (folder / PROGRAM).exists():
        write_packed(source(name), formats, folder)
    program, card = read_packed(folder)
    begun = time.perf_counter()
    laid = with_screen(program, moments(NativeModel(program, threads)))
    made = time.perf_counter() - begun
    path = OUT / "screened.bin"
    write_program(laid, path)
    screened = read_program(path)
    output = program.header["head"]["output"]
    return Pair(
        NativeModel(program, threads),
        NativeModel(screened, threads),
        card.tokenizer,
        _matrix_mb(program, output),
        (screened.size - program.size) / 1e6,
        made,
    )


def _matrix_mb(program: Program, part: dict[str, Any]) -> float:
    from chinchilla_lm.runtime.engine.demand import matrix_bytes

    return matrix_bytes(part) / 1e6


def source(name: str) -> str | Path:
    """Where a model comes from."""
    if name == "smollm2":
        return packaged_model("SmolLM2-135M-Instruct")
    path = VOCABULARY / "gemma-270m-q8_0.gguf"
    if not path.is_file():
        write_model(path, "Q8_0")
    return path


def read_on(pair: Pair, count: int) -> dict[str, float]:
    """Read a text token by token: what is left of the vocabulary for each next word."""
    text = sorted(Path(data_folder("wikitext2")).glob("wiki.test*"))[0].read_text(encoding="utf-8")
    ids = np.array(pair.tokenizer(text[: 20 * count])["input_ids"][:count], np.int32)
    caches = {name: model.cache(count) for name, model in pair.both().items()}
    pair.screened.take_screened()
    for token in ids:
        chosen = [model.best([np.array([token], np.int32)], [caches[name]]) for name, model in pair.both().items()]
        check(chosen)
    return shares(pair)


def written(pair: Pair, new: int) -> dict[str, float]:
    """The same of texts that the model writes."""
    pair.screened.take_screened()
    for prompt in PROMPTS:
        tokens = np.array(pair.tokenizer(prompt)["input_ids"], np.int32)
        caches = {name: model.cache(len(tokens) + new) for name, model in pair.both().items()}
        for _ in range(new):
            chosen = [model.best([tokens], [caches[name]]) for name, model in pair.both().items()]
            check(chosen)
            tokens = chosen[0][0]
    return shares(pair)


def check(chosen: list[tuple[Ids, NDArray[np.float32]]]) -> None:
    """Exits where the two do not choose the same word for the same logit."""
    (word, logit), (other, others) = chosen
    if word[0] != other[0] or logit[0] != others[0]:
        raise SystemExit(f"the whole head chooses {word[0]} ({logit[0]}), the screened one {other[0]} ({others[0]})")


def shares(pair: Pair) -> dict[str, float]:
    """Of the vocabulary, for a word; and of the words that had no bound."""
    rows, words, panels, whole = pair.screened.take_screened()
    outputs = pair.plain.program.header["head"]["output"]["outputs"]
    all_panels = -(-outputs // 16)
    return {"words": words / rows / outputs, "panels": panels / rows / all_panels, "whole": whole / rows}


def decoding(pair: Pair, new: int, runs: int) -> dict[str, dict[str, float]]:
    """Milliseconds a token, and of it the head, in turn."""
    tokens = np.array(pair.tokenizer(PROMPTS[0])["input_ids"], np.int32)
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in pair.both()}
    for run in range(runs + 1):
        for name, model in pair.both().items():
            cache = model.cache(len(tokens) + new)
            last = model.best([tokens], [cache])[0]
            model.take_seconds()
            begun = time.perf_counter()
            for _ in range(new - 1):
                last = model.best([last], [cache])[0]
            total, head = time.perf_counter() - begun, model.take_seconds()[1]
            model.rest()
            if run:  # the first warms up
                taken[name].append((1e3 * total / (new - 1), 1e3 * head / (new - 1)))
    medians = {name: np.median(np.array(runs), axis=0) for name, runs in taken.items()}
    return {name: {"token_ms": float(both[0]), "head_ms": float(both[1])} for name, both in medians.items()}


if __name__ == "__main__":
    main()
