"""`--predictions FILE`: one JSON line an example, so that anybody can check the metrics with other tools."""

import json
import math
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from chinchilla_lm.errors import InputError

Answer = str | float | int | list[str] | None
"""A label, a number, or the tags of a sentence; None where there is no gold answer."""


@dataclass(frozen=True)
class Prediction:
    id: str
    gold: Answer
    predicted: Answer
    score: float | list[float] | None
    """How sure the model was: a probability, one per word for tags; for a text, its nats per token."""


def write_predictions(path: str | Path, predictions: Iterable[Prediction]) -> int:
    """Writes the lines in order, UTF-8, and returns their number. Folders on the way are made.

    The file appears whole or not at all: it is written under a temporary name beside it and renamed. It is streamed, as
    a test set's tags need not fit in memory twice. Raises InputError for a score that is not finite (JSON has no NaN).
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    count = 0
    try:
        with temporary.open("w", encoding="utf-8", newline="\n") as file:
            for prediction in predictions:
                file.write(_line(prediction) + "\n")
                count += 1
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    return count


def _line(prediction: Prediction) -> str:
    scores = prediction.score if isinstance(prediction.score, list) else [prediction.score]
    for score in scores:
        if score is not None and not math.isfinite(score):
            raise InputError(
                f"score {score} of example {prediction.id!r} is not finite; JSON has no such number; look for NaN in "
                "the model's outputs"
            )
    return json.dumps(asdict(prediction), ensure_ascii=False, allow_nan=False)
