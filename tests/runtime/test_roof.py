"""Roofs against work counted by hand, and what is held against them."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch

from chinchilla_lm.errors import InputError
from chinchilla_lm.runtime.engine.native import engine_module
from chinchilla_lm.runtime.measuring import machine, roof
from chinchilla_lm.runtime.measuring.roof import Roof, held, kind_of, measure_bandwidth, measure_products, share_text


class Clock:
    """Each look at it is a hundredth of a second later, so each timed call takes exactly that."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        self.now += 0.01
        return self.now


def test_rates_are_work_over_the_fastest_time(monkeypatch):
    """By a clock under which each call takes 0.01 s, the rates follow from bytes and operations counted by hand."""
    monkeypatch.setattr(roof, "time", Clock())
    monkeypatch.setattr(roof, "engine_module", lambda: None)
    assert measure_bandwidth(3 << 20, 0.5) == pytest.approx((3 << 20) / 0.01 / 1e9)
    assert measure_bandwidth(100, 0.5) == pytest.approx((1 << 20) / 0.01 / 1e9), "too little to time"
    # Three products of 256 fit in 0.05 s when one takes 0.01 s; three of 512, at eight times the work, do not.
    assert measure_products("float32", 0.05) == pytest.approx(2 * 256**3 / 0.01 / 1e9)


def test_a_buffer_never_takes_more_than_a_quarter_of_the_memory(monkeypatch):
    monkeypatch.setattr(roof, "time", Clock())
    monkeypatch.setattr(roof, "available_memory", lambda: 16 << 20)
    assert measure_bandwidth(1 << 40, 0.1) == pytest.approx((4 << 20) / 0.01 / 1e9)


def test_the_fastest_way_counts_and_all_cores_work(monkeypatch):
    threads = []

    def way(seconds):
        def product(n):
            threads.append(torch.get_num_threads())
            return lambda: time.sleep(seconds)

        return product

    monkeypatch.setattr(roof, "_SIZES", (64,))
    monkeypatch.setattr(roof, "usable_cores", lambda: 3)
    monkeypatch.setattr(roof, "_ways", lambda kind: [way(0.02), way(0.002)])
    before = torch.get_num_threads()
    assert 2 * 64**3 / 0.02 / 1e9 < measure_products("int8", 0.1) <= 2 * 64**3 / 0.002 / 1e9
    assert threads == [3, 3]
    assert torch.get_num_threads() == before


def test_at_least_three_calls_after_one_to_warm_up():
    calls: list[int] = []
    assert len(roof._times(lambda: calls.append(1), 0.0)) == 3
    assert len(calls) == 4


def test_slow_products_do_not_take_long(monkeypatch):
    """Each product of 256 takes 0.05 s here, and 512 times as long for one of 2048."""
    seconds: list[float] = []
    clock = Clock()
    clock.perf_counter = lambda: sum(seconds)  # type: ignore[method-assign]
    monkeypatch.setattr(roof, "time", clock)
    monkeypatch.setattr(roof, "_ways", lambda kind: [lambda n: lambda: seconds.append(0.05 * (n / 256) ** 3)])
    measure_products("bfloat16", 1.0)
    assert sum(seconds) < 2.0


@pytest.mark.skipif(engine_module() is None, reason="the engine is not built")
@pytest.mark.parametrize("kind", roof.KINDS)
def test_our_product_is_the_whole_product(kind):
    """All rows come out, whichever thread had them: against numpy, as close as the format rounds."""
    random = np.random.default_rng(0)
    weights, inputs = (random.standard_normal((256, 256), np.float32) for _ in range(2))
    found = np.concatenate(list(roof._our_product(256, roof.OURS[kind])()))  # type: ignore[call-overload]
    np.testing.assert_allclose(found, inputs @ weights.T, atol={"float32": 1e-3}.get(kind, 2.0))


def test_bytes_that_nobody_multiplies_count_as_floats(monkeypatch):
    monkeypatch.setattr(roof, "engine_module", lambda: None)
    monkeypatch.setattr(roof, "_bytes", lambda n: torch.no_such_product)  # type: ignore[attr-defined]
    assert len(roof._ways("int8")) == len(roof._ways("float32")) == 1


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf")])
def test_a_time_must_be_positive(seconds: float):
    with pytest.raises(InputError, match="is not greater than 0; pass"):
        measure_bandwidth(1, seconds)
    with pytest.raises(InputError, match="is not greater than 0; pass"):
        measure_products("float32", seconds)


def test_an_unknown_kind_is_refused():
    with pytest.raises(InputError, match="dtype int3 is not one of float32, bfloat16, int8; pass float32"):
        measure_products("int3", 0.1)


def test_no_cache_holds_the_largest_read(monkeypatch):
    for cache, size in ((None, 256 << 20), (32 << 20, 256 << 20), (300 << 20, 1200 << 20)):
        monkeypatch.setattr(roof, "last_level_cache", lambda cache=cache: cache)
        assert roof.uncached_size() == size
    assert (machine.available_memory() or 1) > 0


def test_products_are_held_against_their_own_kind():
    forms = {
        "float32": ("f32", "float32"),
        "bfloat16": ("bf16", "bfloat16", "bfloat16+compile", "float16"),
        "int8": ("int8", "int8-row", "int4", "int4-g64", "Q8_0", "Q4_0 pure", "IQ4_NL", "codebook-2x64", "sparse-50"),
    }
    assert {kind: tuple(one for one in group if kind_of(one) == kind) for kind, group in forms.items()} == forms


def test_more_than_a_roof_allows_is_a_fault_and_no_share():
    assert held("gemm", 104.0, 100.0) == {"gemm_share": 1.04}
    over = held("gemm", 112.0, 100.0)
    assert over == {"gemm_share": None, "gemm_fault": "the roof was measured too low: 112 %"}
    assert (share_text({"gemm_share": 0.5}, "gemm"), share_text({}, "gemm")) == ("50%", "")
    assert share_text(over, "gemm") == over["gemm_fault"]


def test_each_figure_is_measured_once_and_the_higher_of_two_looks_counts(monkeypatch):
    reads = iter([10.0, 12.0])
    products = iter([50.0, 40.0])
    monkeypatch.setattr(roof, "measure_bandwidth", lambda size: next(reads))
    monkeypatch.setattr(roof, "measure_products", lambda kind: next(products))
    found = Roof()
    assert [found.bandwidth(100.2), found.bandwidth(100), found.products("int8")] == [10.0, 10.0, 50.0]
    found.look_again()
    assert found.to_dict() == {"reads": [{"bytes": 100, "gb_s": 12.0}], "products": {"int8": 50.0}}
    found._reads[6_000_000_000] = 12.0
    assert found.of_reading(6e9, 1.0) == {
        "read_bytes": 6_000_000_000,
        "bandwidth_gb_s": 12.0,
        "bandwidth_share": 0.5,
    }
    assert found.of_products(25e9, 1.0, "Q4_0")["gemm_share"] == 0.5
