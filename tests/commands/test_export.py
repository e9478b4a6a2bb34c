import json

import pytest
import torch
import transformers
from safetensors.torch import load_file

from chinchilla_lm import api
from chinchilla_lm.cli import main
from chinchilla_lm.models.batch import Batch
from chinchilla_lm.models.checkpoint import load, save
from chinchilla_lm.models.transformer import NormFate
from chinchilla_lm.runtime.engine.unpacking import unpack_checkpoint
from chinchilla_lm.runtime.packing import write_packed
from chinchilla_lm.shorten.surgery import without
from tests.commands.test_full_disk import no_file_beyond
from tests.conftest import byte_level_tokenizer
from tests.models.tiny import saved

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


def test_a_packed_model_is_written_as_what_its_codes_mean(capsys, model_folder, tmp_path):
    write_packed(model_folder(), "int8", tmp_path / "packed")
    words = ["export", str(tmp_path / "packed"), "--to", "hf", "-o", str(tmp_path / "stock"), "--json"]
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out)["changes"] == {"codes dequantised": 13}
    ids, twin = Batch(torch.arange(20)[None]), unpack_checkpoint(tmp_path / "packed").model
    with torch.inference_mode():
        assert torch.equal(load(tmp_path / "stock").model(ids), twin(ids))
    assert main([*words, "--force", "--format", "bf16"]) == 0
    state = load_file(tmp_path / "stock" / "model.safetensors")
    assert {tensor.dtype for tensor in state.values()} == {torch.bfloat16}
    assert torch.equal(state["model.norm.weight"].float(), twin.state_dict()["norm.weight"].bfloat16().float())


