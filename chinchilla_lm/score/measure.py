"""The quality cost of dropped links and of formats: make the change, run what is behind it, compare with the original.

The stream in front of a link does not depend on what is dropped behind it. So the streams up to the last dropped link
are kept (`_Prefixes`), and a measurement starts where it leaves a path that was walked before: scoring each link of a
chain once costs half of the naive passes, and a search around an incumbent far less. What is behind the last dropped
link serves only plans that drop yet more there, and is walked again if they come: to keep it too saves greedy a tenth
of its walking, and costs scoring a tenth of its time and 0.6 GB (SmolLM2, docs/log.md).

What is kept in a format has its weights replaced by what the format makes of them (`rounded.py`). Where the decoder is
the embedding too, its format changes the stream from the start.

B rows, T positions, D hidden features, N compared positions, V outputs.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from chinchilla_lm.data.batches import EncodedBatch
from chinchilla_lm.data.encode import IGNORED
from chinchilla_lm.errors import InputError
from chinchilla_lm.models.transformer import NormFate, Transformer
from chinchilla_lm.plan import HEAD
from chinchilla_lm.score.ledger import Cost, Ledger
from chinchilla_lm.score.rounded import Rounded

# Positions compared at most. The head is as dear as ten blocks of a small language model, and 1,024 positions
# estimate a mean KL as well as the choice of the calibration text allows (docs/log.md).
MAX_POSITIONS = 1024
# Positions whose logits are held at once: 128 of a vocabulary of 49,152 are 25 MB, which the allocator keeps and
# reuses; larger arrays go back to the system each time, and their page faults cost more than the products in them.
CHUNK = 128
# Memory for remembered streams, in bytes: 60 boundaries of 8 k tokens at 576 features in bfloat16 are 0.6 GB.
PREFIX_BYTES = 2_500_000_000
NORM_FATES = ("keep", "lose")

Fates = Mapping[str, str]
"""Link → what became of its norm when it was dropped, or the format that it is kept in; and the head's format."""


class _Prefixes:
    """Streams at boundaries, by (boundary, what was changed before it), least recently used out first."""

    def __init__(self, capacity: int) -> None:
        self.capacity, self.used = capacity, 0
        self.streams: OrderedDict[tuple[int, frozenset[tuple[str, str]]], list[Tensor]] = OrderedDict()

    def put(self, place: tuple[int, frozenset[tuple[str, str]]], streams: list[Tensor]) -> None:
        if place in self.streams:
            return
        self.streams[place] = streams
        self.used += _bytes(streams)
        while self.used > self.capacity and len(self.streams) > 1:
            _, oldest = self.streams.popitem(last=False)
            self.used -= _bytes(oldest)

    def deepest(self, names: Sequence[str], fates: Fates, front: Sequence[str]) -> tuple[int, list[Tensor]] | None:
        """The last boundary on this path whose stream is remembered. front: what is in front of the first link."""
        for boundary in range(len(names), -1, -1):
            place = (boundary, _before((*front, *names[:boundary]), fates))
            if place in self.streams:
                self.streams.move_to_end(place)
                return boundary, self.streams[place]
        return None


