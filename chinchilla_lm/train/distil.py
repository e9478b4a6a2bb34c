"""Distillation of a rounded model: it learns the original's outputs without changing a code.

Scales, minima, codebooks, norms and biases are few (2 % of SmolLM2's numbers with groups of 64), yet each stands for
many weights, and KL to the original asks of them what no solver of one matrix can: to make up for what the others lost.
It is the continuous half of what PV-tuning does (Malinovskii et al. 2024, arXiv 2405.14852).

Weights exist as numbers for one link at a time: a link is run without keeping anything but the stream in front of it,
and is run again in the backward pass. In memory are the original in its dtype, the codes, a stream for each link, and
of a decoder its weights and their gradient.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from chinchilla_lm.console import Console
from chinchilla_lm.data.batches import EncodedBatch
from chinchilla_lm.data.encoded import IGNORED
from chinchilla_lm.models.batch import Batch
from chinchilla_lm.models.layers import Norm
from chinchilla_lm.models.transformer import Transformer, key
from chinchilla_lm.pack.quantized import Quantized
from chinchilla_lm.train.loop import FitSettings, autocast, fit
from chinchilla_lm.train.losses import logit_kl
from chinchilla_lm.train.pieces import mean_in_pieces
from chinchilla_lm.train.recover import Teacher, picked
from chinchilla_lm.train.rounded import RoundedMatrix

# Peak rates of Adam, in the units of what is trained. Assumed, not searched: six steps of 512 tokens on SmolLM2-135M
# rounded without data to 3.3 bits lowered the mean loss from 4.52 to 4.12 nats, at 1.2e-2 to 4.04.
RATES = {"scales": 3e-3, "minima": 3e-3, "codebook": 3e-3, "vectors": 3e-3}
# How often the held-out text is read during a run, besides its start.
READINGS = 4
TOKENS = "embedding.tokens.weight"
# A vector of zeros moves in parts of this.
LEAST_UNIT = 1e-2


class _Vector(nn.Module):
    """A norm's weight, or a bias. unit: in parts of what its step is counted."""

    start: Tensor

    def __init__(self, start: Tensor, unit: float) -> None:
        super().__init__()
        self.register_buffer("start", start.detach().clone(), persistent=False)
        self.unit = max(unit, LEAST_UNIT)
        self.vectors = nn.Parameter(torch.zeros_like(start))

    def forward(self) -> Tensor:
        return self.start + self.unit * self.vectors


class _Call(nn.Module):
    """A method of a model as a module, so that `functional_call` runs it with other weights."""

    def __init__(self, model: Transformer, method: Any) -> None:
        super().__init__()
        self.model, self.method = model, method

    def forward(self, *inputs: Any) -> Any:
        return self.method(*inputs)


