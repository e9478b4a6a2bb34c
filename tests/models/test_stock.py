"""Folders that both generations of transformers read. Version 5, which reads the older keys too, is the reference."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tokenizers import processors

from chinchilla_lm.export.hf import export_hf
from chinchilla_lm.models.checkpoint import load as load_checkpoint
from chinchilla_lm.models.checkpoint import save
from chinchilla_lm.runtime.loading import load
from chinchilla_lm.shorten.surgery import without
from tests.conftest import byte_level_tokenizer
from tests.models.tiny import CASES, DECODERS, build, saved

ROTATED = [name for name in DECODERS if not name.startswith("gpt2")]
END = "<|endoftext|>"


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def rope_of(folder: Path) -> dict[str, Any]:
    """What version 5 reads; `type` is the older word for `rope_type`, which it keeps beside it."""
    found = transformers.AutoConfig.from_pretrained(folder).rope_parameters
    return {key: value for key, value in found.items() if key != "type"}


@pytest.mark.parametrize("name", ROTATED)
def test_without_the_new_keys_it_is_the_same_model(name: str, tmp_path: Path):
    model, source = saved(tmp_path, name)
    export_hf(load_checkpoint(source), tmp_path / "exported")
    written = read(tmp_path / "exported" / "config.json")
    assert rope_of(tmp_path / "exported") == model.config.rope_parameters
    older = {key: value for key, value in written.items() if key not in ("rope_parameters", "dtype")}
    (tmp_path / "older").mkdir()
    (tmp_path / "older" / "config.json").write_text(json.dumps(older))
    assert rope_of(tmp_path / "older") == model.config.rope_parameters
    assert transformers.AutoConfig.from_pretrained(tmp_path / "older").dtype == torch.float32
    if written.get("rope_scaling", {}).get("type") == "longrope":
        assert sorted(written["rope_scaling"]) == ["long_factor", "short_factor", "type"]


def test_a_config_of_the_older_form_stays_one(tmp_path: Path):
    _, source = saved(tmp_path, "llama-gqa")
    config = read(source / "config.json") | {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}}
    del config["rope_parameters"]
    (source / "config.json").write_text(json.dumps(config))
    save(load_checkpoint(source), tmp_path / "again")
    written = read(tmp_path / "again" / "config.json")
    assert (written["rope_theta"], written["rope_scaling"]) == (5e5, {"type": "linear", "factor": 2.0})
    assert load_checkpoint(tmp_path / "again").model.config == load_checkpoint(source).model.config


@pytest.mark.parametrize("name", list(CASES))
def test_the_number_format_goes_by_both_names(name: str, tmp_path: Path):
    _, source = saved(tmp_path, name)
    save(load_checkpoint(source), tmp_path / "again")
    written = read(tmp_path / "again" / "config.json")
    assert written["dtype"] == written["torch_dtype"] == "float32"
    assert written["transformers_version"] == transformers.__version__


def test_tokenizer_classes_and_special_tokens_are_those_that_both_know(tmp_path: Path):
    tokenizer = byte_level_tokenizer()
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|user|>", "<|assistant|>"]})
    source = tmp_path / "m"
    build("llama-gqa", vocab_size=len(tokenizer)).save_pretrained(source)
    tokenizer.save_pretrained(source)
    assert read(source / "tokenizer_config.json")["tokenizer_class"] == "TokenizersBackend"
    export_hf(load_checkpoint(source), tmp_path / "exported")
    written = read(tmp_path / "exported" / "tokenizer_config.json")
    assert written["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert written["additional_special_tokens"] == ["<|user|>", "<|assistant|>"]
    assert not {"extra_special_tokens", "backend", "is_local", "local_files_only"} & set(written)
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "exported")
    text = "the quick <|user|> naïve 日本語"
    assert again(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert again.extra_special_tokens == ["<|user|>", "<|assistant|>"]
    assert again.eos_token == tokenizer.eos_token


def unpadded(ends: bool, pad: str | None) -> Any:
    """A decoder's tokenizer; ends: it puts the end of the text behind every text."""
    backend = byte_level_tokenizer().backend_tokenizer
    end = backend.token_to_id(END)
    if ends:
        backend.post_processor = processors.TemplateProcessing(single=f"$A {END}", special_tokens=[(END, end)])
    names = {"bos_token": "<|user|>", "eos_token": END, "unk_token": END}
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, **names, **({"pad_token": pad} if pad else {})
    )


@pytest.mark.parametrize("shortened", [False, True])
@pytest.mark.parametrize(("ends", "pad"), [(False, None), (True, None), (True, END), (False, "<|assistant|>")])
@pytest.mark.parametrize("name", ["gpt2", "llama-gqa", "qwen2"])
def test_a_decoders_classifier_answers_in_a_batch_as_alone(name, ends, pad, shortened, tmp_path: Path):
    tokenizer = unpadded(ends, pad)
    source = tmp_path / "m"
    build(name, "text-classification", vocab_size=len(tokenizer), pad_token_id=None).save_pretrained(source)
    tokenizer.save_pretrained(source)
    (source / "special_tokens_map.json").write_text(json.dumps({"eos_token": END}))
    checkpoint = load_checkpoint(source)
    if shortened:
        checkpoint = checkpoint.with_model(without(checkpoint.model, {"1.attn": "lose"}, share=False))
    save(checkpoint, tmp_path / "ours")
    export_hf(checkpoint, tmp_path / "exported")
    texts = ["very good", "the quick brown fox met Angela Merkel and it is bad", "good or bad ?"]
    found = load(tmp_path / "ours", backend="torch", dtype="float32").classify(texts)
    pipe = transformers.pipeline(
        "text-classification", model=str(tmp_path / "exported"), tokenizer=str(tmp_path / "exported"), top_k=None
    )
    for size in (1, 3):
        for ours, theirs in zip(found, pipe(texts, batch_size=size), strict=True):
            assert ours["scores"] == pytest.approx({one["label"]: one["score"] for one in theirs}, abs=1e-5)
    written = read(tmp_path / "exported" / "tokenizer_config.json")
    assert read(tmp_path / "exported" / "special_tokens_map.json")["pad_token"] == written["pad_token"]


def test_a_language_model_gets_no_padding_that_it_did_not_have(tmp_path: Path):
    tokenizer = unpadded(False, None)
    source = tmp_path / "m"
    build("gpt2", vocab_size=len(tokenizer), pad_token_id=None).save_pretrained(source)
    tokenizer.save_pretrained(source)
    export_hf(load_checkpoint(source), tmp_path / "exported")
    assert "pad_token" not in read(tmp_path / "exported" / "tokenizer_config.json")
    assert read(tmp_path / "exported" / "config.json").get("pad_token_id") is None
    ids = [[3, 4, 5, 6]]
    ours = load(tmp_path / "exported", backend="torch", dtype="float32").logits(ids[0])
    with torch.no_grad():
        wanted = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "exported")(torch.tensor(ids)).logits[0]
    np.testing.assert_allclose(ours, wanted.numpy(), atol=1e-4)
