import json

import pytest
import torch

from chinchilla_lm.cli import main
from chinchilla_lm.runtime.loading import load


def test_the_text_is_the_sessions_and_nothing_else_is_printed(capsys, model_folder):
    folder = str(model_folder())
    assert main(["generate", folder, "--prompt", "Once upon", "--max-new-tokens", "12", "--dtype", "float32"]) == 0
    wanted = load(folder, dtype="float32").generate("Once upon", 12)
    assert len(wanted) > 3
    assert capsys.readouterr().out == wanted + "\n"


def test_json_counts_the_tokens(capsys, model_folder):
    arguments = ["--prompt", "Once upon", "--max-new-tokens", "9", "--ignore-eos", "--json"]
    assert main(["generate", str(model_folder()), *arguments]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found) == {"text", "tokens", "prompt_tokens", "seconds"}
    session = load(model_folder())
    assert (found["tokens"], found["prompt_tokens"]) == (9, len(session.tokenizer("Once upon")["input_ids"]))
    assert found["text"] == session.generate("Once upon", 9, ignore_eos=True)
    assert 0.0 < found["seconds"] < 60.0


def test_several_prompts_are_written_together(capsys, model_folder):
    folder, prompts = str(model_folder()), ["Once upon", "good", "Once upon"]
    arguments = [word for prompt in prompts for word in ("--prompt", prompt)]
    arguments += ["--max-new-tokens", "9", "--ignore-eos", "--dtype", "float32"]
    assert main(["generate", folder, *arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found) == {"results", "seconds"}
    session = load(folder, dtype="float32")
    for prompt, result in zip(prompts, found["results"], strict=True):
        count = len(session.tokenizer(prompt)["input_ids"])
        text = session.generate(prompt, 9, ignore_eos=True)
        assert result == {"text": text, "tokens": 9, "prompt_tokens": count}
    texts = [result["text"] for result in found["results"]]
    for quiet in ([], ["--quiet"]):
        assert main(["generate", folder, *arguments, *quiet]) == 0
        expected = "".join(f"--- {p}\n{text}\n" for p, text in zip(prompts, texts, strict=True))
        assert capsys.readouterr().out == expected


def test_a_very_low_temperature_is_greedy_without_a_word(capsys, model_folder):
    arguments = ["--prompt", "good", "--max-new-tokens", "5"]
    assert main(["generate", str(model_folder()), *arguments]) == 0
    wanted = capsys.readouterr().out
    assert main(["generate", str(model_folder()), *arguments, "--temperature", "1e-320", "--top-p", "0.9"]) == 0
    assert tuple(capsys.readouterr()) == (wanted, "")


def test_without_the_engine_one_line_says_so(capsys, model_folder, monkeypatch):
    monkeypatch.setattr("chinchilla_lm.runtime.loading.engine_module", lambda: None)
    monkeypatch.setattr("chinchilla_lm.runtime.device.resolve_device", lambda name: torch.device("cpu"))
    assert main(["generate", str(model_folder()), "--prompt", "good", "--max-new-tokens", "2", "--json"]) == 0
    error = capsys.readouterr().err
    assert error.startswith("warning: this installation has no native engine, so the model runs on torch")
    assert error.count("\n") == 1


def test_sampling_is_fixed_by_the_seed(capsys, model_folder):
    texts = []
    for seed in ("3", "3", "4"):
        options = ["--temperature", "1.2", "--top-k", "50", "--top-p", "0.9", "--seed", seed, "--max-new-tokens", "20"]
        assert main(["generate", str(model_folder()), "--prompt", "fox", *options]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] != texts[2]


def test_chat_uses_the_template_and_plain_does_not(capsys, model_folder):
    counts = []
    for more in ([], ["--chat"]):
        arguments = ["--prompt", "good", "--max-new-tokens", "2", "--json", *more]
        assert main(["generate", str(model_folder()), *arguments]) == 0
        counts.append(json.loads(capsys.readouterr().out)["prompt_tokens"])
    assert counts[1] == counts[0] + 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--backend", "tpu"], "backend 'tpu' is not one of auto, native, torch"),
        (["--max-new-tokens", "70"], "tokens are more than the model's 64 positions"),
        (["--top-k", "5"], "top-k 5 has no effect"),
        (["--temperature", "-1"], "temperature -1.0"),
        (["--max-new-tokens", "9", "--prompt", ""], "0 tokens"),
        (["--seed", "3"], "seed 3 has no effect on greedy choice"),
        (["--max-new-tokens", "9", "--prompt", "\udcff"], "half of a surrogate pair"),
    ],
)
def test_what_cannot_be_done_is_one_line(capsys, model_folder, arguments, message):
    assert main(["generate", str(model_folder()), "--prompt", "good", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_tagger_writes_no_text(capsys, model_folder):
    assert main(["generate", str(model_folder("bert", "token-classification")), "--prompt", "good"]) == 2
    assert "generate needs a model for language-modeling" in capsys.readouterr().err
