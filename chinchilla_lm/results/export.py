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


class PackResult(TypedDict):
    """A packed model: `chinchilla pack --json`. output: its folder, and bytes of all files there; bits: of a weight,
    with scales and minima, in the mean over all matrices and tables; mix: what `--bits` found. evaluation: what judging
    it found, where a margin was asked for, and certificate: its verdict. None has a certificate before, whatever the
    model had that it was made of."""

    format: str
    solver: str
    output: str
    bytes: int
    bits: float
    seconds: float
    mix: MixFound | None
    evaluation: EvaluateResult | None
    certificate: Verdict | None


class ExportResult(TypedDict):
    """An export: `chinchilla export --json`.

    files: name → bytes. absent_blocks: left out, those behind them moved up. zeroed_links: dropped links that are there
    with zero weights. load: the Python that loads it.
    """

    format: str
    output: str
    files: dict[str, int]
    bytes: int
    absent_blocks: list[int]
    zeroed_links: list[str]
    load: str
