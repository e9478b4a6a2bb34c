import json
from typing import Any

import pytest
import torch

from chinchilla_lm.cli import main
from chinchilla_lm.models.checkpoint import load, save
from chinchilla_lm.models.layers import Link
from chinchilla_lm.models.transformer import NormFate
from chinchilla_lm.runtime.engine.native import engine_module
from chinchilla_lm.runtime.measuring import torch_engine
from chinchilla_lm.runtime.measuring.footprint import Footprint
from chinchilla_lm.runtime.packing import write_packed
from chinchilla_lm.shorten.surgery import without

KEYS = {
    *("engine", "format", "batch", "prompt_tokens", "new_tokens", "prefill_tokens_per_s", "decode_tokens_per_s"),
    *("sequences_per_s", "latency_ms", "peak_mb", "load_s", "metrics"),
}
DROPPED: dict[str, NormFate] = {"0.mlp": "lose", "1.attn": "lose", "1.mlp": "lose", "2.attn": "lose"}


@pytest.fixture(autouse=True)
def quick_roof(monkeypatch):
    monkeypatch.setattr("chinchilla_lm.runtime.measuring.roof.measure_bandwidth", lambda size: 10.0)
    monkeypatch.setattr("chinchilla_lm.runtime.measuring.roof.measure_products", lambda kind: 100.0)


@pytest.fixture
def link_clock(monkeypatch):
    """A clock that moves by a millisecond a link of ours and a microsecond a look at it: the same on a busy machine."""
    now = 0.0

    def look(device: torch.device) -> float:
        nonlocal now
        now += 1e-6
        return now

    def counted(self: Link, *arguments: Any) -> torch.Tensor:
        nonlocal now
        now += 1e-3
        return forward(self, *arguments)

    forward = Link.forward
    monkeypatch.setattr(Link, "forward", counted)
    monkeypatch.setattr(torch_engine, "_now", look)


@pytest.fixture
def short_folder(model_folder, tmp_path):
    checkpoint = load(model_folder())
    checkpoint.model = without(checkpoint.model, DROPPED, share=True)
    save(checkpoint, tmp_path / "short", {})
    return tmp_path / "short"


