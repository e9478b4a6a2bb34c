import json

import pytest
import torch
import transformers

from chinchilla_lm.cli import main
from chinchilla_lm.models.batch import Batch
from chinchilla_lm.models.checkpoint import load, save
from chinchilla_lm.models.transformer import NormFate
from chinchilla_lm.runtime.packing import write_packed
from chinchilla_lm.shorten.surgery import without

DROPPED: dict[str, NormFate] = {"0.attn": "lose", "0.mlp": "lose", "2.attn": "lose"}


@pytest.fixture
def short_folder(model_folder, tmp_path):
    checkpoint = load(model_folder())
    checkpoint.model = without(checkpoint.model, DROPPED, share=True)
    save(checkpoint, tmp_path / "short", {})
    return tmp_path / "short"


def test_transformers_computes_the_same_with_the_export(capsys, short_folder, tmp_path):
    out = tmp_path / "stock"
    assert main(["export", str(short_folder), "--to", "hf", "-o", str(out), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["absent_blocks"], found["zeroed_links"]) == ([0], ["2.attn"])
    assert found["files"]["model.safetensors"] == (out / "model.safetensors").stat().st_size
    assert found["load"].startswith("LlamaForCausalLM.from_pretrained(")
    ids = torch.arange(20)[None]
    model = transformers.AutoModelForCausalLM.from_pretrained(out).eval()
    assert model.config.num_hidden_layers == 2
    with torch.inference_mode():
        assert torch.allclose(model(ids).logits, load(short_folder).model(Batch(ids)), atol=1e-4)
    transformers.AutoTokenizer.from_pretrained(out)


def test_it_says_what_was_written_and_how_to_load_it(capsys, short_folder, tmp_path):
    assert main(["export", str(short_folder), "--to", "hf", "-o", str(tmp_path / "stock")]) == 0
    out = capsys.readouterr().out
    for words in ("model.safetensors", "blocks left out: 0", "2.attn", "from transformers import LlamaForCausalLM"):
        assert words in out


def test_a_folder_that_is_not_empty_needs_force(capsys, model_folder, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    arguments = ["export", str(model_folder()), "--to", "hf", "-o", str(tmp_path)]
    assert main(arguments) == 2
    assert "is not empty; pass --force" in capsys.readouterr().err
    assert (tmp_path / "config.json").read_text() == "{}"
    assert main([*arguments, "--force"]) == 0
    assert (tmp_path / "model.safetensors").exists()


def test_force_does_not_replace_what_is_no_model(capsys, model_folder, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    assert main(["export", str(model_folder()), "--to", "hf", "-o", str(tmp_path), "--force"]) == 2
    assert "not ours to replace" in capsys.readouterr().err
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_a_packed_model_is_refused(capsys, model_folder, tmp_path):
    write_packed(model_folder(), "int8", tmp_path / "packed")
    assert main(["export", str(tmp_path / "packed"), "--to", "hf", "-o", str(tmp_path / "stock")]) == 2
    assert "is packed, its weights rounded" in capsys.readouterr().err
    assert not (tmp_path / "stock").exists()


def test_an_unknown_format_is_refused_with_those_there_are(capsys, model_folder, tmp_path):
    assert main(["export", str(model_folder()), "--to", "onnx", "-o", str(tmp_path / "o")]) == 2
    assert "format 'onnx' is not one of hf; pass --to hf" in capsys.readouterr().err
