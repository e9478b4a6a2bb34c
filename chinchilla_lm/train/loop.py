"""One training loop, for fine-tuning and for recovery: what differs is the loss that is handed in.

The order of the batches follows from (seed, epoch) alone and what dropout hits from (seed, step, row), so a run that
was stopped and resumed takes the same steps as one that was not.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Literal, TypeVar, cast

import torch
from torch import Tensor, nn

from chinchilla_lm.console import Console
from chinchilla_lm.data.batches import EncodedBatch
from chinchilla_lm.errors import InputError
from chinchilla_lm.runtime.processes import Agreed
from chinchilla_lm.train.parallel import ONE, Layout, Parallel
from chinchilla_lm.train.parts import with_keys
from chinchilla_lm.train.state import Place, Saving

M = TypeVar("M", bound=nn.Module)
Loss = Callable[[M, EncodedBatch], Tensor]


@dataclass(frozen=True, slots=True)
class FitSettings:
    """How to train. Rates are per step, `warmup` and `final_rate` are shares of the whole run and of the peak rate.

    decay: how the rate falls after the warm-up. dtype: of the products; weights, their gradients and all sums stay in
    float32. most_tokens: positions that are run at a time, where a batch has more; None: all of a batch.
    """

    epochs: float
    learning_rate: float
    head_learning_rate: float
    weight_decay: float = 0.01
    warmup: float = 0.1
    final_rate: float = 0.02
    decay: Literal["linear", "cosine"] = "linear"
    clip: float = 1.0
    betas: tuple[float, float] = (0.9, 0.98)
    seed: int = 0
    dtype: torch.dtype = torch.float32
    most_tokens: int | None = None


@dataclass(slots=True)
class FitResult:
    """Steps taken, the best dev metric (None without one), when it was reached, and the course of the run."""

    steps: int
    best: float | None
    best_step: int
    history: list[dict[str, float]]


def schedule(step: int, total: int, settings: FitSettings) -> float:
    """Share of the peak rate at a step: linear warm-up, then linear decay, or half a cosine, to `final_rate`."""
    warm = max(1, round(total * settings.warmup))
    if step < warm:
        return (step + 1) / warm
    left = (total - step) / max(1, total - warm)
    return max(settings.final_rate, left if settings.decay == "linear" else (1 - math.cos(math.pi * left)) / 2)


def make_optimizer(model: nn.Module, settings: FitSettings, fresh: Sequence[str] = ()) -> torch.optim.AdamW:
    """AdamW; no decay on vectors and embeddings; the head's own rate for weights that start from nothing."""
    groups: dict[tuple[bool, bool], list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decays = parameter.ndim > 1 and not name.startswith("embedding.")
            groups.setdefault((decays, name in fresh), []).append(parameter)
    parameters = [
        {
            "params": group,
            "weight_decay": settings.weight_decay if decays else 0.0,
            "peak": settings.head_learning_rate if is_fresh else settings.learning_rate,
        }
        for (decays, is_fresh), group in groups.items()
    ]
    return torch.optim.AdamW(parameters, lr=settings.learning_rate, betas=settings.betas, fused=True)


def fit(
    model: M,
    batches: Callable[[int], Sequence[EncodedBatch]],
    loss: Loss[M],
    settings: FitSettings,
    console: Console,
    *,
    label: str,
    evaluate: Callable[[], float] | None = None,
    optimizer: Callable[[nn.Module], torch.optim.AdamW] | None = None,
    remedy: str | None = None,
    state: Path | None = None,
    identity: str = "",
    layout: Layout = ONE,
) -> FitResult:
    """Train in place and leave the best weights in the model.

    batches(epoch) gives that epoch's batches; evaluate() gives the dev metric, higher is better, before the first step
    and once an epoch. `optimizer` makes one that has the peak rate of each of its groups as `peak`; None:
    `make_optimizer`. `state` is the file to resume from; it outlives the run, for the caller to remove when the model
    is saved. layout: with several processes, each of them comes here with the same batches; the first judges, keeps the
    state and has the weights at last. Raises InputError when there is nothing to train on, or the loss is no longer a
    number, for which `remedy` says what to pass.
    """
    first = batches(0)
    if not first:
        raise InputError("0 batches to train on; pass training data that is not empty")
    total = max(1, round(settings.epochs * len(first)))
    remedy = remedy or f"pass a learning rate below {settings.learning_rate:.2g}"
    parallel = Parallel(model, layout)
    made = make_optimizer(parallel.trained, settings) if optimizer is None else optimizer(parallel.trained)
    run, place = _Run(parallel, made, loss, settings, total, remedy), Place(identity)
    saving = Saving(state, parallel, made)
    if (found := saving.load(identity)) is not None:
        place, run.best = found
        console.say(f"{label}: resumed at step {place.step} of {total}")
    try:
        if evaluate is not None and not place.history:
            run.judge(evaluate, place, console, label)
        with console.progress(total - place.step, label, "steps") as progress:
            epoch, before = 0, 0
            while before < total:
                todo = first if epoch == 0 else batches(epoch)
                for batch in todo[place.step - before : total - before]:
                    value = run.step(batch, place.step)
                    place.step += 1
                    run.whole = True
                    progress.advance(1, f"loss {value:.4f}")
                    saving.save_in_time(run.best, place)
                epoch, before = epoch + 1, before + len(todo)
                judged = any(entry["step"] == place.step for entry in place.history)
                if evaluate is not None and place.step <= before and not judged:
                    run.judge(evaluate, place, console, label)
    except KeyboardInterrupt:
        if run.whole and layout.dp == 1:  # several processes are not stopped at the same step
            saving.save(run.best, place)
        raise
    if run.best is not None:
        with torch.no_grad():
            for name, parameter in parallel.trained.named_parameters():
                parameter.copy_(run.best[name])
    parallel.show()
    return FitResult(place.step, place.best, place.best_step, place.history)


class _Run(Generic[M]):
    """One optimiser step, a running average of the loss, and the best weights so far."""

    def __init__(
        self,
        parallel: Parallel,
        optimizer: torch.optim.AdamW,
        loss: Loss[M],
        settings: FitSettings,
        total: int,
        remedy: str,
    ) -> None:
        self.parallel, self.model = parallel, parallel.trained
        self.optimizer, self.loss, self.settings, self.total = optimizer, loss, settings, total
        self.remedy, self.device = remedy, next(self.model.parameters()).device
        self.average = math.nan
        self.best: dict[str, Tensor] | None = None
        self.whole = True  # False while a step is half taken: such a state must not be saved

    def step(self, batch: EncodedBatch, step: int) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * schedule(step, self.total, self.settings)
        self.model.train()
        keyed = with_keys(batch, self.settings.seed, step)
        total = torch.zeros((), device=self.device)
        for part in self.parallel.parts(keyed, self.settings.most_tokens):
            with autocast(self.device, self.settings.dtype):
                loss = self.loss(cast(M, self.parallel.module), part)
            self.parallel.backward(loss)
            total += loss.detach()
        value = float(self.parallel.here.summed(total))
        if not math.isfinite(value):
            self.optimizer.zero_grad(set_to_none=True)
            raise Agreed(f"the loss is {value} at step {step}; {self.remedy}")
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip)
        self.whole = False
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.average = value if math.isnan(self.average) else 0.95 * self.average + 0.05 * value
        return self.average

    def judge(self, evaluate: Callable[[], float], place: Place, console: Console, label: str) -> None:
        """Measure on dev and keep a copy of the weights if they are the best so far.

        It is noted last: a run that was stopped before that judges these weights again.
        """
        self.model.eval()
        here = self.parallel.here
        with self.parallel.shown():
            value = here.agreed(evaluate() if here.first else 0.0)
        lost = "" if math.isnan(self.average) else f"loss {self.average:.4f}, "
        console.say(f"{label}: step {place.step}, {lost}dev {value:.4f}")
        if place.best is None or value > place.best:
            self.best = {name: parameter.detach().clone() for name, parameter in self.model.named_parameters()}
            place.best, place.best_step = value, place.step
        place.history.append({"step": place.step, "dev": value})


def autocast(device: torch.device, dtype: torch.dtype) -> contextlib.AbstractContextManager[object]:
    """Autocast to bfloat16 where that is asked, else nothing."""
    return torch.autocast(device.type, dtype) if dtype is torch.bfloat16 else contextlib.nullcontext()
