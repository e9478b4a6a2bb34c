"""The cost table of a model: every link and every whole block, dropped for real and measured.

In a post-norm model a dropped link keeps its norm or loses it, whichever costs less; a whole block loses both, because
only then is it absent from an export.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from chinchilla_lm.console import Console
from chinchilla_lm.models.transformer import NormFate
from chinchilla_lm.plan import CostEntry, CostTable, chain, pair
from chinchilla_lm.runtime.measuring.operations import LinkTimes
from chinchilla_lm.score.ledger import Cost
from chinchilla_lm.score.measure import Measure


@dataclass(frozen=True, slots=True)
class Circumstances:
    """What a cost table says of its origin: shape, device, dtype and backend of what was timed, hashes."""

    shape: dict[str, int]
    device: str
    dtype: str
    model_sha256: str
    documents_sha256: str
    backend: str = "torch"


def score(measure: Measure, times: LinkTimes, circumstances: Circumstances, console: Console) -> CostTable:
    """Measure all links, then all blocks; leaves `measure.norms` set to the better fate of each norm."""
    model = measure.model
    entries: list[CostEntry] = []
    blocks = model.config.num_blocks
    cosines = _cosines(measure.streams(), [batch.batch.mask for batch in measure.batches])
    with console.progress(3 * blocks, "score", "drops") as progress:
        for link in chain(blocks):
            position = measure.names.index(link.name)
            cost, norm = _better_norm(measure, link.name)
            if norm is not None:
                measure.norms[link.name] = norm
            entries.append(_entry((link.name,), cost, times, norm, cosines[position, position + 1]))
            progress.advance(1, f"{link.name} {cost.value:.4f}")
        for block in range(blocks):
            links = pair(block)
            cost = measure.cost(frozenset(links))
            norm = "lose" if model.config.post_norm else None
            entries.append(_entry(links, cost, times, norm, cosines[2 * block, 2 * block + 2]))
            progress.advance(1, f"block {block} {cost.value:.4f}")
    return CostTable(
        metric="kl" if measure.loss == "kl" else "task_loss",
        unit="nats/position",
        num_blocks=blocks,
        entries=tuple(entries),
        total_us=times.total_us,
        fixed_us=times.fixed_us,
        shape=circumstances.shape,
        device=circumstances.device,
        dtype=circumstances.dtype,
        tokens=measure.tokens,
        model_sha256=circumstances.model_sha256,
        documents_sha256=circumstances.documents_sha256,
        post_norm=model.config.post_norm,
        backend=circumstances.backend,
    )


def _better_norm(measure: Measure, name: str) -> tuple[Cost, NormFate | None]:
    dropped = frozenset((name,))
    if not measure.model.config.post_norm:
        return measure.cost(dropped), None
    keep, lose = (measure.cost(dropped, {name: fate}) for fate in ("keep", "lose"))
    return (keep, "keep") if keep.value <= lose.value else (lose, "lose")


def _entry(links: tuple[str, ...], cost: Cost, times: LinkTimes, norm: NormFate | None, cosine: float) -> CostEntry:
    saved = sum(times.link_us.get(name, 0.0) for name in links)
    return CostEntry(links, cost.value, cost.low, cost.high, saved, norm, cosine)


def _cosines(streams: list[list[Tensor]], masks: list[Tensor | None]) -> dict[tuple[int, int], float]:
    """1 - cosine similarity between boundaries one and two links apart, mean over real tokens (ShortGPT's score)."""
    result: dict[tuple[int, int], float] = {}
    with torch.inference_mode():
        for start in range(len(streams) - 1):
            for stop in (start + 1, start + 2):
                if stop < len(streams):
                    similar = []
                    for x, y, mask in zip(streams[start], streams[stop], masks, strict=True):
                        found = F.cosine_similarity(x.float(), y.float(), dim=-1)
                        similar.append(found.reshape(-1) if mask is None else found[mask])
                    result[start, stop] = 1.0 - float(torch.cat(similar).mean())
    return result