class Student(nn.Module):
    """`model`, whose matrices in `rounded` (by the name of the parameter) are run as they are rounded.

    Its parameters are what is trained. evenly: matrices whose codebook stays as it is. dtype: of the products.
    The model lends its other weights; its rounded ones have no storage until `finish`.
    """

    def __init__(
        self,
        model: Transformer,
        rounded: Mapping[str, Quantized],
        evenly: Collection[str] = (),
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.dtype = dtype
        model.eval().requires_grad_(False)
        parameters = dict(model.named_parameters(remove_duplicate=False))
        self.matrices = nn.ModuleDict(
            {_entry(name): RoundedMatrix(one, name not in evenly) for name, one in rounded.items()}
        )
        units = {name: unit for name, unit in _units(model).items() if name not in rounded}
        self.vectors = nn.ModuleDict({_entry(name): _Vector(parameters[name], unit) for name, unit in units.items()})
        self.names = [*rounded, *units]
        self.shared = next((name for name in rounded if parameters[name] is parameters[TOKENS]), None)
        for name in rounded:
            parameters[name].data = parameters[name].data.new_empty(0)
        calls = {"embed": model.embed, "run": model.run, "finish": model.finish, "classify": model.head.classify}
        # Not submodules: what they hold is not trained.
        self._model, self._calls = (model,), {name: (_Call(model, method),) for name, method in calls.items()}

    @property
    def model(self) -> Transformer:
        """The model that is run."""
        return self._model[0]

    def divergence(self, batch: EncodedBatch, teacher: Teacher) -> Tensor:
        """KL(teacher ‖ student) in nats, the mean over the positions of the batch that have a target."""
        theirs, _ = teacher.look(batch, ())
        hidden = picked(self.model, batch, self._last(batch.batch))
        head = self._weights("head.")  # once, not for each piece
        names = list(head)

        def classify(piece: Tensor, *weights: Tensor) -> Tensor:
            found: Tensor = self._call("classify", dict(zip(names, weights, strict=True)), piece)
            return found

        assert self.model.head.output is not None
        outputs = self.model.head.output.out_features
        trained = list(head.values())
        return mean_in_pieces(classify, outputs, trained, hidden, lambda ours, part: logit_kl(ours, theirs(part)))

    def _last(self, batch: Batch) -> Tensor:
        """The last hidden state, [B, T, D]."""
        weights = self._weights("embedding.")
        if self.shared is not None:  # of a matrix that is a decoder too, the rows of the tokens at hand
            tokens, places = batch.ids.unique(return_inverse=True)
            weights[TOKENS] = self.matrices[_entry(self.shared)](rows=tokens)
            batch = Batch(places, batch.mask, batch.segments)
        x, context = self._call("embed", weights, batch)
        for at, name in enumerate(self.model.names):
            if key(name) in self.model.links:

                def run(x_BTD: Tensor, name: str = name, at: int = at) -> Tensor:
                    found: Tensor = self._call("run", self._weights(f"links.{key(name)}."), x_BTD, context, at, at + 1)
                    return found

                x = checkpoint(run, x, use_reentrant=False, preserve_rng_state=False) if self.training else run(x)
        found: Tensor = self._call("finish", self._weights("norm."), x)
        return found

    def _weights(self, prefix: str) -> dict[str, Tensor]:
        """What is rounded or trained of the model's parameters that begin so; matrices in the dtype of the products."""
        found, dtype = {}, None if self.dtype is torch.float32 else self.dtype
        for name in self.names:
            if name.startswith(prefix):
                entry = _entry(name)
                found[name] = self.matrices[entry](dtype) if entry in self.matrices else self.vectors[entry]()
        return found

    def _call(self, method: str, weights: Mapping[str, Tensor], *inputs: Any) -> Any:
        named = {f"model.{name}": one for name, one in weights.items()}
        return functional_call(self._calls[method][0], named, inputs, tie_weights=False)

    @torch.no_grad()
    def finish(self) -> dict[str, Quantized]:
        """The rounded matrices as they are now; the model has their values, and its norms and biases, as a solver
        leaves them."""
        parameters = dict(self.model.named_parameters(remove_duplicate=False))
        found = {}
        for name in self.names:
            entry = _entry(name)
            if entry in self.matrices:
                matrix = self.matrices[entry]
                assert isinstance(matrix, RoundedMatrix)
                found[name] = matrix.quantized()
                parameters[name].data = torch.from_numpy(found[name].values())
            else:
                parameters[name].copy_(self.vectors[entry]())
        return found


@dataclass(frozen=True, slots=True)
class Distilled:
    """What came of it: KL to the original on held-out text in nats, before and after; steps: taken; best_step: that of
    the weights that were kept, 0: those of the start."""

    before: float
    after: float
    steps: int
    best_step: int


def distil(
    student: Student,
    original: Transformer,
    batches: Sequence[EncodedBatch],
    held_out: Sequence[EncodedBatch],
    console: Console,
    *,
    rates: Mapping[str, float] = RATES,
    state: Path | None = None,
    identity: str = "",
) -> Distilled:
    """Train on each of `batches` once, in their order, and leave the best of what was held against `held_out` in the
    student; that may be the start. state, identity: as `fit` takes them.

    original: prepared to run, in its own dtype. Raises InputError for a loss that is no number.
    """
    stretch, peak = max(1, math.ceil(len(batches) / READINGS)), max(rates.values())
    epochs = len(batches) / stretch  # of what lies between two readings
    teacher, judging = Teacher(original), Teacher(original)
    result = fit(
        student,
        lambda index: batches[index * stretch : (index + 1) * stretch],
        lambda model, batch: model.divergence(batch, teacher),
        FitSettings(epochs, peak, peak, decay="cosine", dtype=student.dtype),
        console,
        label="distil",
        evaluate=lambda: -divergence(student, judging, held_out),
        optimizer=lambda _: _optimizer(student, rates),
        remedy="pass --distil 0",
        state=state,
        identity=identity,
    )
    student.eval()
    assert result.best is not None
    return Distilled(-result.history[0]["dev"], -result.best, result.steps, result.best_step)


@torch.no_grad()
def divergence(student: Student, teacher: Teacher, batches: Sequence[EncodedBatch]) -> float:
    """KL to the teacher in nats, the mean over all positions that have a target."""
    total, positions = 0.0, 0
    for batch in batches:
        assert batch.targets is not None
        count = batch.targets.numel() if batch.targets.ndim == 1 else int((batch.targets != IGNORED).sum())
        with autocast(batch.batch.ids.device, student.dtype):
            total += count * float(student.divergence(batch, teacher))
        positions += count
    return total / max(1, positions)


def _optimizer(student: Student, rates: Mapping[str, float]) -> torch.optim.AdamW:
    """Adam; each kind of parameter at its own rate."""
    groups: dict[str, list[Tensor]] = {}
    for name, parameter in student.named_parameters():
        groups.setdefault(name.rpartition(".")[2], []).append(parameter)
    return torch.optim.AdamW(
        [{"params": group, "peak": rates[kind], "weight_decay": 0.0} for kind, group in groups.items()],
        lr=max(rates.values()),
        betas=(0.9, 0.98),
        fused=True,
    )


def _units(model: Transformer) -> dict[str, float]:
    """The norms' weights, and all biases, by name, with what each one's steps are counted in: its spread."""
    found: dict[str, float] = {}
    for prefix, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if isinstance(module, Norm | nn.LayerNorm | nn.RMSNorm) or (
                isinstance(module, nn.Linear) and name == "bias"
            ):
                offset = 1.0 if isinstance(module, Norm) and module.unit_offset else 0.0
                found[f"{prefix}.{name}"] = float((parameter + offset).square().mean().sqrt())
    return found


def _entry(name: str) -> str:
    """The name of a parameter as a key of a ModuleDict, which may hold no dot."""
    return name.replace(".", "/")
