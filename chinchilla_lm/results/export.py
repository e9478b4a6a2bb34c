"""What is written of a finished model: `pack` and `export`."""

from typing import TypedDict

from chinchilla_lm.results.evaluate import EvaluateResult
from chinchilla_lm.results.figures import Interval, Verdict


class MixTried(TypedDict):
    """Formats that a budget allows for all matrices. bits: of a weight of these; predicted: nats a position, or the sum
    of relative squared errors where there was no calibration text, and then no measured `kl`."""

    format: str
    bits: float
    predicted: float
    kl: Interval | None


class MixFound(TypedDict):
    """What `--bits` found. asked: bits a weight at most, of the matrices, and bits: what was taken; mixed: whether that
    is the mix, the first that was tried, or a single format that lost less; formats: of each matrix."""

    asked: float
    bits: float
    mixed: bool
    formats: dict[str, str]
    tried: list[MixTried]


class Distillation(TypedDict):
    """What distillation after a solver did: tokens: learnt from; kl_before, kl_after: nats to the original on held-out
    calibration text. They are equal where nothing was better than what the solver left."""

    tokens: int
    kl_before: float
    kl_after: float


class PackResult(TypedDict):
    """A packed model: `chinchilla pack --json`. output: its folder, and bytes of all files there; bits: of a weight,
    with scales and minima, in the mean over all matrices and tables; mix: what `--bits` found; distilled: None where it
    was not. evaluation: what judging it found, where a margin was asked for, and certificate: its verdict. None has a
    certificate before, whatever the model had that it was made of."""

    format: str
    solver: str
    output: str
    bytes: int
    bits: float
    distilled: Distillation | None
    seconds: float
    mix: MixFound | None
    evaluation: EvaluateResult | None
    certificate: Verdict | None


class ExportResult(TypedDict):
    """An export: `chinchilla export --json`.

    files: name → bytes. weights: bytes of tensors by the format of their numbers, {} for `hf`. changes: what became of
    numbers that are not written as they are, and of how many tensors. absent_blocks: left out, those behind them moved
    up. zeroed_links: dropped links that are there with zero weights. load: the Python that loads it.
    """

    format: str
    output: str
    files: dict[str, int]
    bytes: int
    weights: dict[str, int]
    changes: dict[str, int]
    absent_blocks: list[int]
    zeroed_links: list[str]
    load: str
