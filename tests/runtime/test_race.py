import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from chinchilla_lm.errors import ContractError, InputError
from chinchilla_lm.runtime.engine.native import engine_module
from chinchilla_lm.runtime.measuring.clock import speedup
from chinchilla_lm.runtime.measuring.engines import NATIVE, TORCH, EngineSpec, open_engine
from chinchilla_lm.runtime.measuring.footprint import measure_footprint, peak_mb
from chinchilla_lm.runtime.measuring.race import WARMUP, race
from chinchilla_lm.runtime.measuring.shape import Ids, Shape, prompt
from chinchilla_lm.runtime.packing import write_packed

NEEDS_ENGINE = pytest.mark.skipif(engine_module() is None, reason="the engine is not built")


class Sleeper:
    """An engine of a known speed that remembers what it was given."""

    form = cache = "none"

    demand: Any = SimpleNamespace(vocabulary=50)

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.seen: list[Ids] = []

    def generate(self, ids: Ids, new_tokens: int) -> tuple[float, float]:
        self.seen.append(ids)
        return self.seconds, self.seconds * (new_tokens - 1)

    def forward(self, ids: Ids) -> Any:
        self.seen.append(ids)
        time.sleep(self.seconds * len(ids))
        return np.eye(50)[ids]


def test_phases_are_those_that_the_engine_timed():
    engines = {"slow": Sleeper(0.5), "fast": Sleeper(0.25)}
    found = race(engines, Shape(2, 7, 5), seconds=0.01)
    assert found["slow"]["prefill"].p50 == 500.0
    assert found["slow"]["decode"].p50 == 2000.0
    assert found["fast"]["request"].p50 == 1250.0
    assert speedup(found["slow"]["decode"], found["fast"]["decode"]).value == 2.0
    assert list(found["fast"]) == ["prefill", "decode", "request"]
    assert list(race(engines, Shape(2, 7, 1), seconds=0.01)["fast"]) == ["prefill", "request"]


def test_every_engine_sees_the_same_prompts_and_none_twice():
    engines = {"a": Sleeper(0.0), "b": Sleeper(0.0)}
    found = race(engines, Shape(2, 7, 3), seconds=0.01)
    rounds = len(found["a"]["request"].seconds)
    assert len(engines["a"].seen) == rounds + WARMUP
    assert all(np.array_equal(x, y) for x, y in zip(engines["a"].seen, engines["b"].seen, strict=True))
    assert len({tuple(ids.flatten().tolist()) for ids in engines["a"].seen}) == rounds + WARMUP
    assert all(ids.shape == (2, 7) for ids in engines["a"].seen)


def test_reading_is_timed_by_the_batch_and_alone():
    found = race({"a": Sleeper(0.005)}, Shape(4, 3, 0), seconds=0.01)["a"]
    assert list(found) == ["batch", "single"]
    assert found["single"].p50 >= 5.0
    assert found["batch"].p50 >= 20.0


@pytest.mark.parametrize("engine", [TORCH, pytest.param(NATIVE, marks=NEEDS_ENGINE)])
def test_both_engines_time_their_work(model_folder, engine):
    found = open_engine(EngineSpec(engine, str(model_folder()), "float32", "cpu"))
    ids = prompt(1, 2, 9, found.demand.vocabulary)
    assert min(found.generate(ids, 4)) > 0.0
    assert found.forward(ids).shape == (2, 9, found.demand.vocabulary)


@pytest.fixture
def packed(model_folder, tmp_path: Path) -> str:
    write_packed(model_folder(), "int8", tmp_path / "packed")
    return str(tmp_path / "packed")


@NEEDS_ENGINE
def test_a_packed_model_gives_what_its_twin_in_torch_gives(packed: str):
    ours, twin = (open_engine(EngineSpec(engine, packed, "float32", "cpu")) for engine in (NATIVE, TORCH))
    assert (ours.form, twin.form) == ("int8", "float32")
    assert ours.demand.vocabulary == twin.demand.vocabulary
    ids = prompt(1, 2, 9, twin.demand.vocabulary)
    # The twin does not round the inputs of products.
    assert np.corrcoef(ours.forward(ids).ravel(), twin.forward(ids).ravel())[0, 1] > 0.99
    with pytest.raises(InputError, match="is packed for language-modeling, not ranking; leave --task away"):
        open_engine(EngineSpec(NATIVE, packed, "auto", "cpu", "ranking"))


@NEEDS_ENGINE
def test_a_packed_model_is_measured_without_torch(packed: str):
    """Libraries of torch alone take more than what is allowed here."""
    found = measure_footprint(EngineSpec(NATIVE, packed, "auto", "cpu"), Shape(1, 8, 3), 1)
    assert found.peak_mb is None or found.peak_mb < 100
    assert 0.0 < found.load_s < 2.0


def test_an_unknown_engine_is_refused():
    with pytest.raises(InputError, match="engine 'abacus' is not one of chinchilla-torch, chinchilla-native"):
        open_engine(EngineSpec("abacus", ".", "float32", "cpu"))


def test_a_footprint_is_that_of_its_own_process(model_folder):
    ballast = torch.ones(150_000_000)  # 600 MB here, which the other process must not be charged with
    own = peak_mb()
    found = measure_footprint(EngineSpec(TORCH, str(model_folder()), "float32", "cpu"), Shape(1, 8, 3), 1)
    assert own is None or own > 600
    assert found.peak_mb is None or 50 < found.peak_mb < (own or 0) - 300
    assert 0.0 < found.load_s < 60.0
    assert ballast[0] == 1.0


def test_a_process_that_fails_is_told_of(tmp_path):
    with pytest.raises(ContractError, match=r"cannot load .*: .*(missing|holds no config)"):
        measure_footprint(EngineSpec(TORCH, str(tmp_path), "float32", "cpu"), Shape(1, 8, 3), 1)
