"""Whatever is wrong with what was given: one line on standard error that says it, status 2, no half-made product."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.commands.conftest import SHORTENING, TAGGING, Done, leftovers, write_conll

WEIGHTS = "model.safetensors"


@pytest.fixture
def compress(tagger: Path, tags: Path, tmp_path: Path, chinchilla) -> Callable[..., Done]:
    """compress() with the given model, data and flags in place of the good ones."""

    def call(*flags: object, model: Path | str = tagger, data: Path | str = tags, out: Path = tmp_path / "run") -> Done:
        done = chinchilla("compress", model, *TAGGING, "--data", data, *SHORTENING, "-o", out, "--quiet", *flags)
        assert leftovers(tmp_path) == []
        assert not (out / "model").exists()
        return done

    return call


@pytest.fixture
def broken(tagger: Path, tmp_path: Path) -> Path:
    """A copy of the tagger, to break."""
    return shutil.copytree(tagger / "model", tmp_path / "broken")


def test_a_model_that_is_not_there(compress, tmp_path: Path):
    compress(model=tmp_path / "nowhere").refused("nowhere does not exist; check the path")


def test_a_folder_that_is_no_model(compress, tmp_path: Path):
    (tmp_path / "empty").mkdir()
    compress(model=tmp_path / "empty").refused("empty holds no config.json")


def test_data_that_is_not_there(compress, tmp_path: Path):
    compress(data=tmp_path / "nowhere").refused("nowhere is not there; pass a folder or file that exists")
    (tmp_path / "empty").mkdir()
    compress(data=tmp_path / "empty").refused("empty holds no file that looks like data for token-classification")


@pytest.mark.parametrize("content", ["", "\n\n", "-DOCSTART- O\n\n"])
def test_a_split_that_is_empty(compress, tmp_path: Path, content: str):
    data = write_conll(tmp_path / "data", {"train": 5, "dev": 5, "test": 5})
    (data / "test.txt").write_text(content)
    compress(data=data).refused("test.txt")


@pytest.mark.parametrize("split", ["dev", "test"])
def test_a_split_that_is_missing_is_told_before_any_work(compress, tmp_path: Path, split: str):
    data = write_conll(tmp_path / "data", {name: 5 for name in ("dev", "test") if name != split})
    calibration = write_conll(tmp_path / "more", {"train": 5, "dev": 5, "test": 5}, seed=3)
    compress("--calibration", calibration, data=data).refused(f"split '{split}' is not in 'data'")
    assert not (tmp_path / "run" / "costs.json").exists()


def test_a_label_that_the_model_does_not_know(compress, chinchilla, tagger: Path, tmp_path: Path):
    data = write_conll(tmp_path / "data", {"train": 5, "dev": 5, "test": 5})
    (data / "test.txt").write_text("Once O\nSiemens B-PLANET\n")
    line = "label 'B-PLANET' of the data is not one of the model's (O, B-LOC"
    compress(data=data).refused(line, "fine-tune the model on this data first")
    chinchilla("evaluate", tagger, *TAGGING, "--data", data, "--quiet").refused(line)


def test_a_model_without_a_head_for_the_task(compress, chinchilla, model_folder, tags: Path):
    compress(model=model_folder("bert")).refused("has no head for token-classification")
    chinchilla("evaluate", model_folder("bert"), *TAGGING, "--data", tags).refused("token-classification")


@pytest.mark.parametrize("kept", [0, 7, 900, -10])
def test_weights_that_are_cut_off(compress, broken: Path, kept: int):
    (broken / WEIGHTS).write_bytes((broken / WEIGHTS).read_bytes()[:kept])
    compress(model=broken).refused(f"{broken / WEIGHTS} is not a whole safetensors file")


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_no_numbers(compress, broken: Path, value: float):
    tensors = load_file(broken / WEIGHTS)
    name = next(name for name in tensors if name.endswith("output.dense.weight"))
    tensors[name][3, 5] = value
    save_file(tensors, broken / WEIGHTS, {"format": "pt"})
    compress(model=broken).refused(f"tensor {name} of {broken / WEIGHTS} holds 1 values that are NaN or infinite")


def test_weights_whose_outputs_overflow(compress, chinchilla, broken: Path, tags: Path):
    tensors = load_file(broken / WEIGHTS)
    for name in tensors:
        if name.endswith("output.dense.weight"):
            tensors[name] = torch.full_like(tensors[name], 3e38)
    save_file(tensors, broken / WEIGHTS, {"format": "pt"})
    chinchilla("evaluate", broken, *TAGGING, "--data", tags, "--quiet").refused("not finite numbers; check its weights")
    compress(model=broken).refused("outputs are not numbers; check its weights")


def test_a_folder_without_a_tokenizer(compress, broken: Path):
    for path in broken.glob("tokenizer*"):
        path.unlink()
    compress(model=broken).refused(f"{broken} holds no tokenizer.json; copy the tokenizer files of the model into it")


def test_a_damaged_tokenizer(compress, broken: Path):
    (broken / "tokenizer.json").write_text('{"version": "1.0", "model": {"type": "Wo')
    compress(model=broken).refused(f"the tokenizer in {broken} cannot be loaded", "copy the model's files again")


def test_a_damaged_config(compress, broken: Path):
    (broken / "config.json").write_text('{"model_type": "bert", ')
    compress(model=broken).refused("config.json is not valid JSON")


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--margin", "0"], "margin 0 is not greater than 0.0; pass --margin 1.0"),
        (["--margin", "70"], "margin 70 is greater than 50.0; pass --margin 1.0"),
        (["--margin", "nan"], "margin nan is not a finite number; pass --margin 1.0"),
        (["--speedup", "0.5"], "speedup 0.5 is not greater than 1.0; pass --speedup 1.5"),
        (["--speedup", "1"], "speedup 1 is not greater than 1.0; pass --speedup 1.5"),
        (["--speedup", "100"], "speedup 100 is greater than 20.0; pass --speedup 1.5"),
        (["--latency", "5"], "speedup 1.2 and latency_ms 5 are two targets where one is needed"),
        (["--latency", "0"], "latency_ms 0 is not greater than 0.0; pass --latency 20"),
        (
            ["--method", "magic"],
            "method magic is not one of race, refine, greedy, dp, top, one-shot, cosine; pass --method race",
        ),
        (["--metric", "magic"], "metric 'magic' is not one of entity_f1"),
        (["--recover-weights-kl", "0", "--recover-weights-hidden", "0"], "all weights of the recovery loss are 0"),
        (["--task", "poetry"], "task poetry is not one of language-modeling, token-classification"),
        (["--recover-epochs", "-1"], "recover.epochs -1 is less than 0"),
        (["--max-tokens", "2"], "max_tokens 2 is less than 4"),
        (["--calibration-tokens", "many"], "calibration_tokens many is not a whole number"),
        (["--device", "tpu"], "device tpu is not one of cpu, cuda, auto"),
    ],
)
def test_a_value_that_makes_no_sense(compress, flags: list[str], line: str):
    compress(*flags).refused(line)


def test_no_target_at_all(tagger: Path, tags: Path, tmp_path: Path, chinchilla):
    done = chinchilla("search", tagger, *TAGGING, "--data", tags, "-o", tmp_path / "run")
    done.refused("no target is given; pass --speedup 1.5 or --latency 20")
    assert not (tmp_path / "run").exists()


def test_a_folder_to_write_to_that_is_none(compress, tmp_path: Path):
    (tmp_path / "file").write_text("mine")
    compress(out=tmp_path / "file").refused("file is a file, not a folder; pass another -o")
    compress(out=tmp_path / "file" / "below").refused("file")
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").write_text("mine")
    compress(out=tmp_path / "home").refused("holds files but no recipe.yaml, so it is no run folder; pass another -o")
    assert [path.name for path in (tmp_path / "home").iterdir()] == ["letter.txt"]
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"link": "7.attn"}, "link '7.attn' is not in this model; use 0.attn to 2.mlp"),
        ({"link": "1.atn"}, "1.atn"),
        ({"action": "bend"}, "action of 0.mlp 'bend' is not one of keep, drop"),
        ({"norm": "half"}, "norm of 0.mlp 'half' is not one of keep, lose"),
        ({"extra": 1}, "key 'extra' of choices[1] is unknown"),
        ({"link": "0.attn"}, "link '0.attn' is given twice; leave one"),
    ],
)
@pytest.mark.parametrize("verb", ["shorten", "recover"])
def test_a_plan_with_a_mistake(run_folder: Path, chinchilla, change: dict, line: str, verb: str):
    path = run_folder / "plan.json"
    data = json.loads(path.read_text())
    data["choices"][1] = {"link": "0.mlp", "action": "keep"} | change
    path.write_text(json.dumps(data))
    chinchilla(verb, "-o", run_folder, "--quiet").refused(f"plan {path}: ", line)


@pytest.mark.parametrize("name", ["costs.json", "plan.json", "stages.json"])
@pytest.mark.parametrize("content", ["", "{", "[]", '{"version": 1}', "\x00"])
def test_a_damaged_file_of_the_run(run_folder: Path, chinchilla, name: str, content: str):
    if (name, content) == ("stages.json", '{"version": 1}'):
        content = '{"score": 1}'
    (run_folder / name).write_text(content)
    verb = {"costs.json": "search", "plan.json": "shorten", "stages.json": "score"}[name]
    chinchilla(verb, "-o", run_folder, "--quiet").refused(str(run_folder / name))


STOPPED: list[object] = [[1], {"inputs": "x"}, {"inputs": "x", "seconds": "long"}, {"inputs": "x", "seconds": -1}]


@pytest.mark.parametrize("stage", [{"seconds": "long"}, {"outputs": [1]}, *({"stopped": one} for one in STOPPED)])
def test_an_odd_entry_of_the_stages(run_folder: Path, chinchilla, stage: dict):
    (run_folder / "stages.json").write_text(json.dumps({"score": stage}))
    refused = chinchilla("score", "-o", run_folder, "--quiet")
    refused.refused(str(run_folder / "stages.json"), "delete it to run all stages again")


def test_a_damaged_recipe_of_the_run(run_folder: Path, chinchilla):
    (run_folder / "recipe.yaml").write_text("model: [")
    chinchilla("score", "-o", run_folder, "--quiet").refused("recipe.yaml is not valid YAML")


def test_a_half_trained_state_that_is_damaged(run_folder: Path, chinchilla):
    (run_folder / "recover.state").write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00nonsense")
    done = chinchilla("recover", "-o", run_folder, "--recover-epochs", 1, "--quiet")
    done.refused("recover.state is damaged", "delete it to start this stage again")
    (run_folder / "recover.state").unlink()
    assert chinchilla("recover", "-o", run_folder, "--recover-epochs", 1, "--quiet").status == 0


def test_a_plan_that_keeps_a_norm_of_a_block_that_is_dropped(run_folder: Path, chinchilla):
    data = json.loads((run_folder / "plan.json").read_text())
    for row in data["choices"][:2]:
        row |= {"action": "drop", "norm": "keep"}
    (run_folder / "plan.json").write_text(json.dumps(data))
    chinchilla("shorten", "-o", run_folder, "--quiet").refused(
        "whose block is dropped whole; set 'lose' for both links"
    )


def test_a_text_longer_than_the_positions(model_folder, tagger: Path, chinchilla):
    done = chinchilla("generate", model_folder(), "--prompt", "the quick brown fox " * 40)
    done.refused("are more than the model's 64 positions")
    assert done.out == ""
    chinchilla("generate", tagger, "--prompt", "fox").refused("language-modeling")


def test_a_command_that_is_refused_leaves_the_recipe_of_the_run_as_it_was(run_folder: Path, chinchilla, tmp_path: Path):
    before = (run_folder / "recipe.yaml").read_text()
    chinchilla("search", "-o", run_folder, "--data", tmp_path / "gone", "--speedup", 3).refused("gone is not there")
    assert (run_folder / "recipe.yaml").read_text() == before


def test_few_documents_are_told_before_any_work(compress, broken: Path, tmp_path: Path):
    few = write_conll(tmp_path / "few", {"train": 8, "dev": 4, "test": 4})
    assert (
        "4 documents, or blocks of running text, to test on decide nothing" in compress("--speedup", 19, data=few).err
    )


def test_splits_by_name(compress, tagger: Path, tags: Path, chinchilla):
    compress("--test", "none.txt").refused("none.txt is not a file; --test takes a name inside")
    named = ("--train", "train.txt", "--dev", "dev.txt", "--test", "dev.txt")
    done = chinchilla("evaluate", tagger, *TAGGING, "--data", tags, *named)
    assert "texts stand in both dev and test" in done.out
