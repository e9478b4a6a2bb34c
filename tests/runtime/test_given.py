"""What is no text is refused by every call of a session, in one line that names it."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from chinchilla_lm.errors import InputError
from chinchilla_lm.runtime.given import checked_parts, checked_texts
from chinchilla_lm.runtime.loading import load

NO_TEXTS = [None, float("nan"), np.float64("nan"), 3, 2.5, True, b"bytes", np.array(["a"]), "half \ud83d"]
CALLS = {
    "classify": ("bert", "text-classification"),
    "entities": ("bert", "token-classification"),
    "embed": ("bert", "embedding"),
    "score": ("bert", "ranking"),
    "generate": ("llama-gqa", "language-modeling"),
}


@pytest.fixture(scope="module")
def sessions(model_folder: Any) -> dict[str, Any]:
    return {call: load(model_folder(*made), "torch", dtype="float32") for call, made in CALLS.items()}


@pytest.mark.parametrize("value", NO_TEXTS, ids=repr)
@pytest.mark.parametrize("call", CALLS)
def test_every_call_names_what_is_no_text(sessions: dict[str, Any], call: str, value: Any) -> None:
    given: list[Any] = [("good", "very"), ("good", value)] if call == "score" else ["good", value]
    with pytest.raises(InputError) as caught:
        getattr(sessions[call], call)(given)
    said = str(caught.value)
    assert "\n" not in said
    assert "1" in said
    assert ("'\\ud83d' at character 5" if isinstance(value, str) else f"{value!r:.60}") in said


@pytest.mark.parametrize("call", ["classify", "embed"])
def test_pairs_too(sessions: dict[str, Any], call: str) -> None:
    for pair, said in [
        (("good", None), "text 1 of pair 1 is None, not a text; pass"),
        ((float("nan"), "good"), "text 0 of pair 1 is nan, not a text; pass"),
        (("a", "b", "c"), r"pair 1 is ('a', 'b', 'c'), not two texts; pass"),
        ((), "pair 1 is (), not two texts; pass"),
    ]:
        with pytest.raises(InputError, match=re.escape(said)):
            getattr(sessions[call], call)(["good", pair])


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("value", [None, 3, {"a": "b"}, np.array(3)], ids=repr)
def test_what_is_no_list_is_refused(sessions: dict[str, Any], call: str, value: Any) -> None:
    with pytest.raises(InputError, match=r"is not a list; pass|nor a list of texts; pass"):
        getattr(sessions[call], call)(value)


@pytest.mark.parametrize(
    ("ids", "said"),
    [
        ([5, None], "token id 1 is None, not a whole number"),
        ([5, 3.7], "token id 1 is 3.7, not a whole number"),
        ([float("nan")], "token id 0 is nan, not a whole number"),
        (["5"], "token id 0 is '5', not a whole number"),
        ("text", "token ids 'text' is one text, not a list"),
        (None, "token ids None is not a list"),
        (7, "token ids 7 is not a list"),
    ],
)
def test_token_ids_are_whole_numbers(sessions: dict[str, Any], ids: Any, said: str) -> None:
    with pytest.raises(InputError, match=re.escape(said)):
        sessions["generate"].logits(ids)


def test_half_a_character_in_a_stop_text_is_refused(sessions: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="stop 1 has"):
        sessions["generate"].generate("good", stop=["end", "\ud83d"])


def test_texts_of_numpy_and_any_sequence_are_texts() -> None:
    found = checked_texts(np.array(["one", "two"]))
    assert found == ["one", "two"]
    assert {type(text) for text in found} == {str}
    assert checked_texts(iter(("one",))) == ["one"]
    assert checked_parts(("one", ["a", "b"])) == [("one", None), ("a", "b")]
