"""Several processes have the losses and the weights of one, at the same batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from chinchilla_lm.console import Console
from chinchilla_lm.data.batches import EncodedBatch, batches
from chinchilla_lm.data.encoded import Encoded
from chinchilla_lm.errors import InputError
from chinchilla_lm.models.config import HeadConfig, ModelConfig, RopeConfig
from chinchilla_lm.models.transformer import Transformer
from chinchilla_lm.runtime.processes import Processes
from chinchilla_lm.train import state as states
from chinchilla_lm.train.loop import FitSettings, fit
from chinchilla_lm.train.parallel import Layout, Parallel
from chinchilla_lm.train.recover import Teacher, Weights, fine_tuning_loss, recovery_loss
from tests.train.together import together
from tests.train.toy import windows

HERE = "tests.train.test_parallel"
LABELS = ("a", "b", "c")


def config(decoder: bool) -> ModelConfig:
    head = HeadConfig("language-modeling", bias=False, tied=True)
    shared: dict[str, Any] = {
        "family": "test", "vocab_size": 97, "hidden_size": 16, "num_blocks": 3, "num_heads": 4, "head_dim": 4,
        "intermediate_size": 24, "max_positions": 64, "norm_eps": 1e-5,
    }  # fmt: skip
    if decoder:
        return ModelConfig(
            **shared, num_kv_heads=2, causal=True, norm="rmsnorm", placement="pre", activation="silu", gated=True,
            head=head, qkv_bias=False, out_bias=False, mlp_bias=False, positions="rope", ropes=(RopeConfig(),) * 3,
        )  # fmt: skip
    return ModelConfig(
        **shared, num_kv_heads=4, causal=False, norm="layernorm", placement="post", activation="gelu", gated=False,
        head=HeadConfig("token-classification", labels=LABELS), positions="learned", embedding_norm=True,
    )  # fmt: skip


def model(decoder: bool, dropped: Sequence[str] = (), seed: int = 0) -> Transformer:
    made = Transformer(config(decoder), dict.fromkeys(dropped, "lose"))
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in made.named_parameters():
            centre = 1.0 if name.endswith("norm.weight") else 0.0
            weight.copy_(centre + 0.2 * torch.randn(weight.shape, generator=random))
    made.tie()
    return made


def epochs(decoder: bool) -> Callable[[int], Sequence[EncodedBatch]]:
    """Batches of three rows or so, with padding; the last of each epoch has one row."""
    made = windows(10)
    if not decoder:
        made = [Encoded(one.ids, None, [token % 3 for token in one.ids], one.owners) for one in made]
    return lambda epoch: list(batches(made, max_rows=3, shuffle_seed=epoch))


def trained(here: Processes | None, decoder: bool, recovers: bool, layout: Layout, most: int | None = None,
            state: str | None = None, stop: int | None = None) -> tuple[list[float], dict[str, Tensor]]:  # fmt: skip
    """The loss of each step as the first process has it, and the weights at last."""
    student = model(decoder, ("1.mlp",) if recovers else (), seed=0 if here is None or here.first else 9)
    student.dropout, student.token_dropout = 0.2, 0.1
    if recovers:
        student.embedding.requires_grad_(False)
        loss = recovery_loss(
            Teacher(model(decoder).eval(), lambda: epochs(decoder)(0)[0]), Weights(hidden=0.5, task=0.3)
        )
    else:
        loss = fine_tuning_loss(0.1)
    seen: list[float] = []

    class Watching(Console):
        def progress(self, *args: Any) -> Any:
            bar = super().progress(*args)

            def advance(n: float = 1, note: str = "") -> None:
                if stop is not None and len(seen) == stop:
                    raise KeyboardInterrupt
                seen.append(float(note.split()[1]))

            bar.advance = advance  # type: ignore[method-assign]
            return bar

    if state is not None and here is not None:
        states.STATE_INTERVAL_S = 0.0  # of a process of its own
    readings = iter([0.1, 0.3, 0.2])
    settings = FitSettings(2.0, 1e-2, 1e-2, seed=3, most_tokens=most)
    options: dict[str, Any] = {"layout": layout, "state": None if state is None else Path(state)}
    if recovers:
        options["evaluate"] = lambda: next(readings)
    with suppress(KeyboardInterrupt):
        fit(student, epochs(decoder), loss, settings, Watching(quiet=True), label="toy", **options)
    return seen, {name: one.detach().clone() for name, one in student.named_parameters()}


def same(found: tuple[list[float], dict[str, Tensor]], wanted: tuple[list[float], dict[str, Tensor]]) -> None:
    assert found[0] == pytest.approx(wanted[0], abs=2e-4)  # they are printed with four digits
    assert found[1].keys() == wanted[1].keys()
    for name, one in wanted[1].items():
        if name.endswith(
            "qkv.bias"
        ):  # softmax does not see the keys' bias: Adam makes steps of the rounding of nothing
            one, found[1][name] = (torch.cat((bias[:16], bias[32:])) for bias in (one, found[1][name]))
        torch.testing.assert_close(found[1][name], one, rtol=1e-5, atol=1e-5)


# A shortened decoder that recovers, an encoder whose gradients are accumulated, a decoder that is fine-tuned.
CASES = ((True, True, None), (False, False, 9), (True, False, None))


def everything(here: Processes, where: str) -> dict[Any, Any]:
    """All cases in both layouts; a run that is stopped and its state; weights that each process keeps; NaN on one."""
    found: dict[Any, Any] = {
        (case, shard): trained(here, *case[:2], Layout(here.count, shard), case[2])
        for case in CASES
        for shard in (False, True)
    }
    for shard in (False, True):
        layout, path = Layout(here.count, shard), f"{where}/state-{shard}"
        trained(here, True, True, layout, state=path, stop=5)
        found["resumed", shard] = trained(here, True, True, layout, state=f"{where}/single-{shard}")
    found["kept"] = sum(
        cast(Any, one).to_local().numel()
        for one in Parallel(model(True), Layout(here.count, True)).trained.parameters()
    )
    found["said"] = nan_on_one(here)
    return found


def nan_on_one(here: Processes) -> str:
    """What is raised where the loss of the second process is no number."""

    def loss(wrapped: nn.Module, batch: EncodedBatch) -> Tensor:
        return fine_tuning_loss(0.0)(wrapped, batch) * (float("nan") if here.rank == 1 else 1.0)

    settings = FitSettings(1.0, 1e-2, 1e-2)
    with pytest.raises(InputError) as error:
        fit(model(True), epochs(True), loss, settings, Console(quiet=True), label="toy", layout=Layout(here.count))
    return str(error.value)


@pytest.mark.parametrize("count", [2, 4])
def test_several_processes_are_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int):
    """With dropout, padding, a last batch of one row; what the other processes begin with does not matter."""
    monkeypatch.setattr(states, "STATE_INTERVAL_S", 0.0)
    for shard in (False, True):  # left by one process, for several to go on
        trained(None, True, True, Layout(), state=str(tmp_path / f"single-{shard}"), stop=5)
    each = together(count, HERE, "everything", tmp_path / "run", where=str(tmp_path))
    alone = {case: trained(None, *case[:2], Layout()) for case in CASES}
    for case in CASES:
        for shard in (False, True):
            same(each[0][case, shard], alone[case])
    wanted = alone[CASES[0]]
    for shard in (False, True):
        goes_on = trained(None, True, True, Layout(), state=str(tmp_path / f"state-{shard}"))
        for losses, weights in (goes_on, each[0]["resumed", shard]):
            assert 0 < len(losses) < len(wanted[0]), "it did not begin again"
            same((wanted[0], weights), wanted)
    size = sum(one.numel() for one in model(True).parameters())
    kept = [one["kept"] for one in each]
    assert size <= sum(kept) < 1.2 * size
    assert max(kept) < 1.2 * size / count
    assert all("the loss is nan at step 0; pass a learning rate below" in one["said"] for one in each)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dp=3", "is for 3 processes, and 2 are started"),
        ("dp", "is not of the form dp=2 or dp=2,shard"),
        ("dp=2,dp=1", "is not of the form"),
        ("shard", "is not of the form"),
        ("dp=2,shard,shard", "is not of the form"),
        ("dp=-2", "is not of the form"),
        ("", "is not of the form"),
    ],
)
def test_a_layout_that_does_not_fit_is_refused(text: str, message: str):
    with pytest.raises(InputError, match=message):
        Layout.parse(text, 2)


def test_layouts():
    assert Layout.parse(None, 4) == Layout(4)
    assert Layout.parse("dp=2, shard", 2) == Layout(2, True)
    assert Layout.parse("dp=1,shard", 1) == Layout(1, False), "one process has nobody to share with"
