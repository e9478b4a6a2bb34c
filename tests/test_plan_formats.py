"""Plans that say how the links that stay are packed."""

from pathlib import Path
from typing import Any

import pytest

from chinchilla_lm.errors import InputError
from chinchilla_lm.pack.formats import FORMATS
from chinchilla_lm.pack.mixed import mixed_of
from chinchilla_lm.plan import Choice, Plan

LINKS = ("0.attn", "0.mlp", "1.attn", "1.mlp")


def packed() -> Plan:
    formats = {"0.attn": "int4", "1.attn": "int8", "1.mlp": "int4", "0.mlp": "bf16"}
    return Plan.from_dropped(2, ["0.mlp"], method="mix", origin={"budget_us": 70.0}).packed_as(formats, "int8")


def test_a_plan_keeps_its_formats_in_a_file(tmp_path: Path) -> None:
    plan = packed()
    assert plan.formats == {"0.attn": "int4", "1.attn": "int8", "1.mlp": "int4"}  # of what stays alone
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan
    assert '"version": 2' in (tmp_path / "plan.json").read_text()


def test_a_plan_without_formats_is_written_as_earlier_releases_read_it(tmp_path: Path) -> None:
    plain = Plan.from_dropped(2, ["0.mlp"])
    assert not plain.packed
    assert plain.format is None
    assert mixed_of(plain) is None
    values = plain.to_dict()
    assert values["version"] == 1
    assert "head" not in values
    assert all(set(row) == {"link", "action"} for row in values["choices"])
    assert Plan.from_dict(values) == plain


def test_a_plan_is_packed_as_it_says() -> None:
    found = mixed_of(packed())
    assert found is not None
    assert packed().format == "int4,1.attn=int8,head=int8"
    assert {name: found.of(f"{name}.second").name for name in packed().kept} == packed().formats
    assert found.of("head") is FORMATS["int8"]


def test_a_plan_that_drops_all_has_a_head_alone() -> None:
    plan = Plan.from_dropped(2, LINKS).packed_as({}, "int8")
    assert plan.format == "int8"
    assert Plan.from_dict(plan.to_dict()) == plan


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 1}, "version 1 of the plan: one with formats has version 2"),
        ({"version": 3}, "version 3 of the plan is not 1 or 2"),
        ({"head": "Int8"}, "head 'Int8' is not the name of a format"),
        ({"head": 8}, "head 8 of the plan is not of type str"),
        ({"choices": [{"link": "0.attn", "action": "keep"}]}, "format is missing of 0.attn but given of the head"),
        ({"choices": [{"link": "0.attn", "action": "drop", "format": "int8"}]}, "is on a dropped link"),
        ({"choices": [{"link": "0.attn", "action": "keep", "format": "a,b=c"}]}, "is not the name of a format"),
        ({"choices": [{"link": "0.attn", "action": "keep", "bits": 4}]}, "key 'bits' of choices"),
    ],
)
def test_what_does_not_belong_in_such_a_plan_is_refused(change: dict[str, Any], message: str) -> None:
    values = packed().to_dict()
    for key, value in change.items():
        values[key] = value + values["choices"][1:] if key == "choices" else value
    with pytest.raises(InputError, match=message):
        Plan.from_dict(values)


def test_a_plan_without_formats_is_not_of_the_version_of_one_that_has_them() -> None:
    with pytest.raises(InputError, match="one without 1"):
        Plan.from_dict(Plan.from_dropped(2, []).to_dict() | {"version": 2})


def test_an_unknown_format_is_refused_before_anything_is_packed() -> None:
    choices = tuple(Choice(name, "keep", format="int9" if name == "1.attn" else "int8") for name in LINKS)
    with pytest.raises(InputError, match=r"format 'int9' of 1\.attn in the plan is not one of f32, bf16"):
        mixed_of(Plan(2, choices))
    with pytest.raises(InputError, match="format 'int9' of head in the plan"):
        mixed_of(Plan.from_dropped(2, LINKS).packed_as({}, "int9"))
