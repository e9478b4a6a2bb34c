"""The training loop: it learns, keeps the best weights, and a run that was stopped ends as if it had not been."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from chinchilla_lm.console import Console
from chinchilla_lm.data.batches import EncodedBatch
from chinchilla_lm.errors import InputError
from chinchilla_lm.models.transformer import Transformer
from chinchilla_lm.train import state as states
from chinchilla_lm.train.loop import FitResult, FitSettings, fit, make_optimizer, schedule
from chinchilla_lm.train.parts import with_keys
from chinchilla_lm.train.recover import fine_tuning_loss
from tests.train.toy import SETTINGS, epochs

STEPS = 15  # of the toy's three epochs
task = fine_tuning_loss(0.0)


@pytest.fixture
def model(tiny_config, tiny_model) -> Callable[[], Transformer]:
    """A maker of one and the same model in float32."""
    return lambda: tiny_model(tiny_config(), dtype=torch.float32)


def train(model: Transformer, settings: FitSettings = SETTINGS, **options: Any) -> FitResult:
    given: dict[str, Any] = {"batches": epochs(), "loss": task, "label": "toy", "console": Console(quiet=True)}
    given |= options
    return fit(model, given.pop("batches"), given.pop("loss"), settings, given.pop("console"), **given)


def dev_loss(model: Transformer, rows: int = 12) -> float:
    with torch.inference_mode():
        return float(torch.stack([task(model, batch) for batch in epochs(rows)(0)]).mean())


def weights(model: Transformer) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def same(model: Transformer, other: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, other[name]) for name, value in weights(model).items())


def test_the_schedule_climbs_and_falls_linearly():
    settings = replace(SETTINGS, warmup=0.2, final_rate=0.05)
    shares = [schedule(step, 50, settings) for step in range(50)]
    assert shares[:10] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0])
    assert shares[10:49] == pytest.approx([max(0.05, (50 - step) / 40) for step in range(10, 49)])
    assert shares[49] == 0.05
    assert schedule(0, 1, settings) == 1.0


def test_the_schedule_falls_along_a_cosine_where_that_is_asked():
    settings = replace(SETTINGS, warmup=0.2, final_rate=0.0, decay="cosine")
    shares = [schedule(step, 50, settings) for step in range(10, 50)]
    assert shares == pytest.approx([0.5 + 0.5 * math.cos(math.pi * step / 40) for step in range(40)])


def test_the_optimizer_decays_matrices_only_and_gives_new_weights_their_rate(model):
    student = model()
    names = {parameter: name for name, parameter in student.named_parameters()}
    found: dict[str, tuple[float, float]] = {}
    for group in make_optimizer(student, replace(SETTINGS, head_learning_rate=0.5), ["norm.weight"]).param_groups:
        found |= {names[parameter]: (group["weight_decay"], group["peak"]) for parameter in group["params"]}
    assert found.keys() == set(names.values())
    assert found.pop("norm.weight") == (0.0, 0.5)
    for name, (decay, rate) in found.items():
        assert decay == (0.0 if "norm" in name or name == "embedding.tokens.weight" else 0.01)
        assert rate == 1e-2


def test_the_loss_falls_on_what_can_be_learnt(model):
    student = model()
    assert dev_loss(student, rows=4) > 3.0
    result = train(student, replace(SETTINGS, epochs=25), batches=epochs(rows=4))
    assert dev_loss(student, rows=4) < 0.3
    assert result.steps == 25 * len(epochs(rows=4)(0))
    assert result.best is None


@pytest.mark.parametrize("share", [0.01, 0.4, 1.0, 2.3])
def test_a_run_takes_its_share_of_steps(model, share):
    seen: list[list[int]] = []

    def loss(student: Transformer, batch: EncodedBatch) -> Tensor:
        seen.append(batch.rows)
        return task(student, batch)

    one = len(epochs()(0))
    result = train(model(), replace(SETTINGS, epochs=share), loss=loss)
    wanted = [batch.rows for epoch in range(3) for batch in epochs()(epoch)]
    assert result.steps == max(1, round(share * one))
    assert seen == wanted[: result.steps]


@pytest.mark.parametrize("scores", [[0, 3, 1, 2], [5, 1, 2, 3], [0, 1, 2, 3], [1, 1, 1, 1]])
def test_the_best_weights_on_dev_are_left_in_the_model(model, scores):
    student = model()
    kept: list[dict[str, Tensor]] = []

    def evaluate() -> float:
        kept.append(weights(student))
        return float(scores[len(kept) - 1])

    result = train(student, evaluate=evaluate)
    best = scores.index(max(scores))  # the first of equals: training that brings nothing changes nothing
    assert len(kept) == 4
    assert same(student, kept[best])
    assert result.best == scores[best]
    assert result.best_step == best * len(epochs()(0))
    assert [entry["dev"] for entry in result.history] == scores


def test_without_a_dev_metric_the_last_weights_are_left(model):
    student = model()
    train(student)
    assert not same(student, weights(model()))
    other, rising = model(), iter(range(9))
    train(other, evaluate=lambda: dev_loss(other) * 0 + next(rising))
    assert same(student, weights(other)), "judging must not change the course"


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_no_number_is_an_input_error(model, value):
    student, before = model(), weights(model())
    with pytest.raises(InputError, match=r"loss is (nan|inf) at step 0; pass a learning rate below 0.01"):
        train(student, loss=lambda *given: task(*given) * value)
    assert same(student, before)


def test_nothing_to_train_on_is_an_input_error(model):
    with pytest.raises(InputError, match="0 batches"):
        train(model(), batches=lambda epoch: [])


class Stopper:
    """A loss that is stopped as by Ctrl-C when it is called for the n-th time."""

    def __init__(self, call: int) -> None:
        self.left = call

    def __call__(self, model: Transformer, batch: EncodedBatch) -> Tensor:
        if self.left == 0:
            raise KeyboardInterrupt
        self.left -= 1
        return task(model, batch)


@pytest.mark.parametrize("call", [0, 1, 4, 5, 6, 13])
@pytest.mark.parametrize("judged", [True, False])
def test_a_resumed_run_ends_with_the_same_weights(model, tmp_path: Path, call: int, judged: bool):
    def run(student: Transformer, loss: Any, **options: Any) -> FitResult:
        evaluate = (lambda: -dev_loss(student)) if judged else None
        return train(student, loss=loss, evaluate=evaluate, **options)

    whole, state = model(), tmp_path / "state"
    assert len(epochs()(0)) == STEPS // 3
    wanted = run(whole, task)
    with pytest.raises(KeyboardInterrupt):
        run(model(), Stopper(call), state=state, identity="a")
    resumed = model()
    result = run(resumed, task, state=state, identity="a")
    assert same(resumed, weights(whole))
    assert (result.steps, result.best, result.best_step) == (wanted.steps, wanted.best, wanted.best_step)
    assert result.history == wanted.history


@pytest.mark.parametrize("where", ["measuring", "noting"])
@pytest.mark.parametrize("turn", [0, 1, 3])
def test_a_run_that_was_stopped_while_it_was_judged_is_judged_again(model, tmp_path: Path, turn: int, where: str):
    """The last time too: all steps are taken then, and only the verdict on them is missing."""
    turns = 99

    class Stopping(Console):
        def say(self, text: str) -> None:
            if where == "noting" and turns == turn + 1 and "dev" in text:
                raise KeyboardInterrupt

    def run(student: Transformer, **options: Any) -> FitResult:
        def evaluate() -> float:
            nonlocal turns
            turns += 1
            if where == "measuring" and turns == turn + 1:
                raise KeyboardInterrupt
            return -dev_loss(student)

        return train(student, evaluate=evaluate, **options)

    whole, state, resumed = model(), tmp_path / "state", model()
    wanted = run(whole)
    turns = 0
    with pytest.raises(KeyboardInterrupt):
        run(model(), state=state, identity="a", console=Stopping(quiet=True))
    turns = 99
    result = run(resumed, state=state, identity="a")
    assert same(resumed, weights(whole))
    assert result.history == wanted.history
    assert result.best_step == wanted.best_step


def test_a_state_is_saved_on_the_way_and_a_killed_run_goes_on_from_there(model, tmp_path: Path, monkeypatch):
    """Killed, not interrupted: what is resumed is the last state that was written by the clock."""
    monkeypatch.setattr(states, "STATE_INTERVAL_S", 0.0)
    whole, state, calls = model(), tmp_path / "state", 0
    train(whole)

    def killed(student: Transformer, batch: EncodedBatch) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 9:
            raise SystemError
        return task(student, batch)

    with pytest.raises(SystemError):
        train(model(), loss=killed, state=state)
    resumed, before = model(), calls
    train(resumed, loss=killed, state=state)
    assert calls - before == STEPS - 8
    assert same(resumed, weights(whole))
    assert not list(tmp_path.glob("*.writing"))


def test_the_state_outlives_the_run_and_takes_no_step_again(model, tmp_path: Path):
    """The model may still have to be saved, and a full disk must not cost the training."""
    student, state = model(), tmp_path / "state"
    with pytest.raises(KeyboardInterrupt):
        train(model(), loss=Stopper(STEPS - 1), state=state)
    train(student, state=state)
    assert state.exists()
    again = model()
    train(again, loss=Stopper(1), state=state)  # the one step that is left, and none more
    assert same(again, weights(student))
    assert state.exists()


def test_the_state_of_another_run_is_ignored(model, tmp_path: Path):
    state, whole, other = tmp_path / "state", model(), model()
    with pytest.raises(KeyboardInterrupt):
        train(model(), replace(SETTINGS, learning_rate=0.5), loss=Stopper(4), state=state, identity="a")
    train(whole)
    result = train(other, state=state, identity="b")
    assert result.steps == STEPS
    assert same(other, weights(whole))


@pytest.mark.parametrize("damage", ["truncated", "text", "empty", "no place", "no weight", "misshapen"])
def test_a_damaged_state_is_an_input_error(model, tmp_path: Path, damage: str):
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    state = tmp_path / "toy.state"
    with pytest.raises(KeyboardInterrupt):
        train(model(), loss=Stopper(4), state=state)
    whole, tensors = state.read_bytes(), load_file(state)
    with safe_open(state, "pt") as file:
        about = file.metadata()
    if damage in ("truncated", "text", "empty"):
        state.write_bytes({"truncated": whole[: len(whole) // 2], "text": b"not a state", "empty": b""}[damage])
    if damage == "no weight":
        del tensors["model/norm.weight"]
    if damage == "misshapen":
        tensors["model/norm.weight"] = torch.zeros(3)
    if damage in ("no place", "no weight", "misshapen"):
        save_file(tensors, state, None if damage == "no place" else about)
    with pytest.raises(InputError, match=r"toy.state is damaged .*; delete it to start this stage again"):
        train(model(), state=state)


def test_a_state_that_cannot_be_written_is_an_input_error(model, tmp_path: Path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match=r"cannot write .*state .*; free room or pass another -o"):
        train(model(), loss=Stopper(4), state=tmp_path / "file" / "state")


def test_dropout_acts_in_training_only_and_follows_from_the_step(model):
    student = model()
    given = with_keys(epochs()(0)[0], 0, 0)
    plain = student(given.batch)
    student.dropout, student.token_dropout = 0.3, 0.2
    assert torch.equal(student.eval()(given.batch), plain)
    assert not torch.allclose(student.train()(given.batch), plain)
    runs = [model() for _ in range(2)]
    for run in runs:
        run.dropout = 0.3
        train(run)
        torch.rand(3)  # what else is drawn in between decides nothing
    assert same(runs[0], weights(runs[1]))


def test_token_dropout_takes_whole_tokens(model):
    student = model().train()
    student.token_dropout = 0.5
    given = with_keys(epochs()(0)[0], 0, 0).batch
    x, _ = student.embed(given)
    gone = (x == 0).all(-1)
    assert 0.3 < gone.float().mean() < 0.7
    assert torch.equal(x[~gone], student.embedding.tokens(given.ids)[~gone])