def answer(capsys, *arguments: str) -> dict:
    assert main(["bench", *arguments, "--seconds", "0.3", "--dtype", "float32", "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_short_model_against_its_original(capsys, model_folder, short_folder, link_clock):
    options = ["--backend", "torch", "--tokens", "16", "--new-tokens", "5", "--batch", "2", "--no-memory"]
    found = answer(capsys, str(short_folder), "--against", str(model_folder()), *options)
    assert [(row["model"], row["engine"]) for row in found["rows"]] == [
        (str(model_folder()), "chinchilla-torch"),
        (str(short_folder), "chinchilla-torch"),
    ]
    for row, links in zip(found["rows"], (6, 2), strict=True):
        assert row.keys() >= KEYS
        assert (row["format"], row["batch"], row["prompt_tokens"], row["new_tokens"]) == ("float32", 2, 16, 5)
        prefill, decode = links * 1e-3 + 1e-6, 4 * links * 1e-3 + 1e-6
        assert row["prefill_tokens_per_s"] == pytest.approx(2 * 16 / prefill)
        assert row["decode_tokens_per_s"] == pytest.approx(2 * 4 / decode)
        assert row["sequences_per_s"] == pytest.approx(2 / (prefill + decode))
        assert row["latency_ms"] == pytest.approx({"p50": 1e3 * (prefill + decode), "p95": 1e3 * (prefill + decode)})
        roofline = row["roofline"]
        assert roofline["bandwidth_share"] == pytest.approx(4 * roofline["decode_mb_per_step"] / 1e3 / decode / 10.0)
        assert roofline["gemm_share"] == pytest.approx(roofline["pass_gflop"] / prefill / 100.0)
    assert found["rows"][0]["parameters"] > found["rows"][1]["parameters"]
    sizes = {row["roofline"]["read_bytes"] for row in found["rows"]}
    assert {one["bytes"] for one in found["roofline"]["reads"]} == sizes, "each is measured at its own size"
    assert found["roofline"]["products"] == {"float32": 100.0}
    assert "versions" in found["machine"]
    ratios = {ratio["measure"]: ratio for ratio in found["ratios"]}
    assert set(ratios) == {"prefill", "decode", "request"}
    for ratio in ratios.values():
        assert (ratio["model"], ratio["over"]) == (str(short_folder), str(model_folder()))
        assert [ratio[key] for key in ("value", "low", "high")] == pytest.approx([3.0] * 3, rel=0.01)


@pytest.mark.skipif(engine_module() is None, reason="the engine is not built")
@pytest.mark.parametrize("kind", ["language-modeling", "token-classification"])
def test_the_engine_is_raced_where_it_is_there(kind, capsys, model_folder):
    folder = str(model_folder(*([] if kind == "language-modeling" else ["bert", kind])))
    new = ["--new-tokens", "4"] if kind == "language-modeling" else []
    found = answer(capsys, folder, "--against", folder, "--tokens", "16", *new, "--batch", "2", "--no-memory")
    assert {row["engine"] for row in found["rows"]} == {"chinchilla-native"}
    assert all(row["sequences_per_s"] > 0 for row in found["rows"])


@pytest.mark.skipif(engine_module() is None, reason="the engine is not built")
def test_packed_models_are_raced_alone_and_against_others(capsys, model_folder, tmp_path):
    folder, packed, out = str(model_folder()), str(tmp_path / "packed"), tmp_path / "out"
    write_packed(folder, "int4", tmp_path / "packed")
    short = ["--tokens", "16", "--new-tokens", "4", "--seconds", "0.1", "--json"]
    for model, against, formats in (
        (packed, [], ["int4"]),
        (packed, ["--against", folder, "--no-memory", "--dtype", "float32"], ["f32", "int4"]),
        (folder, ["--against", packed, "--no-memory", "--dtype", "float32"], ["int4", "f32"]),
    ):
        assert main(["bench", model, *against, *short, "-o", str(out)]) == 0
        found = json.loads(capsys.readouterr().out)
        assert [row["format"] for row in found["rows"]] == formats
        assert all(row["decode_tokens_per_s"] > 0 for row in found["rows"])
        assert json.loads((out / "bench.json").read_text(encoding="utf-8"))["rows"] == found["rows"]
        assert "| int4 |" in (out / "bench.md").read_text(encoding="utf-8")
        if not against:
            assert found["rows"][0]["peak_mb"] is None or found["rows"][0]["peak_mb"] < 100
            assert found["rows"][0]["load_s"] < 2.0
    assert main(["bench", packed, "--dtype", "float32"]) == 2
    assert "dtype float32 is not that of a packed model" in capsys.readouterr().err


def test_a_model_against_itself_is_as_fast(capsys, model_folder, link_clock):
    folder = str(model_folder())
    words = ["--against", folder, "--backend", "torch", "--tokens", "16", "--new-tokens", "4", "--no-memory"]
    found = answer(capsys, folder, *words)
    for ratio in found["ratios"]:
        assert [ratio[key] for key in ("value", "low", "high")] == pytest.approx([1.0] * 3)


def test_a_tagger_is_timed_by_the_batch_and_alone(capsys, model_folder, monkeypatch):
    monkeypatch.setattr(
        "chinchilla_lm.pipeline.bench.measure_footprint",
        lambda spec, shape, threads: Footprint(123.0, 4.5),
    )
    folder = str(model_folder("bert", "token-classification"))
    found = answer(capsys, folder, "--against", folder, "--tokens", "12", "--batch", "4")
    for row in found["rows"]:
        assert row.keys() >= KEYS
        assert (row["new_tokens"], row["prefill_tokens_per_s"], row["decode_tokens_per_s"]) == (0, None, None)
        assert row["sequences_per_s"] > 0
        assert (row["peak_mb"], row["load_s"]) == (123.0, 4.5)
    assert {ratio["measure"] for ratio in found["ratios"]} == {"sequences", "latency"}


def test_the_table_is_for_people(capsys, model_folder):
    arguments = [
        "--tokens",
        "8",
        "--new-tokens",
        "1",
        "--seconds",
        "0.1",
        "--no-memory",
        "--against",
        str(model_folder()),
    ]
    assert main(["bench", str(model_folder()), *arguments]) == 0
    out = capsys.readouterr().out
    for words in (
        "prefill tokens/s",
        "products 100 GFLOP/s in",
        "times as fast as",
        "95 % interval",
        "float32|bfloat16",
    ):
        assert any(word in out for word in words.split("|"))


def test_a_roof_that_is_too_low_is_a_fault_and_no_share(capsys, model_folder, link_clock, monkeypatch):
    monkeypatch.setattr("chinchilla_lm.runtime.measuring.roof.measure_products", lambda kind: 1e-9)
    words = ["--backend", "torch", "--tokens", "16", "--new-tokens", "4", "--no-memory"]
    (row,) = answer(capsys, str(model_folder()), *words)["rows"]
    assert row["roofline"]["gemm_share"] is None
    assert row["roofline"]["gemm_fault"].startswith("the roof was measured too low: ")
    assert main(["bench", str(model_folder()), *words, "--seconds", "0.1"]) == 0
    assert "the roof was measured too low: " in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--peers", "transformers,abacus"], "peer 'abacus' is not one of llama.cpp"),
        (["--data", "x"], "--data belongs to a race with peers"),
        (["--tokens", "60", "--new-tokens", "9"], "60 + 9 tokens are more than the model's 64 positions"),
        (["--batch", "0"], "batch 0 is not 1 or more"),
        (["--new-tokens", "0"], "new-tokens 0 is not 1 or more"),
        (["--seconds", "0"], "seconds 0.0 is not a number above 0"),
    ],
)
def test_what_cannot_be_raced_is_refused(capsys, model_folder, arguments, message):
    assert main(["bench", str(model_folder()), *arguments]) == 2
    assert message in capsys.readouterr().err


def test_models_for_different_tasks_are_not_compared(capsys, model_folder):
    other = str(model_folder("bert", "token-classification"))
    assert main(["bench", str(model_folder()), "--against", other]) == 2
    assert "only models for one task compare" in capsys.readouterr().err


def test_new_tokens_of_a_tagger_are_ignored_aloud(capsys, model_folder):
    folder = str(model_folder("bert", "token-classification"))
    answer_lines = [
        "bench",
        folder,
        "--new-tokens",
        "4",
        "--tokens",
        "8",
        "--batch",
        "2",
        "--seconds",
        "0.1",
        "--no-memory",
    ]
    assert main(answer_lines) == 0
    assert "--new-tokens 4 is ignored" in capsys.readouterr().err
