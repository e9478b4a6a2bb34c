import json

import pytest

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
        (["--prompt", ""], "0 tokens"),
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
