"""The mean of several taggers' probabilities, word by word, on CoNLL-2003: what they could teach.

    python benchmarks/ensemble.py out/bench/mpnet-ner/model out/bench/smollm2-ner/model

Each by itself, then their mean, decoded as the most probable sequence that BIO allows.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping

import numpy as np
from common import data_folder, describe_machine, markdown

from chinchilla_lm.console import Console
from chinchilla_lm.data.tag_path import TagPath
from chinchilla_lm.evaluate.sums import Estimate
from chinchilla_lm.evaluate.tagging import measure_tags
from chinchilla_lm.pipeline.job import Job
from chinchilla_lm.recipe import make_recipe

METRICS = ("entity_f1", "token_micro", "token_macro", "token_weighted")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="FOLDER")
    parser.add_argument("--split", choices=["dev", "test"], default="test")
    args = parser.parse_args()
    asked = {"task": "token-classification", "data": data_folder("conll2003")}
    rows, each, records, labels = [], [], [], ()
    for model in args.models:
        job = Job(make_recipe(asked | {"model": model}), Console(quiet=True), only_served=True)
        judged = job.judge(args.split)(job.served())
        rows.append([model, *cells(judged.measurement.estimates())])
        labels, records = labels or job.labels, job.dataset.records(args.split)
        order = [job.labels.index(label) for label in labels]
        each.append([record[:, order] for record in judged.log_probabilities])
    path = TagPath(labels, legal=True)
    means = [np.logaddexp.reduce(answers) for answers in zip(*each, strict=True)]
    tags = [[labels[index] for index in path(mean)] for mean in means]
    measured = measure_tags([list(record.tags) for record in records], tags, [record.document for record in records])
    rows.append(["the mean", *cells(measured.estimates())])
    print(describe_machine())
    print(markdown(["model", *METRICS], rows))
    for table in measured.tables.values():
        print(f"\n{table.text()}")


def cells(estimates: Mapping[str, Estimate]) -> list[str]:
    """Each metric with its interval."""
    return [f"{one.value:.4f} [{one.low:.4f}, {one.high:.4f}]" for one in (estimates[name] for name in METRICS)]


if __name__ == "__main__":
    main()