def test_a_gguf_file(capsys, short_folder, tmp_path):
    out = tmp_path / "new" / "tiny.gguf"
    assert main(["export", str(short_folder), "--to", "gguf", "-o", str(out), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["files"] == {"tiny.gguf": out.stat().st_size}
    assert (found["absent_blocks"], found["zeroed_links"]) == ([0], ["2.attn"])
    assert found["changes"] == {}
    again, ids = load(out), Batch(torch.arange(20)[None])
    with torch.inference_mode():
        assert torch.allclose(again.model(ids), load(short_folder).model(ids), atol=1e-6)
    ours = load(short_folder).tokenizer
    assert again.tokenizer("the quick fox")["input_ids"] == ours("the quick fox")["input_ids"]
    assert again.tokenizer.chat_template == ours.chat_template
    assert [path.name for path in out.parent.iterdir()] == ["tiny.gguf"]


def test_a_packed_model_as_a_gguf_file_and_in_the_format_of_compressed_tensors(capsys, tmp_path):
    tokenizer = byte_level_tokenizer()
    folder = saved(tmp_path, "llama-gqa", vocab_size=len(tokenizer), hidden_size=64, intermediate_size=96)[1]
    tokenizer.save_pretrained(folder)
    write_packed(folder, "int4-sym", tmp_path / "packed")
    for to, out in (("gguf", "tiny.gguf"), ("compressed-tensors", "folder")):
        words = ["export", str(tmp_path / "packed"), "--to", to, "-o", str(tmp_path / out)]
        assert main(words) == 0
        shown = capsys.readouterr().out
        assert ("q4_0" if to == "gguf" else "codes") in shown
        assert "rounded" not in shown
    assert api.export(str(folder), out=str(tmp_path / "b.gguf"), to="gguf", format="q8_0", quiet=True)["weights"]
    again = api.export(str(folder), out=str(tmp_path / "c"), to="compressed-tensors", format="int8", quiet=True)
    assert again["changes"] == {"rounded, each weight to the nearest": 12}


@pytest.mark.parametrize("form", ["codebook-4x256-row", "sparse-50-codebook"])
def test_a_codebook_or_a_mask_in_the_format_of_compressed_tensors(tmp_path, form):
    tokenizer = byte_level_tokenizer()
    folder = saved(tmp_path, "llama-gqa", vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128)[1]
    tokenizer.save_pretrained(folder)
    write_packed(folder, f"{form},0.mlp=int8,head=bf16", tmp_path / "packed")
    found = api.export(str(tmp_path / "packed"), out=str(tmp_path / "o"), to="compressed-tensors", quiet=True)
    assert found["changes"] == {"codebook or mask written out as codes of 8 bits, the same numbers": 10}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--to", "onnx", "-o", "o"), "format 'onnx' is not one of hf, compressed-tensors, gguf; pass --to hf"),
        (("--to", "hf", "-o", "o", "--format", "q8_0"), "--format 'q8_0' is not one of f32, bf16 for hf"),
        (
            ("--to", "gguf", "-o", "o.gguf", "--format", "int4"),
            "is not one of f32, f16, bf16, q8_0, q4_0, q4_1 for gguf",
        ),
        (("--to", "gguf", "-o", "o"), "o does not end in .gguf; pass -o NAME.gguf"),
        (("--to", "compressed-tensors", "-o", "o"), "has no codes yet; pass --format int4-sym"),
        (("--to", "compressed-tensors", "-o", "o", "--format", "q4_0"), "format 'q4_0' is not one of f32"),
        (("--to", "compressed-tensors", "-o", "o", "--format", "bf16"), "--format bf16 rounds no matrix"),
        (
            ("--to", "compressed-tensors", "-o", "o", "--format", "int4-sym,head=int8"),
            "names the head, which compressed-tensors has in 16 bits; leave head= away",
        ),
        (("--to", "compressed-tensors", "-o", "o", "--format", "int4-sym,7.mlp=int8"), "'7.mlp' names no matrix"),
        (("--to", "compressed-tensors", "-o", "o", "--format", "int8"), "48 inputs, no whole groups of 32"),
    ],
)
def test_what_does_not_go_together_is_refused_and_nothing_is_written(
    capsys, model_folder, tmp_path, monkeypatch, words, said
):
    monkeypatch.chdir(tmp_path)
    assert main(["export", str(model_folder()), *words]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert said in lines[0]
    assert list(tmp_path.iterdir()) == []


def test_the_codes_of_a_packed_model_are_its_own(capsys, model_folder, tmp_path):
    write_packed(model_folder(), "int8", tmp_path / "packed")
    words = ["export", str(tmp_path / "packed"), "--to", "compressed-tensors", "-o", str(tmp_path / "o")]
    assert main([*words, "--format", "int8"]) == 2
    assert "is packed, and its codes are kept as they are; leave --format away" in capsys.readouterr().err


def test_force_replaces_a_gguf_file_and_no_other(capsys, model_folder, tmp_path):
    out = tmp_path / "tiny.gguf"
    words = ["export", str(model_folder()), "--to", "gguf", "-o", str(out)]
    assert main(words) == 0
    assert main(words) == 2
    assert "is there already; pass --force to replace it" in capsys.readouterr().err
    before = out.read_bytes()
    assert main([*words, "--force", "--format", "bf16"]) == 0
    assert out.stat().st_size < len(before)
    assert main(["export", str(out), "--to", "gguf", "-o", str(out), "--force"]) == 2
    assert "is MODEL itself" in capsys.readouterr().err
    out.write_text("years of work")
    assert main([*words, "--force"]) == 2
    assert "is no GGUF file: not ours to replace" in capsys.readouterr().err
    assert out.read_text() == "years of work"


def test_no_room_for_a_gguf_file(model_folder, tmp_path, capsys):
    with no_file_beyond(20_000):
        assert main(["export", str(model_folder()), "--to", "gguf", "-o", str(tmp_path / "tiny.gguf")]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert f"cannot write {tmp_path / 'tiny.gguf'}" in lines[0]
    assert list(tmp_path.iterdir()) == []