class Measure:
    """`measure(dropped)` is the mean cost of dropping those links: KL from the full model, or the rise of the task
    loss.

    batches: calibration batches with targets; a position counts if its target is not -100. The model is used as it is
    (its dtype, its device). `norms` says what becomes of a dropped link's norm in a post-norm model. What
    the ledger holds is not measured again.
    """

    def __init__(
        self,
        model: Transformer,
        batches: Sequence[EncodedBatch],
        loss: Literal["kl", "task"] = "kl",
        *,
        max_positions: int = MAX_POSITIONS,
        prefix_bytes: int = PREFIX_BYTES,
        ledger: Ledger | None = None,
    ) -> None:
        if not batches:
            raise InputError("0 calibration batches: nothing to measure on; pass more --calibration text")
        self.model, self.loss = model.eval(), loss
        self.batches = list(batches)
        self.names = model.names
        self.rounded = Rounded(model)
        head = model.config.head
        self._front = (HEAD,) if head.kind == "language-modeling" and head.tied else ()
        self.norms: dict[str, NormFate] = {}
        self._ledger = ledger
        self._prefixes = _Prefixes(prefix_bytes)
        self._picked = _pick_positions(self.batches, max_positions, sequence=_is_sequence(model))
        with torch.inference_mode():
            embedded = [model.embed(batch.batch) for batch in self.batches]
            self._contexts = [context for _, context in embedded]
            self._prefixes.put((0, frozenset()), [x for x, _ in embedded])
            self._reference = [[_reference(self._logits(part)) for part in x.split(CHUNK)] for x in self._run({})]
        self._base = self._losses({}) if loss == "task" else []

    @property
    def tokens(self) -> int:
        """Calibration tokens that pass through the chain."""
        return sum(batch.batch.tokens for batch in self.batches)

    def __call__(self, dropped: frozenset[str]) -> float:
        """Mean cost in nats a position."""
        return self.cost(dropped).value

    def cost(
        self,
        dropped: frozenset[str],
        norms: Mapping[str, NormFate] | None = None,
        formats: Mapping[str, str] | None = None,
    ) -> Cost:
        """Mean cost and its interval; `norms` overrides what becomes of a link's norm. formats: of links that are kept,
        and of the head, which stay as they are where they are not named."""
        fates: dict[str, str] = {**self.fates(dropped, norms), **(formats or {})}
        if not fates:
            return Cost(0.0, 0.0, 0.0)
        found = None if self._ledger is None else self._ledger.get(fates)
        if found is None:
            found = self._measured(fates)
            if self._ledger is not None:
                self._ledger.put(fates, found)
        return found

    def _measured(self, fates: Fates) -> Cost:
        per_window = self._losses(fates)
        if self.loss == "task":
            per_window = [(a - b, n) for (a, n), (b, _) in zip(per_window, self._base, strict=True)]
        return _mean_cost(per_window)

    def fates(self, dropped: frozenset[str], norms: Mapping[str, NormFate] | None = None) -> dict[str, NormFate]:
        """What becomes of each dropped link's norm: as measured best, except that a dropped block loses both."""
        known = {**self.norms, **(norms or {})}
        fates: dict[str, NormFate] = {}
        for name in dropped:
            block, kind = name.split(".")
            whole = f"{block}.{'mlp' if kind == 'attn' else 'attn'}" in dropped
            fates[name] = "lose" if whole else known.get(name, "keep" if self.model.config.post_norm else "lose")
        return fates

    def streams(self) -> list[list[Tensor]]:
        """The full model's stream at every boundary, [2L + 1][batch], each [B, T, D]; walks the chain once."""
        with torch.inference_mode():
            current = [self.model.embed(batch.batch)[0] for batch in self.batches]
            result = [current]
            for position in range(len(self.names)):
                current = self._advance(current, position, position + 1, {})
                result.append(current)
        return result

    def start(self) -> list[Tensor]:
        """The streams in front of the chain, as the embedding is now, [batch], each [B, T, D]."""
        with torch.inference_mode():
            return [self.model.embed(batch.batch)[0] for batch in self.batches]

    def advance(self, streams: list[Tensor], start: int, stop: int | None) -> list[Tensor]:
        """The streams from chain position `start` up to `stop`, by the links as they are now."""
        with torch.inference_mode():
            return self._advance(streams, start, stop, {})

    def cost_of(self, streams: list[Tensor]) -> Cost:
        """Mean KL of what the head, as it is now, makes of streams behind the chain, from what the model was when this
        measure was made."""
        with torch.inference_mode():
            return _mean_cost(self._compared(self._outputs(streams)))

    def _advance(self, streams: list[Tensor], start: int, stop: int | None, fates: Fates) -> list[Tensor]:
        some = {name: fates[name] for name in self.names[start:stop] if name in fates}
        gone = {name: cast(NormFate, fate) for name, fate in some.items() if fate in NORM_FATES}
        with self.rounded.swapped({name: fate for name, fate in some.items() if name not in gone}):
            both = zip(streams, self._contexts, strict=True)
            return [self.model.run(x, context, start, stop, gone) for x, context in both]

    def _head(self, fates: Fates) -> dict[str, str]:
        return {HEAD: fates[HEAD]} if HEAD in fates else {}

    def _embed(self, fates: Fates) -> list[Tensor]:
        with self.rounded.swapped(self._head(fates) if self._front else {}):
            streams = [self.model.embed(batch.batch)[0] for batch in self.batches]
        self._prefixes.put((0, _before(self._front, fates)), streams)
        return streams

    def _run(self, fates: Fates) -> list[Tensor]:
        """What every batch's compared positions give: last hidden states [N, D], or a sequence head's logits [N, C]."""
        found = self._prefixes.deepest(self.names, fates, self._front)
        start, streams = found if found is not None else (0, self._embed(fates))
        last = max((self.names.index(name) for name in fates if name != HEAD), default=0)
        for position in range(start, last):
            before, streams = streams, self._advance(streams, position, position + 1, fates)
            if streams[0] is not before[0]:  # a link that was dropped without a trace: the boundary before it serves
                path = (*self._front, *self.names[: position + 1])
                self._prefixes.put((position + 1, _before(path, fates)), streams)
        return self._outputs(self._advance(streams, max(start, last), None, fates))

    def _outputs(self, streams: list[Tensor]) -> list[Tensor]:
        """Of streams behind the chain what `_run` gives."""
        results = []
        for x, batch, picked in zip(streams, self.batches, self._picked, strict=True):
            hidden = self.model.finish(x)
            if _is_sequence(self.model):
                results.append(self.model.head(hidden, batch.batch))
            else:
                results.append(hidden.reshape(-1, hidden.shape[-1])[picked.index.to(hidden.device)])
        return results

    def _logits(self, outputs: Tensor) -> Tensor:
        return outputs if _is_sequence(self.model) else self.model.head.classify(outputs)

    def _losses(self, fates: Fates) -> list[tuple[float, int]]:
        with torch.inference_mode():
            outputs = self._run(fates)
            with self.rounded.swapped(self._head(fates)):
                return self._compared(outputs)

    def _compared(self, outputs_of_batches: list[Tensor]) -> list[tuple[float, int]]:
        """(sum of the cost over compared positions, their number) for every window that has any."""
        result: list[tuple[float, int]] = []
        for outputs, reference, picked in zip(outputs_of_batches, self._reference, self._picked, strict=True):
            parts = zip(outputs.split(CHUNK), reference, picked.targets.split(CHUNK), strict=True)
            values = torch.cat([self._compare(self._logits(part), *rest) for part, *rest in parts])
            for row in picked.rows.unique():
                inside = values[picked.rows == row]
                result.append((float(inside.sum()), len(inside)))
        return result

    def _compare(self, logits_NV: Tensor, reference: _Reference, targets_N: Tensor) -> Tensor:
        if self.loss == "kl":
            return _divergence(logits_NV, reference)
        return _task_loss(logits_NV, targets_N.to(logits_NV.device))


