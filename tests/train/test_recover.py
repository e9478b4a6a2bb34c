"""Recovery: what a student is compared with, where, and that the teacher is left alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from chinchilla_lm.console import Console
from chinchilla_lm.data.batches import EncodedBatch
from chinchilla_lm.data.encoded import IGNORED
from chinchilla_lm.errors import InputError
from chinchilla_lm.models.batch import Batch
from chinchilla_lm.models.config import HeadConfig
from chinchilla_lm.models.transformer import Transformer
from chinchilla_lm.shorten.surgery import without
from chinchilla_lm.train.loop import FitSettings, fit
from chinchilla_lm.train.recover import Answers, Teacher, Weights, fine_tuning_loss, freeze_unseen, recovery_loss
from tests.train.toy import epochs

POST = {"norm": "layernorm", "placement": "post", "causal": False, "gated": False, "final_norm": False}
TAGS = HeadConfig("token-classification", labels=("O", "B-X", "I-X"))
TASKS: dict[str, tuple[dict[str, Any], int | None]] = {
    "text": ({}, None),
    "tags": ({"causal": False, "head": TAGS}, 3),
    "post-norm tags": ({**POST, "head": TAGS}, 3),
    "classes": ({"head": HeadConfig("text-classification", labels=("a", "b", "c"), pooling="mean")}, 3),
    "scores": ({"head": HeadConfig("ranking", labels=("score",), pooling="last")}, 1),
}
ALL = Weights(kl=1.0, hidden=0.7, squared=0.3, task=0.5, temperature=2.0)


@pytest.fixture
def teacher(tiny_config, tiny_model) -> Callable[[str], Transformer]:
    """A maker of random models in float32, by task."""
    return lambda task: tiny_model(tiny_config(**TASKS[task][0]), dtype=torch.float32)


def batch(task: str) -> EncodedBatch:
    random = torch.Generator().manual_seed(3)
    ids = torch.randint(97, (3, 7), generator=random)
    mask = torch.arange(7)[None] < torch.tensor([[7], [5], [2]])
    size = TASKS[task][1]
    if task in ("classes", "scores"):
        targets = torch.tensor([2, 0, 1]) if size == 3 else torch.tensor([0.5, -1.0, 2.0])
    else:
        targets = torch.randint(size or 97, (3, 7), generator=random).masked_fill(~mask, IGNORED)
        targets[:, 1] = IGNORED
    return EncodedBatch(Batch(ids, mask), targets, [0, 1, 2])


def logits_at_targets(model: Transformer, given: EncodedBatch) -> Tensor:
    """The long way round: everything, then what counts."""
    logits = model(given.batch)
    return logits if logits.ndim == 2 else logits[given.targets != IGNORED]


@pytest.mark.parametrize("task", TASKS)
def test_a_student_that_lacks_nothing_has_a_loss_of_exactly_zero(teacher, task):
    original = teacher(task)
    student = without(original, {}, share=False)
    for weights in (Weights(), Weights(temperature=3.0), Weights(kl=0, hidden=1.0), Weights(kl=0, squared=1.0)):
        loss = recovery_loss(Teacher(original, lambda: batch(task)), weights)
        with torch.no_grad():  # torch takes another attention kernel where it needs gradients
            assert loss(student, batch(task)).item() == 0.0
        trained = loss(student, batch(task))
        assert trained.item() == pytest.approx(0.0, abs=1e-6)
        assert trained.requires_grad


@pytest.mark.parametrize("task", TASKS)
def test_the_loss_is_the_weighted_sum_of_its_parts(teacher, task):
    original, given = teacher(task), batch(task)
    student = without(original, {"1.attn": "lose", "2.mlp": "lose"}, share=False)
    ours, theirs = logits_at_targets(student, given), logits_at_targets(original, given)
    assert given.targets is not None
    targets = given.targets[given.targets != IGNORED]
    if ours.shape[-1] == 1:
        kl = 0.5 * (ours - theirs).square().mean()
        gold = (ours.squeeze(-1) - targets).square().mean()
    else:
        q, p = (ours / 2).log_softmax(-1), (theirs / 2).log_softmax(-1)
        kl = 4 * (p.exp() * (p - q)).sum(-1).mean()
        gold = -ours.log_softmax(-1).gather(1, targets[:, None]).mean()
    squared = (ours - theirs).square().sum(-1).mean()
    asked = Teacher(original, lambda: given)
    hidden = recovery_loss(asked, Weights(kl=0, hidden=1.0))(student, given)
    total = kl + 0.7 * hidden + 0.3 * squared + 0.5 * gold
    assert min(kl.item(), hidden.item(), squared.item(), gold.item()) > 1e-3
    assert recovery_loss(asked, ALL)(student, given).item() == pytest.approx(total.item(), rel=1e-4)
    assert fine_tuning_loss(0.0)(student, given).item() == pytest.approx(gold.item(), rel=1e-4)


def streams(model: Transformer, given: EncodedBatch) -> list[Tensor]:
    """The stream at every boundary of the chain."""
    x, context = model.embed(given.batch)
    found = [x]
    for position in range(len(model.names)):
        found.append(model.run(found[-1], context, position, position + 1))
    return found


@pytest.mark.parametrize(
    ("dropped", "boundaries"),
    [
        ({}, [2, 4, 6]),
        ({"1.attn": "lose"}, [2, 4, 6]),
        ({"1.mlp": "lose"}, [2, 6]),
        ({"0.attn": "lose", "0.mlp": "lose", "2.mlp": "lose"}, [4]),
        ({"0.mlp": "lose", "1.mlp": "lose", "2.mlp": "lose"}, [6]),
    ],
)
def test_hidden_states_are_compared_behind_every_mlp_that_is_left(teacher, dropped, boundaries):
    original, given = teacher("text"), batch("text")
    student = without(original, dropped, share=False)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    ours, theirs, mask = streams(student, given), streams(original, given), given.batch.mask
    wanted = [
        (ours[i] - theirs[i])[mask].square().mean() / theirs[i][mask].var()  # boundary i lies behind i links
        for i in boundaries
    ]
    found = recovery_loss(Teacher(original, lambda: given), Weights(kl=0, hidden=1.0))(student, given)
    assert found.item() == pytest.approx(torch.stack(wanted).mean().item(), rel=1e-4)


def test_the_teacher_is_not_touched_and_the_student_comes_near_it(teacher):
    original = teacher("text")
    before = {name: value.clone() for name, value in original.state_dict().items()}
    student = without(original, {"1.attn": "lose", "1.mlp": "lose"}, share=False)
    given = epochs()(0)[0]
    loss = recovery_loss(Teacher(original, lambda: given), Weights(hidden=1.0))
    first = loss(student, given).item()
    fit(student, epochs(), loss, FitSettings(6, 1e-2, 1e-2), Console(quiet=True), label="toy")
    assert loss(student, given).item() < 0.5 * first
    assert all(torch.equal(value, before[name]) for name, value in original.state_dict().items())
    assert all(parameter.grad is None for parameter in original.parameters())
    assert original.training is False


@pytest.mark.parametrize("weights", [Weights(kl=0, hidden=1.0), Weights(), Weights(kl=0, task=1.0)])
@pytest.mark.parametrize("dropped", [{"1.attn": "lose"}, {"2.mlp": "lose"}, {"1.mlp": "lose", "2.attn": "lose"}])
def test_every_weight_that_is_trained_has_a_gradient(teacher, dropped, weights):
    original, given = teacher("text"), batch("text")
    student = without(original, dropped, share=False)
    freeze_unseen(student, weights)
    recovery_loss(Teacher(original, lambda: given), weights)(student, given).backward()
    trained = {name for name, one in student.named_parameters() if one.requires_grad}
    assert trained == {name for name, one in student.named_parameters() if one.grad is not None}
    assert len(trained) > 5


def test_a_loss_without_any_part_is_an_input_error(teacher):
    with pytest.raises(InputError, match="all weights of the recovery loss are 0"):
        recovery_loss(Teacher(teacher("text")), Weights(kl=0))


def test_a_teacher_in_bfloat16_teaches_a_student_in_float32(teacher):
    original = teacher("text")
    student = without(original, {}, share=False)
    loss = recovery_loss(Teacher(original.bfloat16(), lambda: batch("text")), Weights(hidden=1.0))(
        student, batch("text")
    )
    assert loss.dtype == torch.float32
    assert 0 < loss.item() < 0.05


@pytest.mark.parametrize("task", TASKS)
def test_the_teacher_says_the_same_of_a_window_in_another_batch_without_running_again(teacher, task):
    original, given = teacher(task), batch(task)
    asked = Teacher(original)
    everything = slice(None)
    first = asked.look(given, ())[0](everything)
    order = [2, 0]
    assert given.batch.mask is not None
    assert given.targets is not None
    other = EncodedBatch(Batch(given.batch.ids[order], given.batch.mask[order]), given.targets[order], order)
    expected = logits_at_targets(original, other)
    if original.config.head.kind != "language-modeling":
        original.embedding.tokens.weight.data.fill_(torch.nan)  # whatever runs now is no number
    found = asked.look(other, ())[0](everything)
    torch.testing.assert_close(found, expected.float(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(asked.look(given, ())[0](everything), first, rtol=1e-5, atol=1e-5)


def test_a_teacher_in_bfloat16_is_heard_where_norms_give_float32(teacher):
    """As CUDA's autocast has it."""
    original = teacher("tags").bfloat16()
    original.finish = lambda x: Transformer.finish(original, x).float()
    said = Teacher(original).look(batch("tags"), ())[0](slice(None))
    assert said.dtype is torch.bfloat16


