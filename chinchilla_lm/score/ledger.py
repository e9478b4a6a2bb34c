"""Measurements that outlive the process, so that a stopped score or search goes on where it was.

A text file: a line with the identity of everything that decides a cost, then one line a measurement, appended as it is
made. A line that was cut off by a crash is dropped, and so is the whole file where it belongs to other circumstances.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from chinchilla_lm.files import write_atomic


@dataclass(frozen=True, slots=True)
class Cost:
    """Mean cost and its 95 % interval over calibration windows (normal approximation)."""

    value: float
    low: float
    high: float


class Ledger:
    """Costs by what becomes of links or matrices, in a file."""

    def __init__(self, path: Path, identity: str) -> None:
        self.path = path
        self._costs: dict[str, Cost] = {}
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
        header = json.dumps({"identity": identity})
        if lines[:1] == [header]:
            self._costs = _read(lines[1:])
        rows = [json.dumps([key, *_numbers(cost)]) for key, cost in self._costs.items()]
        write_atomic(path, "\n".join([header, *rows]) + "\n")

    def get(self, fates: Mapping[str, str]) -> Cost | None:
        """The cost of these fates, of the norms of links that are dropped or of matrices, where it was measured."""
        return self._costs.get(_key(fates))

    def put(self, fates: Mapping[str, str], cost: Cost) -> None:
        """Keep a measurement, in the file too."""
        key = _key(fates)
        self._costs[key] = cost
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps([key, *_numbers(cost)]) + "\n")


def _key(fates: Mapping[str, str]) -> str:
    return " ".join(f"{name}:{fate}" for name, fate in sorted(fates.items()))


def _numbers(cost: Cost) -> tuple[float, float, float]:
    return cost.value, cost.low, cost.high


def _read(lines: list[str]) -> dict[str, Cost]:
    """Measurements up to the first line that is not whole."""
    found: dict[str, Cost] = {}
    for line in lines:
        try:
            key, *numbers = json.loads(line)
            value, low, high = (float(number) for number in numbers)
        except (ValueError, TypeError):
            break
        if not (isinstance(key, str) and all(map(math.isfinite, (value, low, high)))):
            break
        found[key] = Cost(value, low, high)
    return found
