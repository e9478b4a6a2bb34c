"""The fastest model within a margin, for sentences of three sentiments: Financial PhraseBank and all-MiniLM-L6-v2.

    python benchmarks/sentences.py
    python benchmarks/sentences.py --margin 2

The sentences on which half of the annotators agreed or more (ISO-8859-1, `text@label`) are shuffled with a fixed seed;
1,600 are tested on and 800 chosen on, each text once. Fine-tuning and `compress` go by their defaults, without a
target. Exit status 1 where no model holds the margin on dev, which so few sentences hardly tell at a point.
"""

from __future__ import annotations

import argparse
import csv
import random
from pathlib import Path

from common import data_folder, describe_machine, packaged_model, write_result

import chinchilla_lm as ch
from chinchilla_lm.errors import ContractError

LABELS = ("negative", "neutral", "positive")
SIZES = {"test": 1600, "dev": 800, "train": None}


def split(source: Path, folder: Path) -> None:
    """Three CSV files of the sentences in `source`."""
    lines = source.read_text(encoding="iso-8859-1").splitlines()
    pairs = dict(line.rsplit("@", 1) for line in lines if line.rsplit("@", 1)[-1] in LABELS)
    rows = list(pairs.items())
    random.Random(0).shuffle(rows)
    folder.mkdir(parents=True, exist_ok=True)
    for name, size in SIZES.items():
        part, rows = rows[:size], rows[size:] if size else []
        with (folder / f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([("text", "label"), *part])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--margin", type=float, default=1.0, help="points of accuracy (default 1)")
    parser.add_argument("--out", type=Path, default=Path("out/bench"))
    args = parser.parse_args()
    data, tuned = args.out / "phrasebank", args.out / "phrasebank-minilm"
    split(Path(data_folder("financial_phrasebank")) / "Sentences_50Agree.txt", data)
    fields = {"task": "text-classification", "data": str(data)}
    found = ch.finetune(packaged_model("all-MiniLM-L6-v2"), out=str(tuned), **fields)
    name = f"phrasebank-{args.margin:g}"
    print(describe_machine())
    try:
        report = ch.compress(str(tuned / "model"), out=str(args.out / name), margin=args.margin, **fields)
    except ContractError as error:
        write_result(args.out, name, {"finetune": found, "refused": str(error)})
        raise SystemExit(str(error)) from None
    write_result(args.out, name, {"finetune": found, "compress": report})


if __name__ == "__main__":
    main()
