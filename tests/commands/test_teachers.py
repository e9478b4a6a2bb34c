"""What several teachers answer together, against means made by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from chinchilla_lm.console import Console
from chinchilla_lm.models.checkpoint import load, save
from chinchilla_lm.pipeline.job import Job
from chinchilla_lm.pipeline.teachers import Teachers
from chinchilla_lm.recipe import make_recipe


def other_teacher(tagger: Path, folder: Path) -> Path:
    """A tagger that disagrees with another one, and has its labels in another order."""
    checkpoint = load(tagger / "model")
    head, known = checkpoint.model.head, checkpoint.model.config.head.labels
    order = torch.randperm(len(known), generator=torch.Generator().manual_seed(2))
    assert head.output is not None
    with torch.no_grad():
        head.output.weight.copy_(head.output.weight[order] * 0.3)
        if head.output.bias is not None:
            head.output.bias.copy_(head.output.bias[order] * 0.3)
    labels = tuple(known[index] for index in order.tolist())
    config = checkpoint.model.config
    checkpoint.model.config = replace(config, head=replace(config.head, labels=labels))
    save(checkpoint, folder, checkpoint.meta)
    assert load(folder).model.config.head.labels == labels
    return folder


def test_the_answers_are_the_mean_of_the_probabilities_label_by_label(tagger: Path, tags: Path, tmp_path: Path):
    other = other_teacher(tagger, tmp_path / "other")
    asked = {"model": str(tagger), "task": "token-classification", "data": str(tags), "dtype": "float32"}
    console = Console(quiet=True)
    by_hand = []
    for model in (tagger, other):
        job = Job(make_recipe(asked | {"model": str(model)}), console, only_served=True)
        judged = job.judge("train")(job.served())
        by_hand.append([dict(zip(job.labels, np.exp(record).T, strict=True)) for record in judged.log_probabilities])
    job = Job(make_recipe(asked | {"finetune": {"teachers": [str(tagger), str(other)]}}), console, new_head=True)
    encoded = job.encode(job.dataset.records("train"))
    answers = Teachers(job).answers(encoded, [])
    apart = 0.0
    for window, given in zip(encoded, answers.windows, strict=True):
        for (record, word), row in zip(window.owners, given.exp().numpy(), strict=True):
            wanted = [(by_hand[0][record][name][word] + by_hand[1][record][name][word]) / 2 for name in job.labels]
            assert np.allclose(row, wanted, atol=1e-5)
            apart = max(apart, abs(by_hand[0][record]["O"][word] - by_hand[1][record]["O"][word]))
    assert apart > 0.1, "teachers of one mind would show nothing"
