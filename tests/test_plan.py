import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chinchilla_lm.errors import InputError
from chinchilla_lm.plan import Choice, CostEntry, CostTable, Link, Plan, chain, pair


def entry(*links: str, cost: float = 0.5, **rest: Any) -> dict[str, Any]:
    return {"links": list(links), "cost": cost, "low": 0.25, "high": 0.75, "time_us": 10.0, **rest}


def table_dict(num_blocks: int = 2, **rest: Any) -> dict[str, Any]:
    entries = [entry(link.name, norm=None, cosine=None) for link in chain(num_blocks)]
    entries += [entry(*pair(0), cost=0.625, norm=None, cosine=0.125)]
    table = {"version": 1, "metric": "kl", "unit": "nats/token", "num_blocks": num_blocks, "entries": entries}
    table |= {"total_us": 100.0, "fixed_us": 60.0, "shape": {"batch": 1, "tokens": 128}, "device": "cpu"}
    table |= {"dtype": "float32", "tokens": 4096, "model_sha256": "m", "documents_sha256": "d", "post_norm": False}
    table |= {"backend": "native"}
    return table | rest


def plan_dict() -> dict[str, Any]:
    return Plan.from_dropped(2, ["0.mlp"], {"0.mlp": "keep"}, "greedy", {"budget_us": 70.0}).to_dict()


# Links


def test_chain_names_and_positions() -> None:
    names = [link.name for link in chain(12)]
    assert names[:3] == ["0.attn", "0.mlp", "1.attn"]
    assert [Link.parse(name).position for name in names] == list(range(24))
    assert sorted(map(Link.parse, reversed(names))) == list(chain(12))  # not by name: 10.attn is after 2.mlp
    assert pair(7) == ("7.attn", "7.mlp")


@pytest.mark.parametrize("name", ["", "attn", "0.ffn", "01.attn", "-1.attn", "1.attn ", "1_attn", "٣.mlp", None, 3])
def test_bad_link_names_are_refused(name: Any) -> None:
    with pytest.raises(InputError, match=r"write it like 12\.attn"):
        Link.parse(name)


@pytest.mark.parametrize("num_blocks", [0, -1, True, 2.0, "2"])
def test_a_chain_needs_a_block(num_blocks: Any) -> None:
    with pytest.raises(InputError, match=r"num_blocks .* is not a whole number of at least 1"):
        chain(num_blocks)


# Plans


def test_plan_tells_kept_dropped_and_whole_blocks() -> None:
    plan = Plan.from_dropped(3, {"2.mlp", "0.mlp", "2.attn"})
    assert plan.dropped == ("0.mlp", "2.attn", "2.mlp")
    assert plan.kept == ("0.attn", "1.attn", "1.mlp")
    assert plan.dropped_blocks == (2,)
    assert plan.norms == {}
    assert plan.strip() == "A·AM··"
    assert (plan.method, plan.origin) == ("manual", {})
    assert Plan.full(2).strip() == "AMAM"
    assert Plan.full(2).dropped == ()


def test_a_block_dropped_whole_loses_both_norms() -> None:
    norms: Any = dict.fromkeys(["0.attn", "0.mlp", "1.attn", "1.mlp"], "keep")
    plan = Plan.from_dropped(2, ["0.mlp", "1.attn", "1.mlp"], norms)
    assert plan.norms == {"0.mlp": "keep", "1.attn": "lose", "1.mlp": "lose"}
    assert Plan.from_dropped(2, ["1.attn", "1.mlp"], {}).norms == {"1.attn": "lose", "1.mlp": "lose"}
    assert Plan.from_dropped(2, [], norms).norms == {}


