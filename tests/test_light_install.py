"""`pip install chinchilla-lm` without extras: packed models answer as they do with everything installed, and whatever
needs more says so in one line. tests/light_install.sh does the same in a virtual environment of its own."""

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chinchilla_lm.cli import VERBS, main
from chinchilla_lm.errors import InputError
from chinchilla_lm.installed import FULL, needing
from chinchilla_lm.runtime.engine.native import engine_module
from chinchilla_lm.runtime.packing import write_packed
from tests.light import answers, base, value_of

pytestmark = pytest.mark.skipif(engine_module() is None, reason="the engine is not built")
REMEDY = "which is not installed; pip install 'chinchilla-lm[full]'\n"
TEXTS = ["Angela Merkel met Siemens in Munich", "is it good ?"]
CALLS = {
    ("llama-gqa", "language-modeling"): "{session}.generate('Once upon a time', 12)",
    ("bert", "token-classification"): f"[[repr(one) for one in text] for text in {{session}}.entities({TEXTS})]",
    ("bert", "text-classification"): f"{{session}}.classify({TEXTS})",
    ("bert", "ranking"): "{session}.score([('is it good ?', 'very good'), ('is it good ?', 'Munich')])",
    ("bert", "embedding"): f"{{session}}.embed({TEXTS}).tolist()",
}
# Every verb that packed models alone are not enough for, with words that its flags take.
NEEDING: dict[str, list[str]] = {
    "demo": [],
    "finetune": ["m", "--task", "token-classification", "--data", "d", "-o", "o"],
    "compress": ["m", "--task", "token-classification", "--data", "d", "-o", "o", "--speedup", "2"],
    "score": ["m", "--task", "token-classification", "--data", "d", "-o", "o"],
    "search": ["m", "--task", "token-classification", "--data", "d", "-o", "o", "--speedup", "2"],
    "shorten": ["m", "--task", "token-classification", "--data", "d", "-o", "o"],
    "recover": ["m", "--task", "token-classification", "--data", "d", "-o", "o"],
    "launch": ["--nproc", "2", "finetune", "m", "--task", "token-classification", "--data", "d", "-o", "o"],
    "evaluate": ["m", "--task", "token-classification", "--data", "d"],
    "bench": ["m"],
    "pack": ["m", "--format", "int8", "-o", "o"],
    "export": ["m", "--to", "hf", "-o", "o"],
}


@pytest.fixture(scope="module")
def packed(model_folder: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    """A packed model for every call."""
    folders = {}
    for name, kind in CALLS:
        folders[name, kind] = tmp_path_factory.mktemp("light") / "packed"
        write_packed(model_folder(name, kind), "int8", folders[name, kind], kind)
    return folders


def test_the_base_brings_neither_torch_nor_what_needs_it():
    names = base()
    assert {"numpy", "tokenizers", "jinja2"} <= names
    assert not {name.replace("_", "-") for name in FULL} & names


def test_packed_models_answer_as_with_everything_installed(packed: dict[tuple[str, str], Path]):
    calls = [call.format(session=f"ch.load({str(packed[key])!r}, threads=1)") for key, call in CALLS.items()]
    *found, loaded = answers([*calls, "sorted(set(sys.modules) & set(" + repr(FULL) + "))"])
    assert [one.get("value", one) for one in found] == [json.loads(json.dumps(value_of(call))) for call in calls]
    assert loaded["value"] == []


def test_verbs_that_run_packed_models(packed: dict[tuple[str, str], Path], capsys: pytest.CaptureFixture[str]):
    model, tagger = packed["llama-gqa", "language-modeling"], packed["bert", "token-classification"]
    few = ["--max-new-tokens", "8", "--threads", "1"]
    same = [
        ["generate", model, "--prompt", "Once upon", "--prompt", "is it", *few],
        ["generate", model, "--prompt", "Once upon", "--temperature", "1", "--seed", "3", *few],
        ["inspect", model, "--no-time", "--json"],
        ["inspect", tagger, "--no-time"],
    ]
    steps = [[str(word) for word in words] for words in same]
    found = answers([*steps, ["inspect", str(model), "--tokens", "8", "--threads", "1", "--json"]])
    for words, one in zip(steps, found[:-1], strict=True):
        capsys.readouterr()
        assert main(words) == one["status"] == 0, one["err"]
        assert one["out"] == capsys.readouterr().out
    assert set(json.loads(found[-1]["out"])["time"]["link_us"]) == {
        f"{b}.{k}" for b in range(3) for k in ("attn", "mlp")
    }


def test_help_is_the_same(capsys: pytest.CaptureFixture[str]):
    words = [["--help"], *([verb, "--help"] for verb in VERBS)]
    for one, found in zip(words, answers(words, COLUMNS="80"), strict=True):
        assert found["status"] == 0, found["err"]
        assert "usage: chinchilla" in found["out"], one


def test_doctor_says_what_is_there():
    plain, as_json = answers([["doctor", "--seconds", "0.1"], ["doctor", "--seconds", "0.1", "--json"]])
    assert "PASS  parts: those that run packed models, without torch, transformers" in plain["out"]
    assert "pip install 'chinchilla-lm[full]'" in plain["out"]
    assert "read bandwidth" not in plain["out"]
    assert "SmolLM2" not in plain["out"]  # which nothing here could run
    result = json.loads(as_json["out"])
    assert result["machine"]["missing"] == list(FULL)
    assert (result["bandwidth_gb_s"], result["gemm_gflops"]) == (None, {})


def test_every_other_verb_is_one_line():
    assert set(NEEDING) == set(VERBS) - {"doctor", "inspect", "generate"}
    found = answers([[verb, *words] for verb, words in NEEDING.items()])
    for verb, one in zip(NEEDING, found, strict=True):
        assert one["status"] == 2
        assert one["out"] == ""
        assert one["err"].startswith(f"chinchilla {verb}: this needs ")
        assert one["err"].endswith(REMEDY)
        assert one["err"].count("\n") == 1


def test_other_models_are_one_line(
    model_folder: Callable[..., Path], packed: dict[tuple[str, str], Path], tmp_path: Path
):
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    model = packed["llama-gqa", "language-modeling"]
    cases: list[tuple[list[Any], str]] = [
        (["generate", model_folder(), "--prompt", "x"], "a model that is not packed, such as "),
        (["generate", tmp_path / "model.gguf", "--prompt", "x"], "a model that is not packed, such as "),
        (["generate", tmp_path / "none", "--prompt", "x"], f"there is no {tmp_path / 'none'} here"),
        (["generate", model, "--prompt", "x", "--backend", "torch"], "a packed model outside of the native engine"),
        (["generate", model, "--prompt", "x", "--device", "cuda"], "a packed model outside of the native engine"),
        (["inspect", model_folder()], "this needs torch"),
    ]
    steps = [[str(word) for word in words] for words, _ in cases]
    for (_, said), one in zip(cases, answers(steps, CHINCHILLA_KEEP="1", XDG_CACHE_HOME=str(tmp_path)), strict=True):
        assert one["status"] == 2, one["err"]
        assert said in one["err"]
        assert one["err"].endswith(REMEDY)
        assert one["err"].count("\n") == 1


def test_errors_of_other_modules_are_left_alone():
    with pytest.raises(ModuleNotFoundError, match="nothing_of_ours"), needing("this"):
        importlib.import_module("nothing_of_ours")
    with pytest.raises(ModuleNotFoundError), needing("this"):
        raise ModuleNotFoundError("No module named 'torch.nothing'", name="torch.nothing")  # torch itself is there
    with pytest.raises(InputError, match="bad"), needing("this"):
        raise InputError("bad")
