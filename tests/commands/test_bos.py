"""A model whose tokenizer begins every text with a token of its own is judged, measured and trained with it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from chinchilla_lm.console import Console
from chinchilla_lm.pipeline.job import Job
from chinchilla_lm.recipe import Recipe
from chinchilla_lm.runtime.engine.native import engine_module
from chinchilla_lm.runtime.loading import load
from chinchilla_lm.runtime.packing import write_packed
from tests.conftest import byte_level_tokenizer
from tests.models.tiny import build

WINDOW = 32


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tokenizers import processors

    backend = byte_level_tokenizer().backend_tokenizer
    backend.post_processor = processors.TemplateProcessing(
        single="<|user|> $A", special_tokens=[("<|user|>", backend.token_to_id("<|user|>"))]
    )
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<|user|>", eos_token="<|endoftext|>", pad_token="<|endoftext|>"
    )
    tokenizer.chat_template = "{{ bos_token }}{{ messages[0].content }}<|assistant|>"
    path = tmp_path_factory.mktemp("bos") / "gemma"
    build("gemma3", vocab_size=len(tokenizer), bos_token_id=tokenizer.bos_token_id).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def packed(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("packed") / "model"
    write_packed(folder, "f32", path)
    return path


def perplexity(folder: Path, data: Path) -> float:
    """Of transformers' model, on windows of 31 tokens of text behind <bos>."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    text = "\n\n".join(json.loads(line)["text"] for line in (data / "test.jsonl").read_text("utf-8").splitlines())
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    take = WINDOW - 1
    windows = torch.tensor(
        [[tokenizer.bos_token_id, *ids[at : at + take]] for at in range(0, len(ids) - take + 1, take)]
    )
    with torch.no_grad():
        return math.exp(model(windows, labels=windows).loss.item())


@pytest.mark.skipif(engine_module() is None, reason="the engine is not built")
def test_perplexity_is_that_of_windows_with_bos(folder: Path, packed: Path, texts: Path, chinchilla: Any) -> None:
    wanted = perplexity(folder, texts)
    for model in (folder, packed):
        words = ["--task", "language-modeling", "--data", texts, "--max-tokens", WINDOW, "--json"]
        done = chinchilla("evaluate", model, *words, *(["--dtype", "float32"] if model == folder else []))
        assert done.status == 0
        assert done.result["metrics"]["perplexity"]["value"] == pytest.approx(wanted, rel=1e-3)


def job(model: Path, data: Path) -> Job:
    given: dict[str, Any] = {"task": "language-modeling", "device": "cpu", "backend": "torch", "threads": 1}
    recipe = Recipe(model=str(model), data=str(data), output="out", max_tokens=WINDOW, **given)
    return Job(recipe, Console(False, True))


def test_what_is_measured_and_trained_on_begins_with_bos(folder: Path, packed: Path, texts: Path) -> None:
    for model in (folder, packed):
        one = job(model, texts)
        bos = one.card.tokenizer.bos_token_id
        rows = [batch.batch.ids for batch in one.calibration[0]]
        rows += [torch.tensor([window.ids]) for window in one.encode(one.training_records)]
        assert all(ids_BT.shape[1] == WINDOW for ids_BT in rows)
        assert all((ids_BT[:, 0] == bos).all() for ids_BT in rows)


def test_a_model_that_needs_none_keeps_its_windows(model_folder: Any, texts: Path) -> None:
    one = job(model_folder(), texts)
    records = one.dataset.records("test")
    ids = byte_level_tokenizer()("\n\n".join(record.text for record in records))["input_ids"]
    windows = one.encode(records)
    assert [token for window in windows for token in window.ids] == ids[: len(windows) * WINDOW]


def test_prompts_begin_with_bos_once(folder: Path, packed: Path) -> None:
    stock = transformers.AutoTokenizer.from_pretrained(folder)
    turns = [{"role": "user", "content": "Once upon"}]
    for model in (folder, packed):
        session = load(model, "torch", dtype="float32")
        assert session.start("Once upon", 2).unread()[0] == stock("Once upon")["input_ids"]
        assert session.start("Once upon", 2).unread()[0][0] == stock.bos_token_id
        chat = stock.apply_chat_template(turns, add_generation_prompt=True)["input_ids"]
        assert session.start("Once upon", 2, chat=True).unread()[0] == chat
        assert chat.count(stock.bos_token_id) == 1
