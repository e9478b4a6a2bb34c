"""SmolLM2-135M on WikiText-2: perplexity at equal measured latency, by method.

    python benchmarks/lm.py

Every method gets the same contract: its model is timed end to end against the original, by requests of 128 tokens to
read and 64 to write; its budget is tightened until the asked speed-up holds, and relaxed for as long as it does.
Calibration text is `exllama_cal/wiki.utf8`, which shares no article with the test; windows of 512 tokens, no BOS, the
first `--windows` of the raw test set. Recovery, on the first seed, is the same for all. A set of links is measured
once: what greedy has measured, refine does not pay for again.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

from common import data_folder, describe_machine, markdown, packaged_model, write_result

from chinchilla_lm.console import Console
from chinchilla_lm.errors import ContractError
from chinchilla_lm.evaluate.judge import Judge
from chinchilla_lm.pipeline.stages import Stages
from chinchilla_lm.recipe import make_recipe
from chinchilla_lm.score.contract import Target
from chinchilla_lm.search import Memo
from chinchilla_lm.shorten.surgery import shorten

METHODS = ("cosine", "one-shot", "greedy", "dp", "refine")
WINDOW = 512


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--speedups", type=float, nargs="+", default=[1.15, 1.3, 1.5])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--windows", type=int, default=24)
    parser.add_argument("--calibration-tokens", type=int, default=2048)
    parser.add_argument("--max-measures", type=int, default=40)
    parser.add_argument("--recover-tokens", type=int, default=12_000, help="on the first seed; 0: none")
    parser.add_argument("--out", type=Path, default=Path("out/bench/lm"))
    args = parser.parse_args()
    runs: dict[tuple[str, float], list[dict[str, Any]]] = {}
    dense = 0.0
    for seed in args.seeds:
        stages = _stages(args, seed)
        judge = _first_windows(stages, args.windows)
        dense = judge(stages.original).primary.value
        table = stages.score()
        memo = Memo(stages.measure)
        for speedup in args.speedups:
            for method in args.methods:
                run = _run(stages, table, memo, judge, method, speedup)
                if run is not None and seed == args.seeds[0] and args.recover_tokens:
                    run["recovered"] = _recovered(stages, run, judge)
                if run is not None:
                    runs.setdefault((method, speedup), []).append(run)
                    print(method, speedup, {k: v for k, v in run.items() if k != "plan"}, flush=True)
    _print(dense, runs)
    plain = [{"method": m, "speedup": s, "runs": [_plain(r) for r in found]} for (m, s), found in runs.items()]
    write_result(args.out, "lm", {"dense": dense, "runs": plain})


def _stages(args: argparse.Namespace, seed: int) -> Stages:
    recipe = make_recipe(
        {
            "model": packaged_model("SmolLM2-135M-Instruct"),
            "task": "language-modeling",
            "data": data_folder("wikitext2"),
            "calibration": data_folder("exllama_cal/wiki.utf8"),
            "output": str(args.out / f"seed{seed}"),
            "seed": seed,
            "max_tokens": WINDOW,
            "calibration_tokens": args.calibration_tokens,
            "max_measures": args.max_measures,
            "recover": {
                "epochs": 1,
                "tokens": args.recover_tokens or 1,
                "learning_rate": 2e-4,
                "batch_tokens": 1024,
                "weights": {"kl": 1.0, "hidden": 0.0},
            },
        }
    )
    return Stages(recipe, Console())


def _first_windows(stages: Stages, count: int) -> Judge:
    job = stages.job
    records = job.dataset.records("test")
    encoded = job.encode(records)[:count]
    return Judge("language-modeling", records, encoded, job.batches(encoded, 2048), ())


def _run(stages: Stages, table: Any, memo: Memo, judge: Judge, method: str, speedup: float) -> dict[str, Any] | None:
    stages.measure.norms = dict(table.norms or {})
    search = stages.planner.searcher(method, memo, lambda note: None)
    before = memo.calls
    try:
        found, _ = stages.planner.fulfil(table, Target(speedup=speedup), search, memo)
    except ContractError as error:
        print(f"{method} {speedup}: {error}", flush=True)
        return None
    perplexity = judge(shorten(stages.original, found.plan, share=True)).primary.value
    return {
        "plan": found.plan,
        "speedup": found.speedup.value,
        "links": len(found.plan.kept),
        "kl": memo(frozenset(found.plan.dropped)),
        "perplexity": perplexity,
        "measures": memo.calls - before,
        "recovered": None,
    }


def _recovered(stages: Stages, run: dict[str, Any], judge: Judge) -> float:
    short = shorten(stages.job.checkpoint.model, run["plan"])
    stages.recovery.train(short, "recover", tokens=stages.recipe.recover.tokens)
    return judge(stages.job.ready(short)).primary.value


def _plain(run: dict[str, Any]) -> dict[str, Any]:
    return {**run, "plan": run["plan"].strip()}


def _print(dense: float, runs: dict[tuple[str, float], list[dict[str, Any]]]) -> None:
    print(describe_machine())
    print(f"original: perplexity {dense:.2f}\n")
    rows = []
    for (method, speedup), found in runs.items():
        values = [run["perplexity"] for run in found]
        recovered = found[0]["recovered"]
        rows.append(
            [
                f"{speedup:g}×",
                method,
                f"{statistics.median(run['speedup'] for run in found):.2f}×",
                ", ".join(str(run["links"]) for run in found),
                f"{statistics.median(values):.2f} ({min(values):.2f} … {max(values):.2f})",
                "–" if recovered is None else f"{recovered:.2f}",
            ]
        )
    columns = ["asked", "method", "measured", "links kept", "perplexity, median (range) of seeds", "after recovery"]
    print(markdown(columns, rows))
    print("Every plan was looked at on the test set: a comparison of methods, exploratory, and no certificate.")


if __name__ == "__main__":
    main()