@pytest.mark.parametrize(
    ("dropped", "norms", "message"),
    [
        (["9.attn"], None, "link '9.attn' is not in this model; use 0.attn to 1.mlp"),
        (["0.attn", "0.attn"], None, "link '0.attn' is given twice; leave one"),
        (["0.attn"], {}, "dropped link 0.attn is not in norms; say there keep or lose"),
        (["0.attn"], {"0.attn": "gone"}, "norm of 0.attn 'gone' is not one of keep, lose; write one of them"),
    ],
)
def test_from_dropped_refuses(dropped: list[str], norms: Any, message: str) -> None:
    with pytest.raises(InputError) as caught:
        Plan.from_dropped(2, dropped, norms)
    assert str(caught.value) == message


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 6).flatmap(
        lambda blocks: st.tuples(st.just(blocks), st.sets(st.sampled_from([link.name for link in chain(blocks)])))
    ),
    st.sampled_from([None, "keep", "lose"]),
    st.dictionaries(st.text(max_size=5), st.one_of(st.none(), st.booleans(), st.floats(allow_nan=False, width=32))),
)
def test_plan_round_trip(model: tuple[int, set[str]], norm: Any, origin: dict[str, Any]) -> None:
    num_blocks, dropped = model
    norms = None if norm is None else dict.fromkeys(dropped, norm)
    origin = {key: value for key, value in origin.items() if value not in (float("inf"), float("-inf"))}
    plan = Plan.from_dropped(num_blocks, dropped, norms, "dp", origin)
    assert Plan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan
    assert set(plan.dropped) == dropped
    assert len(plan.strip()) == 2 * num_blocks


def test_saved_plan_is_one_choice_a_line_and_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    plan = Plan.from_dropped(12, ["3.attn", "10.mlp"], None, "refine", {"trace": [{"link": "3.attn"}], "µs": 1.5})
    plan.save(path)
    lines = path.read_text(encoding="utf-8").splitlines()
    assert '    {"link": "3.attn", "action": "drop"},' in lines
    assert sum('"link": ' in line and '"action": ' in line for line in lines) == 24
    assert Plan.load(path) == plan
    assert json.loads(path.read_text(encoding="utf-8")) == plan.to_dict()


def edit(plan: dict[str, Any], *path: Any, value: Any) -> None:
    for key in path[:-1]:
        plan = plan[key]
    plan[path[-1]] = value


@pytest.mark.parametrize(
    ("where", "value", "message"),
    [
        (["version"], 3, "version 3 of the plan is not 1 or 2; write it anew with this release"),
        (["version"], True, "version True of the plan is not of type int; correct it"),
        (["num_blocks"], 0, "num_blocks 0 is not a whole number of at least 1; give one"),
        (["num_blocks"], 3, "link 2.attn is missing from the plan, which has one of each; add it"),
        (["num_blocks"], 1, "link '1.attn' is not in this model; use 0.attn to 0.mlp"),
        (["num_blocks"], 10**9, "num_blocks 1000000000 is above the number of choices, 4; correct it"),
        (["mode"], 1, "key 'mode' of the plan is unknown; use version, num_blocks, method, choices, origin, head"),
        (["choices"], "x", "choices 'x' of the plan is not of type list; correct it"),
        (["choices", 0], "0.attn", "choices[0] is a str, not an object in braces; rewrite it"),
        (["choices", 0, "link"], "9.attn", "link '9.attn' is not in this model; use 0.attn to 1.mlp"),
        (["choices", 0, "link"], "0.ffn", "link '0.ffn' is not BLOCK.attn or BLOCK.mlp; write it like 12.attn"),
        (["choices", 0, "link"], "0.mlp", "link '0.mlp' is given twice; leave one"),
        (["choices", 0, "action"], "skip", "action of 0.attn 'skip' is not one of keep, drop; write one of them"),
        (["choices", 0, "norm"], "keep", "norm 'keep' of 0.attn stands on a kept link; remove it or drop the link"),
        (["choices", 1, "norm"], "los", "norm of 0.mlp 'los' is not one of keep, lose; write one of them"),
        (["choices", 1, "note"], "", "key 'note' of choices[1] is unknown; use link, action, norm, format"),
        (["choices", 2, "action"], 1, "action 1 of choices[2] is not of type str; correct it"),
        (
            ["choices", 2, "action"],
            "drop",
            "norm is missing of 1.attn but given of 0.mlp; say keep or lose of both, or nothing",
        ),
        (
            ["choices", 0],
            {"link": "0.attn", "action": "drop", "norm": "lose"},
            "norm 'keep' of 0.mlp, whose block is dropped whole; set 'lose' for both links",
        ),
        (["origin"], None, "origin None of the plan is not of type dict; correct it"),
    ],
)
def test_bad_edits_of_a_plan_are_named(tmp_path: Path, where: list[Any], value: Any, message: str) -> None:
    plan = plan_dict()
    edit(plan, *where, value=value)
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(plan), encoding="utf-8")
    with pytest.raises(InputError) as caught:
        Plan.load(path)
    assert str(caught.value) == f"plan {path}: {message}"


