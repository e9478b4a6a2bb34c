import json
import re

import pytest
import transformers

from chinchilla_lm.cli import main
from chinchilla_lm.models.checkpoint import load, save
from chinchilla_lm.runtime.engine.native import engine_module
from chinchilla_lm.runtime.packing import write_packed
from chinchilla_lm.shorten.surgery import without


@pytest.fixture
def short_folder(model_folder, tmp_path):
    checkpoint = load(model_folder())
    checkpoint.model = without(checkpoint.model, {"0.attn": "lose", "2.mlp": "lose"}, share=True)
    save(checkpoint, tmp_path / "short", {})
    return tmp_path / "short"


def answer(capsys, *arguments: str) -> dict:
    assert main(["inspect", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("name", "kind", "auto"),
    [
        ("llama-gqa", "language-modeling", transformers.AutoModelForCausalLM),
        ("bert", "token-classification", transformers.AutoModelForTokenClassification),
    ],
)
def test_parameters_add_up_to_those_of_transformers(capsys, model_folder, name, kind, auto):
    folder = model_folder(name, kind)
    found = answer(capsys, str(folder), "--no-time")
    model = auto.from_pretrained(folder)
    assert found["parameters"] == model.num_parameters()
    parts = sum(size["parameters"] for part, size in found["sizes"].items() if part != "total")
    links = sum(block[kind]["parameters"] for block in found["blocks"] for kind in ("attn", "mlp"))
    assert parts + links == found["parameters"]
    assert found["bytes"] == 4 * found["parameters"]
    assert (found["head"], found["causal"]) == (kind, kind == "language-modeling")
    assert found["positions"] == model.config.max_position_embeddings
    assert found["labels"] == (list(model.config.id2label.values()) if kind == "token-classification" else [])
    assert "time" not in found


def test_time_is_shared_out_among_the_links_that_are_left(capsys, short_folder, monkeypatch):
    monkeypatch.setattr("chinchilla_lm.pipeline.inspect.SECONDS", 0.1)
    found = answer(capsys, str(short_folder), "--tokens", "8", "--batch", "2", "--dtype", "float32")
    time = found["time"]
    assert set(time["link_us"]) == {"0.mlp", "1.attn", "1.mlp", "2.attn"}
    assert (time["batch"], time["tokens"]) == (2, 8)
    assert all(spent > 0 for spent in time["link_us"].values())
    assert sum(time["link_us"].values()) + time["fixed_us"] >= 0.99 * time["total_us"]


def test_shares_are_of_the_whole_pass(capsys, short_folder, monkeypatch):
    monkeypatch.setattr("chinchilla_lm.pipeline.inspect.SECONDS", 0.1)
    assert main(["inspect", str(short_folder), "--dtype", "float32"]) == 0
    out = capsys.readouterr().out
    table, rest = out.split("embedding ")
    shares = [float(share) for share in re.findall(r"([\d.]+)%", table)]
    assert len(shares) == 4
    assert all(0.0 < share < 100.0 for share in shares)
    [fixed] = re.findall(r"([\d.]+)% of it outside", rest)
    assert sum(shares) + float(fixed) > 99.0


def test_dropped_links_leave_gaps(capsys, short_folder):
    assert main(["inspect", str(short_folder), "--no-time"]) == 0
    out = capsys.readouterr().out
    rows = [line for line in out.splitlines() if re.match(r"\s*\d", line)]
    assert [len(row.split()) for row in rows] == [2, 3, 2]  # block and one link, both links, one link
    assert "2 of 6 links dropped" in out


def test_a_bare_norm_is_named(capsys, model_folder, tmp_path):
    checkpoint = load(model_folder("bert", "token-classification"))
    checkpoint.model = without(checkpoint.model, {"1.mlp": "keep"}, share=True)
    save(checkpoint, tmp_path / "short", {})
    assert main(["inspect", str(tmp_path / "short"), "--no-time"]) == 0
    assert capsys.readouterr().out.count("norm only") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tokens", "65"], "1 times 65 tokens is not 1 or more times 1 to 64"),
        (["--batch", "0"], "0 times 64 tokens"),
        (["--threads", "0"], "threads 0"),
        (["--dtype", "int3"], "dtype 'int3'"),
    ],
)
def test_a_shape_that_cannot_be_is_refused(capsys, model_folder, arguments, message):
    assert main(["inspect", str(model_folder()), *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.skipif(engine_module() is None, reason="the engine is not built")
def test_a_packed_model_is_shown_as_it_is_and_timed_in_the_engine(capsys, short_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("chinchilla_lm.pipeline.inspect.SECONDS", 0.1)
    write_packed(short_folder, "int8", tmp_path / "packed")
    plain, packed = (answer(capsys, str(one), "--no-time") for one in (short_folder, tmp_path / "packed"))
    assert packed["parameters"] == plain["parameters"]
    assert packed["blocks"] == plain["blocks"]
    assert packed["dtype"] == "int8"
    assert packed["bytes"] < 0.6 * plain["bytes"]
    time = answer(capsys, str(tmp_path / "packed"), "--tokens", "8", "--threads", "1")["time"]
    assert set(time["link_us"]) == {"0.mlp", "1.attn", "1.mlp", "2.attn"}
    for words, message in ((["--dtype", "float32"], "dtype float32"), (["--device", "cuda"], "not on cuda")):
        assert main(["inspect", str(tmp_path / "packed"), *words]) == 2
        assert message in capsys.readouterr().err


def test_a_model_that_is_not_there_is_one_line(capsys, tmp_path):
    assert main(["inspect", str(tmp_path / "nothing")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
