"""What chinchilla.json says of the answers that a model learnt from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from chinchilla_lm.models.meta import adapted, learnt_more, read_meta

ONE, OTHER = "1" * 64, "2" * 64


def test_every_training_counts():
    once = adapted({}, ONE)
    assert once == {"adapted": [ONE]}
    assert adapted(once) == once, "what learns from outputs alone keeps what the model before it learnt from"
    assert adapted(once, ONE) == {"adapted": [ONE, ONE]}
    assert adapted({}) == {}


def test_a_pupil_has_learnt_what_its_teachers_did():
    teachers = [adapted({}, ONE), adapted(adapted({}, OTHER), OTHER), {}]
    assert adapted({}, ONE, teachers) == {"adapted": [ONE, OTHER, OTHER]}


@pytest.mark.parametrize(
    ("mine", "its", "more"),
    [
        ([], [], False),
        ([], [ONE], False),
        ([ONE], [ONE], False),
        ([ONE], [OTHER, ONE], False),
        ([ONE], [], True),
        ([ONE], [OTHER], True),
        ([ONE, ONE], [ONE], True),
    ],
)
def test_who_learnt_more(mine: list[str], its: list[str], more: bool):
    assert learnt_more({"adapted": mine}, {"adapted": its}) is more


@pytest.mark.parametrize("found", [True, "x", [1], ["1"], {"a": ONE}, None])
def test_another_entry_is_refused(found: object, tmp_path: Path):
    path = tmp_path / "chinchilla.json"
    path.write_text(json.dumps({"version": 1, "adapted": found}))
    with pytest.raises(ValueError, match=r"adapted .* is not SHA-256 of training records"):
        read_meta(path)