def test_missing_and_misplaced_rows_are_named() -> None:
    plan = plan_dict()
    plan["choices"][2:] = reversed(plan["choices"][2:])
    with pytest.raises(InputError, match=r"link 1\.mlp stands where 1\.attn belongs .* chain order"):
        Plan.from_dict(plan)
    del plan["choices"][3]
    with pytest.raises(InputError, match=r"link 1\.attn is missing"):
        Plan.from_dict(plan)
    del plan["choices"][0]["action"]
    with pytest.raises(InputError, match=r"key 'action' of choices\[0\] is missing; add it"):
        Plan.from_dict(plan)
    del plan["method"]
    with pytest.raises(InputError, match="key 'method' of the plan is missing; add it"):
        Plan.from_dict(plan)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"version": 1,}', r"is not valid JSON: .* at line 1 column \d+; correct that line"),
        ('{"version": 1, "version": 2}', "key 'version' is given twice in one object; leave one"),
        ('{"origin": {"cost": NaN}}', "number NaN is not finite; write a finite one"),
        ("[1, 2]", "the plan is a list, not an object in braces; rewrite it"),
        ("[" * 100_000, "is nested too deeply for JSON"),
        ("", "is not valid JSON"),
    ],
)
def test_files_that_are_no_strict_json_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "plan.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=message) as caught:
        Plan.load(path)
    assert str(caught.value).startswith(f"plan {path}")
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"plan .*/plan\.json does not exist"):
        Plan.load(tmp_path / "plan.json")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), object(), Path("x")])
def test_an_origin_that_is_no_json_is_not_saved(tmp_path: Path, value: Any) -> None:
    path = tmp_path / "plan.json"
    with pytest.raises(InputError, match="a value is not plain, finite JSON"):
        Plan.full(1, origin={"cost": value}).save(path)
    assert not path.exists()


def test_choices_must_be_a_chain() -> None:
    with pytest.raises(InputError, match=r"link 0\.mlp is missing"):
        Plan(1, (Choice("0.attn", "keep"),))


# Cost tables


def test_table_looks_up_and_adds_up() -> None:
    table = CostTable.from_dict(table_dict())
    assert table.links == ("0.attn", "0.mlp", "1.attn", "1.mlp")
    assert (table.cost("1.mlp"), table.time("1.mlp")) == (0.5, 10.0)
    block = table.block(0)
    assert block is not None
    assert (block.links, block.cost, block.cosine) == (("0.attn", "0.mlp"), 0.625, 0.125)
    assert table.block(1) is None
    assert table.cost_of([]) == 0.0
    assert table.cost_of(["0.attn", "1.attn"]) == 1.0
    assert table.cost_of(table.links) == 0.625 + 1.0  # the joint entry of block 0, the sum of block 1
    assert table.predict_us([]) == 100.0
    assert table.predict_us(["0.attn", "1.mlp"]) == 80.0
    assert table.norms is None
    for unknown in (lambda: table.cost("2.attn"), lambda: table.block(2), lambda: table.predict_us(["x"])):
        with pytest.raises(InputError, match=r"is not in this model; use 0\.attn to 1\.mlp"):
            unknown()


