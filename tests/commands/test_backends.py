"""What serves the model, the engine or torch: the same answers, times of its own, and stages that notice a change."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch

from chinchilla_lm.data.batches import batches
from chinchilla_lm.data.encoded import Encoded
from chinchilla_lm.files import read_json
from chinchilla_lm.models.batch import Batch
from chinchilla_lm.models.checkpoint import load
from chinchilla_lm.runtime.engine.compile import compile_model
from chinchilla_lm.runtime.engine.native import engine_module
from chinchilla_lm.runtime.engine.served import NativeForward
from chinchilla_lm.score.timing import time_native_links
from tests.commands.conftest import TAGGING

pytestmark = pytest.mark.skipif(engine_module() is None, reason="the engine is not built")


def values(done) -> dict[str, float]:
    assert done.status == 0, done.err
    return {name: metric["value"] for name, metric in done.result["metrics"].items()}


@pytest.mark.parametrize("task", ["token-classification", "language-modeling"])
def test_both_backends_are_judged_alike(
    task: str, tagger: Path, tags: Path, texts: Path, model_folder, tmp_path, chinchilla
):
    model, data = (tagger, tags) if task == "token-classification" else (model_folder(), texts)
    common = ("--task", task, "--data", data, "--json")
    packed = tmp_path / "packed"
    source = tagger / "model" if task == "token-classification" else model
    assert chinchilla("pack", source, "--format", "f32", "-o", packed).status == 0
    found = [
        values(chinchilla("evaluate", model, *common, "--dtype", "float32", "--backend", "torch")),
        values(chinchilla("evaluate", model, *common, "--dtype", "float32", "--backend", "native")),
        values(chinchilla("evaluate", packed, *common, "--backend", "native")),
        values(chinchilla("evaluate", packed, *common, "--dtype", "float32", "--backend", "torch")),
    ]
    assert all(one == pytest.approx(found[0], rel=1e-4) for one in found[1:])


@pytest.mark.parametrize("kind", ["token-classification", "text-classification", "embedding"])
def test_a_padded_batch_gives_what_torch_gives(kind: str, model_folder):
    model = load(model_folder("bert", kind)).model
    served = NativeForward(compile_model(model, "f32"), kind, threads=2)
    windows = [Encoded([2, *range(5, 5 + n)], [0] + [1] * n, None, []) for n in (3, 7, 1)]
    (batch,) = batches(windows, max_tokens=64, pad_id=0)
    with torch.inference_mode():
        wanted = model(batch.batch)
    got = served(batch.batch)
    assert got.shape == wanted.shape
    if kind == "token-classification":
        assert batch.batch.mask is not None
        got, wanted = got[batch.batch.mask], wanted[batch.batch.mask]
    torch.testing.assert_close(got, wanted, atol=1e-4, rtol=1e-4)


def test_the_engines_own_clock_adds_up(model_folder):
    model = load(model_folder()).model
    served = NativeForward(compile_model(model, "f32"), "language-modeling", threads=1)
    batch = Batch(torch.randint(model.config.vocab_size, (2, 20)))
    times = time_native_links(model, served, batch, seconds=0.05)
    assert set(times.link_us) == set(model.link_names)
    assert all(value > 0 for value in times.link_us.values())
    assert times.total_us == pytest.approx(times.fixed_us + sum(times.link_us.values()))
    links, rest = served.model.take_seconds()
    assert not any(links.values())
    assert rest == 0
    begun = time.perf_counter()
    served.read(batch)
    passed = time.perf_counter() - begun
    links, rest = served.model.take_seconds()
    assert 0 < rest + sum(links.values()) < passed


def test_times_say_their_backend_and_another_backend_times_again(run_folder: Path, chinchilla):
    assert read_json(run_folder / "costs.json", "costs")["backend"] == "native"
    assert "native backend" in (run_folder / "report.md").read_text(encoding="utf-8") + str(
        read_json(run_folder / "report.json", "report")["speedup"]
    )
    same = chinchilla("score", "-o", run_folder)
    assert "score: unchanged" in same.out
    other = chinchilla("score", "-o", run_folder, "--backend", "torch")
    assert other.status == 0
    assert "score: unchanged" not in other.out
    assert read_json(run_folder / "costs.json", "costs")["backend"] == "torch"


def test_bad_backends(tagger: Path, tags: Path, chinchilla, monkeypatch: pytest.MonkeyPatch):
    common = ("evaluate", tagger, *TAGGING, "--data", tags)
    chinchilla(*common, "--backend", "gpu").refused("gpu", "native")
    monkeypatch.setattr("chinchilla_lm.pipeline.job.resolve_device", lambda name: torch.device("cuda"))
    chinchilla(*common, "--backend", "native").refused("native", "--device cpu")
