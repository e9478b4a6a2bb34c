"""What is written of a finished model: `pack` and `export`."""

from typing import TypedDict


class PackResult(TypedDict):
    """A packed model: `chinchilla pack --json`. output: its folder, and bytes of all files there; bits: of a weight,
    with scales and minima, in the mean over all matrices and tables. It has no certificate yet, whatever the model had
    that it was made of."""

    format: str
    solver: str
    output: str
    bytes: int
    bits: float
    seconds: float
    certificate: None


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