def test_post_norm_table_tells_norms() -> None:
    data = table_dict(post_norm=True)
    for row in data["entries"]:
        row["norm"] = "lose" if len(row["links"]) == 2 or row["links"] == ["0.mlp"] else "keep"
    table = CostTable.from_dict(data)
    assert table.norms == {"0.attn": "keep", "0.mlp": "lose", "1.attn": "keep", "1.mlp": "keep"}
    assert Plan.from_dropped(2, ["1.attn"], table.norms).norms == {"1.attn": "keep"}


def test_table_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "costs.json"
    table = CostTable.from_dict(table_dict())
    table.save(path)
    assert CostTable.load(path) == table
    assert json.loads(path.read_text(encoding="utf-8")) == table.to_dict() == table_dict()
    assert sum('"links": ' in line for line in path.read_text(encoding="utf-8").splitlines()) == 5


@pytest.mark.parametrize(
    ("where", "value", "message"),
    [
        (["version"], 0, "version 0 of the cost table is not 1"),
        (["num_blocks"], 10**9, "num_blocks 1000000000 is above the number of entries, 5; correct it"),
        (["total_us"], -1.0, "total_us -1.0 is below 0"),
        (["fixed_us"], float("inf"), "fixed_us inf is not a finite int or float"),
        (["fixed_us"], True, "fixed_us True of the cost table is not of type float"),
        (["tokens"], -5, "tokens -5 is not a whole number of at least 0"),
        (["shape", "batch"], 0, "batch 0 is not a whole number of at least 1"),
        (["shape", "width"], 3, "key 'width' of shape is unknown"),
        (["entries", 0, "links"], ["0.mlp"], "link '0.mlp' is given twice"),
        (["entries", 0, "links"], ["5.mlp"], "link '5.mlp' is not in this model"),
        (["entries", 0, "links"], [], r"links \[\] are not one link or one block"),
        (["entries", 0, "links"], ["0.mlp", "0.attn"], "are not one link or one block"),
        (["entries", 0, "links"], ["0.attn", "1.mlp"], "are not one link or one block"),
        (["entries", 0, "links"], ["0.attn", "0.mlp"], r"link 0\.attn is missing from the cost table"),
        (["entries", 4, "links"], ["7.attn", "7.mlp"], "link '7.attn' is not in this model"),
        (["entries", 5], entry("0.attn", "0.mlp"), "block 0 has two entries in the cost table"),
        (["entries", 0, "cost"], float("nan"), "cost of 0.attn nan is not a finite int or float"),
        (["entries", 4, "cosine"], float("nan"), "cosine of block 0 nan is not a finite int or float"),
        (["entries", 0, "time_us"], -0.5, "time_us of 0.attn -0.5 is below 0; clamp clock noise"),
        (["entries", 0, "low"], 9.0, "low 9.0 of 0.attn is above high 0.75"),
        (["entries", 0, "norm"], "keep", "norm 'keep' of 0.attn in a pre-norm table"),
        (["entries", 0, "norm"], "kept", "norm of 0.attn 'kept' is not one of keep, lose"),
        (["post_norm"], True, "norm None of 0.attn in a post-norm table; say keep or lose"),
        (["entries", 0, "price"], 1.0, r"key 'price' of entries\[0\] is unknown"),
    ],
)
def test_bad_tables_are_refused(where: list[Any], value: Any, message: str) -> None:
    data = table_dict()
    if where == ["entries", 5]:
        data["entries"].append({})
    edit(data, *where, value=value)
    with pytest.raises(InputError, match=message) as caught:
        CostTable.from_dict(data)
    assert "\n" not in str(caught.value)


def test_a_whole_block_of_a_post_norm_model_is_scored_without_norms() -> None:
    data = table_dict(post_norm=True)
    for row in data["entries"]:
        row["norm"] = "keep"
    with pytest.raises(InputError, match="norm 'keep' of block 0, but a block dropped whole loses its norms"):
        CostTable.from_dict(data)


def test_entry_says_what_it_is() -> None:
    assert CostEntry(("3.attn",), 1, 1, 1, 1).what == "3.attn"
    assert CostEntry(("3.attn", "3.mlp"), 1, 1, 1, 1).what == "block 3"
