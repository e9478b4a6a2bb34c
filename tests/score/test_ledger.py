from __future__ import annotations

from pathlib import Path

import pytest

from chinchilla_lm.score.ledger import Cost, Ledger

ONE, TWO = {"0.attn": "lose"}, {"1.mlp": "keep", "0.attn": "lose"}
COST = Cost(0.1, 1 / 3, 2e-17)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    ledger = Ledger(tmp_path / "measurements.jsonl", "mine")
    ledger.put(ONE, COST)
    ledger.put(TWO, Cost(1.0, 0.0, 2.0))
    return tmp_path / "measurements.jsonl"


def test_what_was_measured_is_known_again_to_the_last_bit(path: Path):
    again = Ledger(path, "mine")
    assert again.get(ONE) == COST
    assert again.get(dict(reversed(TWO.items()))) == Cost(1.0, 0.0, 2.0)
    assert again.get({"0.attn": "keep"}) is None


def test_other_circumstances_begin_anew(path: Path):
    assert Ledger(path, "other").get(ONE) is None
    assert Ledger(path, "mine").get(ONE) is None


@pytest.mark.parametrize("tail", ['["1.attn:lo', '["1.attn:lose", 1.0]\n', '["1.attn:lose", NaN, 1, 1]\n', "\xff\n"])
def test_a_line_that_was_cut_off_is_dropped_and_the_file_goes_on(path: Path, tail: str):
    with path.open("a", encoding="utf-8") as file:
        file.write(tail)
    ledger = Ledger(path, "mine")
    assert ledger.get(ONE) == COST
    assert ledger.get({"1.attn": "lose"}) is None
    ledger.put({"1.attn": "lose"}, COST)
    assert Ledger(path, "mine").get({"1.attn": "lose"}) == COST
