"""Which formats pay on a link, and the table of what each of them costs there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from chinchilla_lm.console import Console
from chinchilla_lm.errors import InputError
from chinchilla_lm.plan import FormatTable, chain
from chinchilla_lm.score.formats import FormatTimes, paying, score_formats
from chinchilla_lm.score.measure import Measure
from chinchilla_lm.score.table import Circumstances
from tests.score.calibration import HEADS, calibration

NAMES = [link.name for link in chain(3)]
FACTS = Circumstances({"batch": 2, "tokens": 9}, "cpu", "float32", "m" * 64, "d" * 64)
BYTES = {"bf16": 1000, "int8": 600, "int8-row": 500, "int4": 300}


def times(form: str, attn: float, mlp: float, head: float | None = None) -> FormatTimes:
    link_us = {name: attn if name.endswith("attn") else mlp for name in NAMES}
    sizes = dict.fromkeys(NAMES if head is None else [*NAMES, "head"], BYTES[form])
    return FormatTimes(link_us, 7.0 if head is None else head, sizes, 50)


MEASURED = {
    "bf16": times("bf16", 10.0, 20.0),
    "int8": times("int8", 6.0, 21.0),
    "int8-row": times("int8-row", 5.9, 11.0),
    "int4": times("int4", 7.0, 10.0),
}


def test_a_format_pays_that_is_faster_than_all_with_more_bits() -> None:
    offered = paying(MEASURED, memory=False)
    assert offered["0.attn"] == ["bf16", "int8"]  # int8-row gains less than clocks tell apart, int4 loses
    assert offered["2.mlp"] == ["bf16", "int8-row", "int4"]
    assert set(offered) == set(NAMES)


def test_a_format_also_pays_in_bytes_where_these_are_short() -> None:
    assert paying(MEASURED, memory=True) == {name: list(MEASURED) for name in NAMES}


@pytest.fixture
def table(tiny_config, tiny_model) -> FormatTable:
    measure = Measure(tiny_model(tiny_config(), dtype=torch.float32), calibration())
    found = {form: times(form, 1.0, 2.0, 3.0) for form in BYTES}
    offered = {name: ["bf16", "int8", "int4"] for name in NAMES} | {"head": ["int8-row", "int4"]}
    return score_formats(measure, found, offered, 99.0, FACTS, Console(quiet=True))


def test_coarse_formats_are_measured_and_fine_ones_follow_by_their_errors(table, tiny_config, tiny_model) -> None:
    measure = Measure(tiny_model(tiny_config(), dtype=torch.float32), calibration())
    for entry in table.entries:
        assert entry.error == measure.rounded.error(entry.what, entry.format)
        if entry.format == "int4":
            cost = measure.cost(frozenset(), formats={entry.what: "int4"})
            assert (entry.cost, entry.low, entry.high) == (cost.value, cost.low, cost.high)
            assert entry.measured
        else:
            coarse = table.entry(entry.what, "int4")
            assert entry.cost == pytest.approx(coarse.cost * entry.error / coarse.error)
            assert not entry.measured
    assert table.time_of({"0.attn": "int8", "1.mlp": "int4", "head": "int4"}) == 1.0 + 2.0 + 3.0
    assert table.bytes_of({"0.attn": "int8", "head": "int4"}) == 50 + 600 + 300


def test_the_ratio_of_errors_comes_near_what_is_measured(table, tiny_config, tiny_model) -> None:
    measure = Measure(tiny_model(tiny_config(), dtype=torch.float32), calibration())
    for name in NAMES:
        true = measure.cost(frozenset(), formats={name: "int8"}).value
        assert 0.2 < table.entry(name, "int8").cost / true < 5  # of a factor of 100 between the two formats


def test_without_a_head_the_rest_is_fixed(tiny_config, tiny_model) -> None:
    model = tiny_model(tiny_config(**HEADS["tags"]), dtype=torch.float32)
    offered = paying(MEASURED, memory=False)
    table = score_formats(Measure(model, calibration("tags")), MEASURED, offered, 99.0, FACTS, Console(quiet=True))
    assert (table.fixed_us, table.fixed_bytes, table.has_head) == (7.0, 50, False)
    assert [entry.format for entry in table.options("0.attn")] == offered["0.attn"]
    assert [(one.format, one.time_us, one.bytes) for one in table.wholes][:2] == [
        ("bf16", 7.0 + 3 * 30.0, 6 * 1000 + 50),
        ("int8", 7.0 + 3 * 27.0, 6 * 600 + 50),
    ]


def test_a_table_of_formats_is_kept_in_a_file(table, tmp_path: Path) -> None:
    table.save(tmp_path / "formats.json")
    assert FormatTable.load(tmp_path / "formats.json") == table


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "version 2 of the table of formats is not 1"),
        ({"bits": 4}, "key 'bits' of the table of formats is unknown"),
        ({"fixed_bytes": -1}, "fixed_bytes -1 is not a whole number of at least 0"),
        ({"entries": {"bytes": 1.5}}, "bytes 1.5 of entries"),
        ({"entries": {"format": "a=b"}}, "format of 0.attn 'a=b' is not the name of a format"),
        ({"entries": {"format": "int8"}}, "a format of 0.attn is given twice"),
        ({"entries": {"low": 1e9}}, "low 1000000000.0 of 0.attn in bf16 is above high"),
        ({"entries": {"what": "7.attn"}}, "link '7.attn' is not in this model"),
        ({"entries": {"time_us": float("nan")}}, "time_us of 0.attn in bf16 nan is not a finite"),
    ],
)
def test_what_does_not_belong_in_the_table_is_refused(table, change: dict[str, Any], message: str) -> None:
    values = table.to_dict()
    if "entries" in change:
        values["entries"][0] |= change["entries"]
    else:
        values |= change
    with pytest.raises(InputError, match=message):
        FormatTable.from_dict(values)
    with pytest.raises(InputError, match=r"link 0\.attn is missing from the table of formats"):
        FormatTable.from_dict(table.to_dict() | {"entries": table.to_dict()["entries"][3:]})
