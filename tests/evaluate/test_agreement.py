"""How many answers changed between two models."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from chinchilla_lm.data.batches import batches
from chinchilla_lm.data.encode import IGNORED, Encoded
from chinchilla_lm.data.records import Text
from chinchilla_lm.evaluate.agreement import agreement, of_answers
from chinchilla_lm.evaluate.judge import Judge
from chinchilla_lm.evaluate.predictions import Prediction
from chinchilla_lm.models.batch import Batch


def test_equal_accuracy_hides_flips():
    gold = ["a", "a", "b", "b"]
    before = [Prediction(str(i), g, p, 1.0) for i, (g, p) in enumerate(zip(gold, ["a", "b", "b", "a"], strict=True))]
    after = [Prediction(str(i), g, p, 1.0) for i, (g, p) in enumerate(zip(gold, ["b", "a", "b", "a"], strict=True))]
    uniform = [np.log(np.full((1, 2), 0.5))] * 4
    sharp = [np.log(np.array([[0.9, 0.1]]))] * 4
    found = agreement(of_answers(before, after, uniform, sharp), list("wxyz"))
    assert found.answers == 4
    assert (found.same.value, found.flipped.value) == (0.5, 0.5)
    assert found.kl.value == pytest.approx(0.5 * np.log(0.5 / 0.9) + 0.5 * np.log(0.5 / 0.1))
    assert found.same.low < 0.5 < found.same.high


def test_tags_count_word_by_word_and_a_wrong_answer_that_changes_is_no_flip():
    before = [Prediction("s", ["O", "B-X", "O"], ["O", "O", "B-X"], [1.0] * 3)]
    after = [Prediction("s", ["O", "B-X", "O"], ["O", "B-X", "I-X"], [1.0] * 3)]
    probabilities = [np.log(np.full((3, 3), 1 / 3))]
    found = agreement(of_answers(before, after, probabilities, probabilities), ["d"])
    assert found.answers == 3
    assert found.same.value == pytest.approx(1 / 3)
    assert found.flipped.value == pytest.approx(1 / 3)
    assert found.kl.value == 0.0


def test_running_text_is_compared_token_by_token():
    words, length = 7, 6
    logits = {
        name: torch.randn(4, words, words, generator=torch.Generator().manual_seed(i))
        for i, name in enumerate(("original", "changed"))
    }
    source = torch.Generator().manual_seed(5)
    ids = [torch.randint(words, (length,), generator=source).tolist() for _ in range(3)]
    encoded = [Encoded(row, None, [*row[1:], IGNORED], [(i, 2), (i + 1, 3)], (2, 3)) for i, row in enumerate(ids)]
    records = [Text(f"r{i}", f"d{i}", "x") for i in range(4)]

    def model(name):
        return lambda batch: logits[name][0][batch.ids]  # what comes next depends on the last word

    judge = Judge("language-modeling", records, encoded, batches(encoded, max_tokens=100, pad_id=0), ())
    judged = [judge(model(name)) for name in logits]
    found = judge.compare(model("original"), model("changed"), *judged)
    same, flipped, divergences = [], [], []
    for row in ids:
        old, new = (F.log_softmax(model(name)(Batch(torch.tensor([row])))[0, :-1].double(), -1) for name in logits)
        divergences += F.kl_div(new, old, log_target=True, reduction="none").sum(-1).tolist()
        was, is_now, gold = old.argmax(-1), new.argmax(-1), torch.tensor(row[1:])
        same += (was == is_now).tolist()
        flipped += ((was == gold) != (is_now == gold)).tolist()
    assert found is not None
    assert found.answers == 15
    assert found.same.value == pytest.approx(np.mean(same))
    assert found.flipped.value == pytest.approx(np.mean(flipped))
    assert found.kl.value == pytest.approx(np.mean(divergences), rel=1e-6)
    alike = judge.compare(model("original"), model("original"), judged[0], judged[0])
    assert alike is not None
    assert (alike.same.value, alike.flipped.value, alike.kl.value) == (1.0, 0.0, 0.0)
