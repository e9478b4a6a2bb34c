"""Judging models: every answer ends at the right example, whatever windows and batches lie between."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from chinchilla_lm.data.batches import EncodedBatch, batches
from chinchilla_lm.data.encode import encode_labelled, encode_tagged, encode_text
from chinchilla_lm.data.encoded import IGNORED, DataWarning, Encoded
from chinchilla_lm.data.records import Labelled, Tagged, Text
from chinchilla_lm.errors import InputError
from chinchilla_lm.evaluate.judge import Judge
from chinchilla_lm.models.batch import Batch
from chinchilla_lm.models.checkpoint import Checkpoint, load

LABELS = ("O", "B-X", "I-X")
SENTENCE = "Once upon a time the quick brown fox met Angela Merkel and Siemens in Munich"
WORDS = SENTENCE.split()
TEXTS = ["the quick brown fox", "Munich", "is it good or bad ?", "Angela Merkel met Siemens", "very good , time"]


@pytest.fixture(scope="module")
def bert(model_folder) -> Checkpoint:
    return load(model_folder("bert", "token-classification"))


@pytest.fixture(scope="module")
def llama(model_folder) -> Checkpoint:
    return load(model_folder("llama-gqa"))


def batched(windows: list[Encoded], max_tokens: int = 40) -> list[EncodedBatch]:
    return list(batches(windows, max_tokens=max_tokens, shuffle_seed=1))


def sentences() -> list[Tagged]:
    """Sentences of 1 to 15 words in three documents; gold tags by the words' lengths."""
    made = []
    for index, length in enumerate((15, 3, 1, 9, 12, 2, 7)):
        words = tuple(WORDS[(index + 2 * i) % len(WORDS)] for i in range(length))
        made.append(Tagged(f"s{index}", f"d{index // 3}", words, tuple(LABELS[len(word) % 3] for word in words)))
    return made


@pytest.mark.parametrize("context", ["sentence", "document"])
@pytest.mark.parametrize("max_tokens", [4, 7, 11, 40])
def test_every_tag_ends_at_its_word(bert: Checkpoint, context: Any, max_tokens: int):
    """A model whose answer at a token follows from the token alone, so that the right answers are known."""
    records, tokenizer = sentences(), bert.tokenizer
    with pytest.warns(DataWarning) if max_tokens < 40 else nullcontext():
        windows = encode_tagged(records, tokenizer, dict(zip(LABELS, range(3), strict=True)), max_tokens, context)

    def forward(batch: Batch) -> Tensor:
        return 4.0 * F.one_hot(batch.ids % 3, 3).float()

    judged = Judge("token-classification", records, windows, batched(windows), LABELS)(forward)
    first = {word: tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in WORDS}
    for record, prediction in zip(records, judged.predictions, strict=True):
        assert prediction.id == record.id
        assert prediction.gold == list(record.tags)
        assert prediction.predicted == [LABELS[first[word] % 3] for word in record.words]
        assert prediction.score == pytest.approx([math.exp(4) / (math.exp(4) + 2)] * len(record.words))
    right = sum(
        tag == LABELS[first[word] % 3]
        for record in records
        for word, tag in zip(record.words, record.tags, strict=True)
    )
    words = sum(len(record.words) for record in records)
    assert 0 < right < words
    assert judged.measurement.sums["token_micro"].value == pytest.approx(right / words)
    assert judged.measurement.sums["token_micro"].documents == 3
    assert judged.measurement.n == 7
    assert judged.primary.name == "entity_f1"


def test_tags_of_a_real_model_do_not_depend_on_the_batches(bert: Checkpoint):
    records = sentences()
    windows = encode_tagged(records, bert.tokenizer, dict(zip(LABELS, range(3), strict=True)), 40)
    answers = []
    for batch_tokens in (1, 60, 1000):
        judge = Judge("token-classification", records, windows, batched(windows, batch_tokens), LABELS)
        answers.append([prediction.predicted for prediction in judge(bert.model).predictions])
    assert answers[0] == answers[1] == answers[2]
    assert len({str(tags) for tags in answers[0]}) > 1


