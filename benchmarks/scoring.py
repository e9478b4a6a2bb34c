"""How long removals take to measure: every link, then every whole block, of SmolLM2-135M on 8 k tokens.

    python benchmarks/scoring.py

Calibration text is `exllama_cal/wiki.utf8` in windows of 512 tokens; nothing is read from an earlier run.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence

from common import data_folder, describe_machine, markdown, packaged_model

from chinchilla_lm.console import Console
from chinchilla_lm.pipeline.stages import Stages
from chinchilla_lm.plan import chain, pair
from chinchilla_lm.recipe import make_recipe
from chinchilla_lm.score.measure import Measure

WINDOW = 512


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=8192)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        measure = _stages(folder, args.tokens).measure
        setup = time.perf_counter() - begun
        blocks = measure.model.config.num_blocks
        links = _seconds(measure, [(link.name,) for link in chain(blocks)])
        whole = _seconds(measure, [pair(block) for block in range(blocks)])
    print(describe_machine())
    rows = [
        ["model, text and the original's answers", f"{setup:.0f}"],
        [f"{2 * blocks} links", f"{links:.0f}"],
        [f"{blocks} whole blocks", f"{whole:.0f}"],
    ]
    print(markdown([f"{measure.tokens:,} tokens", "seconds"], rows))


def _stages(folder: str, tokens: int) -> Stages:
    recipe = make_recipe(
        {
            "model": packaged_model("SmolLM2-135M-Instruct"),
            "task": "language-modeling",
            "data": data_folder("wikitext2"),
            "calibration": data_folder("exllama_cal/wiki.utf8"),
            "output": folder,
            "max_tokens": WINDOW,
            "calibration_tokens": tokens,
        }
    )
    return Stages(recipe, Console(quiet=True))


def _seconds(measure: Measure, drops: Sequence[tuple[str, ...]]) -> float:
    begun = time.perf_counter()
    for names in drops:
        measure(frozenset(names))
    return time.perf_counter() - begun


if __name__ == "__main__":
    main()
