"""How often the certificate passes a model that is exactly as bad as the margin allows not.

    python benchmarks/false_pass.py
    python benchmarks/false_pass.py --trials 10000

Test sets are drawn from populations in which the changed model is worse than the original by exactly the margin, and
`chinchilla_lm.evaluate.certificate.certify` judges each pair. The share that passes is the false-pass rate; a
non-inferiority test at 95 %, two-sided, promises 2.5 %. Kinds of test set:

    tags     entities in documents of unlike size; documents differ in how hard they are, and in what the change costs
    texts    one label a document
    text     nats of documents of unlike length, whose change differs from document to document
    running  nats of consecutive pieces of one text, whose change wanders: neighbours correlate by `likeness`

The last line is JSON: the rate of each kind, and its 95 % interval (Wilson).
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
from common import describe_machine, markdown, write_result

from chinchilla_lm.evaluate.certificate import certify
from chinchilla_lm.evaluate.language import measure_text
from chinchilla_lm.evaluate.sums import Sums, ratio

Generator = np.random.Generator
Pair = tuple[Sums, Sums]
F1_MARGIN, PERPLEXITY_MARGIN = 1.0, 3.0  # points, percent


def shares(correct: np.ndarray, of: np.ndarray) -> Sums:
    """A share of right answers, by document: F1 where every entity is found and some get a wrong type, or accuracy."""
    rows = np.column_stack([correct, of]).astype(np.float64)
    return Sums("entity_f1", "points", True, rows, lambda sums: ratio(sums[..., 0], sums[..., 1]))


def answers(rng: Generator, sizes: np.ndarray, right: float, spread: float) -> Pair:
    """Right answers of the original with probability `right`, of the changed model one margin less; both vary from
    document to document by `spread`."""
    documents = len(sizes)
    skill = np.clip(right + spread * rng.uniform(-1, 1, documents), 0, 1)
    lost = np.clip(F1_MARGIN / 100 + 0.04 * (1 + spread * rng.uniform(-1, 1, documents)), 0, 1)  # of all answers
    found = 0.04 * (1 + spread * rng.uniform(-1, 1, documents))
    was = rng.binomial(sizes, skill)
    # Of the right answers some are lost, of the wrong ones some are found: `lost` and `found` of all, on average.
    now = (
        was
        - rng.binomial(was, np.clip(lost / skill, 0, 1))
        + rng.binomial(sizes - was, np.clip(found / (1 - skill), 0, 1))
    )
    return shares(was, sizes), shares(now, sizes)


def tags(rng: Generator, documents: int) -> Pair:
    return answers(rng, 1 + rng.geometric(1 / 24, documents), 0.88, 0.06)


def texts(rng: Generator, documents: int) -> Pair:
    return answers(rng, np.ones(documents, dtype=int), 0.88, 0.06)


def perplexities(rng: Generator, tokens: np.ndarray, change: np.ndarray, consecutive: bool) -> Pair:
    """`change`: by how many nats a token each document gets worse, beyond the margin, on average over tokens 0."""
    names = [f"d{i}" for i in range(len(tokens))]
    nats = tokens * rng.normal(3.2, 0.4, len(tokens)).clip(1)
    worse = nats + tokens * (math.log1p(PERPLEXITY_MARGIN / 100) + change)
    before, after = (
        measure_text(list(one), tokens.tolist(), (4 * tokens).tolist(), names, consecutive=consecutive)
        for one in (nats, worse)
    )
    return before.sums["perplexity"], after.sums["perplexity"]


def text(rng: Generator, documents: int) -> Pair:
    return perplexities(rng, 50 + rng.geometric(1 / 800, documents), rng.normal(0, 0.03, documents), False)


def running(likeness: float) -> Callable[[Generator, int], Pair]:
    def draw(rng: Generator, documents: int) -> Pair:
        noise = rng.normal(size=documents) * math.sqrt(1 - likeness**2)
        noise[0] = rng.normal()
        wander = np.empty(documents)
        wander[0] = noise[0]
        for i in range(1, documents):
            wander[i] = likeness * wander[i - 1] + noise[i]
        return perplexities(rng, rng.integers(450, 600, documents), 0.03 * wander, True)

    return draw


KINDS: dict[str, tuple[Callable[[Generator, int], Pair], float, tuple[int, ...]]] = {
    "tags": (tags, F1_MARGIN, (40, 230)),
    "texts": (texts, F1_MARGIN, (500, 2000)),
    "text": (text, PERPLEXITY_MARGIN, (20, 60, 200)),
    "running, likeness 0.2": (running(0.2), PERPLEXITY_MARGIN, (60, 120, 400)),
    "running, likeness 0.5": (running(0.5), PERPLEXITY_MARGIN, (60, 120, 400)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=2000, help="simulated test sets of each kind and size")
    parser.add_argument("--out", type=Path, default=Path("out/bench"))
    args = parser.parse_args()
    rows, results = [], {}
    for name, (draw, margin, sizes) in KINDS.items():
        for documents in sizes:
            rng = np.random.default_rng(documents)
            passed = sum(certify(*draw(rng, documents), margin, documents).passed for _ in range(args.trials))
            low, high = wilson(passed, args.trials)
            results[f"{name}, {documents}"] = {"rate": passed / args.trials, "low": low, "high": high}
            rows.append([name, str(documents), f"{passed / args.trials:.2%}", f"[{low:.2%}, {high:.2%}]"])
            print(*rows[-1], flush=True)
    print(describe_machine())
    print(markdown(["test set", "documents", "false passes", "95 % interval"], rows))
    write_result(args.out, "false-pass", results)
    print(json.dumps(results))


def wilson(hits: int, trials: int) -> tuple[float, float]:
    """The 95 % interval of a share."""
    z = 1.96
    share = hits / trials
    middle = (share + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials**2)) / (1 + z * z / trials)
    return max(0.0, middle - half), middle + half


if __name__ == "__main__":
    main()