@pytest.fixture
def text(llama: Checkpoint) -> tuple[list[Text], list[Encoded]]:
    records = [Text(f"t{i}", f"d{i}", " ".join(WORDS[i:] + WORDS[:i] + ["naïve 🙂"])) for i in range(5)]
    windows = encode_text(records, llama.tokenizer, 12)
    return records, [replace(window, targets=[*window.ids[1:], IGNORED]) for window in windows]


def test_perplexity_is_that_of_a_direct_computation(llama: Checkpoint, text):
    records, windows = text
    judged = Judge("language-modeling", records, windows, batched(windows), ())(llama.model)
    nats = []
    with torch.no_grad():
        for window in windows:
            ids = torch.tensor([window.ids])
            nats.append(F.cross_entropy(llama.model(Batch(ids))[0, :-1].double(), ids[0, 1:], reduction="sum").item())
    predicted, size = 11 * len(windows), sum(sum(window.bytes) for window in windows)
    assert len(windows) > 5
    assert judged.measurement.sums["perplexity"].value == pytest.approx(math.exp(sum(nats) / predicted), rel=1e-5)
    assert judged.measurement.sums["bits_per_byte"].value == pytest.approx(sum(nats) / math.log(2) / size, rel=1e-5)
    assert [prediction.score for prediction in judged.predictions] == pytest.approx([n / 11 for n in nats], rel=1e-4)
    assert judged.primary.documents == len(records)
    assert any(len(window.owners) > 1 for window in windows), "a window spans two documents"
    by_document = np.zeros(len(records))
    with torch.no_grad():
        for window in windows:
            ids = torch.tensor([window.ids])
            each = F.cross_entropy(llama.model(Batch(ids))[0, :-1].double(), ids[0, 1:], reduction="none").tolist()
            for record, tokens in window.owners:
                by_document[record] += sum(each[:tokens])
                each = each[tokens:]
    np.testing.assert_allclose(judged.primary.per_document[:, 0], by_document, rtol=1e-5)


def test_a_document_that_goes_on_behind_the_last_window_is_not_read_to_its_end(llama: Checkpoint):
    """`a` is read in part, although the last window ends in `c`; so is `d`, of which nothing is read."""
    line = " ".join(WORDS)
    records = [Text(str(i), document, line) for i, document in enumerate("abcad")]
    windows = [replace(one, targets=[*one.ids[1:], IGNORED]) for one in encode_text(records, llama.tokenizer, 4)]
    first = next(i for i, one in enumerate(windows) if one.owners[-1][0] == 2)
    judge = Judge("language-modeling", records, windows[: first + 1], batched(windows[: first + 1]), ())
    assert judge.finished() == {"b"}
    sums = judge(llama.model).measurement.sums["bits_per_byte"]
    assert sums.ids == ("a", "b", "c")
    assert sums.unfinished == {"a", "c", "d"}


def texts(label: Callable[[int], str], pairs: bool) -> list[Labelled]:
    return [
        Labelled(f"r{i}", f"d{i // 2}", None, text, TEXTS[-1 - i] if pairs else None, label(i))
        for i, text in enumerate(TEXTS)
    ]


def alone(checkpoint: Checkpoint, record: Labelled) -> Tensor:
    """The model's output for one text or pair, without a batch."""
    given = checkpoint.tokenizer(record.text, record.pair, return_token_type_ids=True, return_tensors="pt")
    with torch.no_grad():
        return checkpoint.model(Batch(given["input_ids"], None, given["token_type_ids"]))[0]


