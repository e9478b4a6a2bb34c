"""The predictions file: one readable JSON line an example, whole or not at all."""

import json
import math
from pathlib import Path

import pytest

from chinchilla_lm.errors import InputError
from chinchilla_lm.evaluate.predictions import Prediction, write_predictions


def test_one_json_line_an_example(tmp_path: Path):
    predictions = [
        Prediction("s-1", ["B-PER", "O"], ["B-PER", "O"], [0.9, 0.8]),
        Prediction("t-2", "sport", "wörld\u2028", 0.5),
        Prediction("w-3", None, 1.5, None),
    ]
    path = tmp_path / "new" / "predictions.jsonl"
    assert write_predictions(path, predictions) == 3
    lines = path.read_bytes().decode("utf-8").split("\n")
    assert lines.pop() == ""
    records = [json.loads(line) for line in lines]
    assert [list(record) for record in records] == [["id", "gold", "predicted", "score"]] * 3
    assert [Prediction(**record) for record in records] == predictions
    assert "wörld" in lines[1]
    assert [p.name for p in path.parent.iterdir()] == ["predictions.jsonl"]


def test_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path):
    path = tmp_path / "predictions.jsonl"
    path.write_text("old\n")

    def broken():
        yield Prediction("1", "a", "a", 1.0)
        raise RuntimeError("model failed")

    with pytest.raises(RuntimeError, match="model failed"):
        write_predictions(path, broken())
    assert path.read_text() == "old\n"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("score", [math.nan, [0.5, math.inf]])
def test_score_that_is_no_number_is_refused(tmp_path: Path, score):
    path = tmp_path / "predictions.jsonl"
    with pytest.raises(InputError, match="of example 'x' is not finite"):
        write_predictions(path, [Prediction("x", "a", "a", score)])
    assert not path.exists()