@dataclass(frozen=True, slots=True)
class _Picked:
    """Flat positions of one batch that are compared, the row each stands in (int64 [N] each), and their targets [N]."""

    index: Tensor
    rows: Tensor
    targets: Tensor


def _pick_positions(batches: Sequence[EncodedBatch], limit: int, *, sequence: bool) -> list[_Picked]:
    """Every k-th position that has a target, counted over all batches, so that at most `limit` are compared."""
    picked: list[_Picked] = []
    total = sum(int((batch.targets != IGNORED).sum()) for batch in batches if batch.targets is not None)
    stride = max(1, math.ceil(total / limit))
    seen = 0
    for batch in batches:
        assert batch.targets is not None
        flat = batch.targets.reshape(-1)
        if sequence:
            index = torch.arange(len(flat))
            picked.append(_Picked(index, index, flat))
            continue
        index = (flat != IGNORED).nonzero().squeeze(1)
        index, seen = index[-seen % stride :: stride], seen + len(index)
        picked.append(_Picked(index, index // batch.targets.shape[1], flat[index]))
    if not any(len(part.index) for part in picked):
        raise InputError("0 calibration positions have a target; pass calibration data with labels or longer text")
    return picked


def _is_sequence(model: Transformer) -> bool:
    return model.config.head.kind in ("text-classification", "ranking")


@dataclass(frozen=True, slots=True)
class _Reference:
    """What the full model says at N positions: probabilities [N, V] (a single output: itself) and Σ p log p [N]."""

    outputs_NV: Tensor
    negentropy_N: Tensor


def _reference(logits_NV: Tensor) -> _Reference:
    logits_NV = logits_NV.float()
    if logits_NV.shape[-1] == 1:
        return _Reference(logits_NV, logits_NV.new_zeros(len(logits_NV)))
    probabilities_NV = logits_NV.softmax(-1)
    return _Reference(probabilities_NV, _expected_log(probabilities_NV, logits_NV))


def _expected_log(probabilities_NV: Tensor, logits_NV: Tensor) -> Tensor:
    """Σ p log softmax(z) = p · z - log Σ exp z, [N]: one exponential and one product a vocabulary entry."""
    return torch.linalg.vecdot(probabilities_NV, logits_NV) - logits_NV.logsumexp(-1)


def _divergence(logits_NV: Tensor, reference: _Reference) -> Tensor:
    """KL(reference ‖ changed) in nats, [N]. A single output (ranking) is the mean of a normal distribution of variance
    1, and the KL between two such is ½ (y - y')²."""
    logits_NV = logits_NV.float()
    if logits_NV.shape[-1] == 1:
        return 0.5 * (logits_NV - reference.outputs_NV).square().squeeze(-1)
    return reference.negentropy_N - _expected_log(reference.outputs_NV, logits_NV)


def _task_loss(logits_NV: Tensor, targets_N: Tensor) -> Tensor:
    """Nats of the targets, [N]; of a number under a single output's normal distribution, less a constant."""
    if targets_N.is_floating_point():
        return 0.5 * (logits_NV.float().squeeze(-1) - targets_N).square()
    return F.cross_entropy(logits_NV.float(), targets_N, reduction="none")


def _mean_cost(per_window: Sequence[tuple[float, int]]) -> Cost:
    total = sum(count for _, count in per_window)
    mean = sum(value for value, _ in per_window) / total
    if not math.isfinite(mean):
        raise InputError(f"the measured cost is {mean}: the model's outputs are not numbers; check its weights")
    deviations = [value - count * mean for value, count in per_window]
    error = math.sqrt(sum(d * d for d in deviations) * len(per_window) / max(1, len(per_window) - 1)) / total
    return Cost(mean, mean - 1.96 * error, mean + 1.96 * error)


def _before(names: Sequence[str], fates: Fates) -> frozenset[tuple[str, str]]:
    return frozenset((name, fates[name]) for name in names if name in fates)


def _bytes(streams: list[Tensor]) -> int:
    return sum(x.numel() * x.element_size() for x in streams)