def test_classes_are_those_of_the_single_texts(model_folder):
    checkpoint = load(model_folder("bert", "text-classification"))
    records = texts(lambda i: LABELS[i % 3], pairs=False)
    assert checkpoint.model.head.output is not None
    with torch.no_grad():  # a random model prefers one class; so that it does not
        mean = torch.stack([alone(checkpoint, record) for record in records]).mean(0)
        checkpoint.model.head.output.bias.sub_(mean)
    windows = encode_labelled(records, checkpoint.tokenizer, dict(zip(LABELS, range(3), strict=True)), 40)
    judged = Judge("text-classification", records, windows, batched(windows, 20), LABELS)(checkpoint.model)
    outputs = [alone(checkpoint, record).softmax(-1) for record in records]
    wanted = [LABELS[int(output.argmax())] for output in outputs]
    assert len(set(wanted)) > 1
    assert [prediction.predicted for prediction in judged.predictions] == wanted
    assert [prediction.score for prediction in judged.predictions] == pytest.approx(
        [output.max().item() for output in outputs], rel=1e-4
    )
    right = sum(record.label == label for record, label in zip(records, wanted, strict=True))
    assert judged.measurement.sums["accuracy"].value == pytest.approx(right / 5)
    assert judged.primary.documents == 3


def test_scores_of_pairs_are_compared_by_their_squared_error(model_folder):
    checkpoint = load(model_folder("bert", "ranking"))
    records = texts(lambda i: f"{0.5 * i - 1:g}", pairs=True)
    windows = encode_labelled(records, checkpoint.tokenizer, None, 40)
    judged = Judge("ranking", records, windows, batched(windows, 30), ("score",))(checkpoint.model)
    outputs = [alone(checkpoint, record).item() for record in records]
    assert len({round(output, 3) for output in outputs}) == 5
    assert [prediction.predicted for prediction in judged.predictions] == pytest.approx(outputs, rel=1e-4, abs=1e-5)
    assert [prediction.gold for prediction in judged.predictions] == [-1.0, -0.5, 0.0, 0.5, 1.0]
    wanted = sum((float(record.label) - output) ** 2 for record, output in zip(records, outputs, strict=True)) / 5
    assert judged.primary.value == pytest.approx(wanted, rel=1e-4)
    assert judged.primary.higher_is_better is False


@pytest.mark.parametrize("task", ["token-classification", "language-modeling", "text-classification", "ranking"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_outputs_that_are_no_numbers_are_an_input_error(bert: Checkpoint, text, task: str, value: float):
    def forward(batch: Batch) -> Tensor:
        size = 400 if task == "language-modeling" else 1 if task == "ranking" else 3
        logits = torch.zeros(*(batch.ids.shape if task.startswith(("tok", "lang")) else batch.ids.shape[:1]), size)
        logits.view(-1)[0] = value
        return logits

    ids = dict(zip(LABELS, range(3), strict=True))
    records: list[Any] = sentences() if task == "token-classification" else texts(lambda i: "O", pairs=False)
    if task == "token-classification":
        windows = encode_tagged(records, bert.tokenizer, ids, 40)
    else:
        windows = encode_labelled(records, bert.tokenizer, ids, 40)
    if task == "language-modeling":
        records, windows = text
    with pytest.raises(InputError, match="outputs are not finite numbers; check its weights, or pass --dtype float32"):
        Judge(task, records, windows, batched(windows), LABELS)(forward)


def test_an_empty_split_is_an_input_error():
    with pytest.raises(InputError, match="the split has 0 records and 0 windows; pass one that is not empty"):
        Judge("token-classification", [], [], [], LABELS)


def test_tags_are_decoded_as_legal_bio_where_the_model_was_trained_on_it(bert: Checkpoint):
    """Every word is I-X with 0.6 and B-X with 0.4: word by word all are I-X, of which none may begin."""
    records = sentences()
    windows = encode_tagged(records, bert.tokenizer, dict(zip(LABELS, range(3), strict=True)), 40)

    def forward(batch: Batch) -> Tensor:
        return torch.tensor([1e-9, 0.4, 0.6]).log().expand(*batch.ids.shape, 3)

    for legal, first in ((False, "I-X"), (True, "B-X")):
        judged = Judge("token-classification", records, windows, batched(windows), LABELS, legal_tags=legal)(forward)
        for record, prediction in zip(records, judged.predictions, strict=True):
            others = len(record.words) - 1
            assert prediction.predicted == [first] + ["I-X"] * others
            assert prediction.score == pytest.approx([0.4 if legal else 0.6] + [0.6] * others, rel=1e-4)