def answers_to(given: EncodedBatch) -> list[Tensor]:
    """Log-probabilities of three labels at each target, a row at a time."""
    assert given.targets is not None
    counts = [1] * 3 if given.targets.ndim == 1 else [int(n) for n in (given.targets != IGNORED).sum(1)]
    random = torch.Generator().manual_seed(5)
    return [torch.randn(n, 3, generator=random).log_softmax(-1) for n in counts]


@pytest.mark.parametrize("task", ["tags", "classes"])
def test_answers_of_others_take_their_share_of_the_loss(teacher, task):
    model, given, windows = teacher(task), batch(task), answers_to(batch(task))
    assert given.targets is not None
    ours, theirs = logits_at_targets(model, given), torch.cat(windows)
    gold = -ours.log_softmax(-1).gather(1, given.targets[given.targets != IGNORED][:, None]).mean()
    q, p = (ours / 2).log_softmax(-1), (theirs / 2).log_softmax(-1)
    kl = 4 * (p.exp() * (p - q)).sum(-1).mean()
    loss = fine_tuning_loss(0.0, Answers(windows, labelled=3, weight=0.3, temperature=2.0))(model, given)
    assert loss.item() == pytest.approx((0.7 * gold + 0.3 * kl).item(), rel=1e-4)
    shuffled = EncodedBatch(given.batch, given.targets, [1, 0, 2])
    turned = Answers([windows[1], windows[0], windows[2]], labelled=3, weight=0.3, temperature=2.0)
    assert fine_tuning_loss(0.0, turned)(model, shuffled).item() == pytest.approx(loss.item(), rel=1e-6)


@pytest.mark.parametrize("task", ["tags", "classes"])
def test_where_there_is_no_gold_label_the_answers_alone_are_learnt(teacher, task):
    model, given, windows = teacher(task), batch(task), answers_to(batch(task))
    assert given.targets is not None
    ours, theirs = logits_at_targets(model, given).log_softmax(-1), torch.cat(windows)
    targets = given.targets[given.targets != IGNORED]
    gold = -ours.gather(1, targets[:, None]).squeeze(1)
    kl = (theirs.exp() * (theirs - ours)).sum(-1)
    labelled = len(windows[0])
    wanted = torch.cat([0.7 * gold[:labelled] + 0.3 * kl[:labelled], kl[labelled:]]).mean()
    answers = Answers(windows, labelled=1, weight=0.3, temperature=1.0)
    assert fine_tuning_loss(0.0, answers)(model, given).item() == pytest.approx(wanted.item(), rel=1e-4)
