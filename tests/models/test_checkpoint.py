"""Loading and saving: what comes back is the same function, for us and for transformers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from chinchilla_lm.errors import InputError
from chinchilla_lm.models.batch import Batch
from chinchilla_lm.models.cache import KVCache
from chinchilla_lm.models.checkpoint import Checkpoint, load, save
from chinchilla_lm.models.transformer import Transformer
from tests.models.tiny import CASES, DECODERS, LABELS, assert_same, auto_class, batch, has_class, saved, theirs


def shortened(checkpoint: Checkpoint, dropped: dict[str, Any]) -> Checkpoint:
    """The same weights without some links."""
    model = Transformer(checkpoint.model.config, dropped)
    known = model.state_dict()
    model.load_state_dict({name: value for name, value in checkpoint.model.state_dict().items() if name in known})
    return checkpoint.with_model(model.eval())


def add_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["[PAD]", "[UNK]", *(f"w{index}" for index in range(95))]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]")
    fast.chat_template = "{{ messages[0]['content'] }}"
    fast.save_pretrained(folder)


@pytest.mark.parametrize("kind", ["language-modeling", "token-classification", "text-classification"])
@pytest.mark.parametrize("name", CASES)
def test_saved_models_load_everywhere(name: str, kind: str, tmp_path: Path) -> None:
    if not has_class(name, kind):
        pytest.skip("transformers has no such class")
    reference, folder = saved(tmp_path, name, kind)
    checkpoint = load(folder)
    save(checkpoint, tmp_path / "again")
    assert not (tmp_path / "again" / "chinchilla.json").exists()
    stock, loading = auto_class(name, kind).from_pretrained(tmp_path / "again", output_loading_info=True)
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    assert type(stock) is type(reference)
    ours, data = load(tmp_path / "again"), batch(False)
    assert_same(theirs(stock.eval(), data), theirs(reference, data), data, 1e-6)
    with torch.no_grad():
        assert torch.equal(ours.model(data), checkpoint.model(data))
    assert ours.model.config == checkpoint.model.config
    if kind == "token-classification":
        assert stock.config.id2label == dict(enumerate(LABELS))


@pytest.mark.parametrize("name", ["llama-gqa", "gemma3", "gpt2", "bert", "distilbert"])
def test_shortened_models_keep_their_gaps(name: str, tmp_path: Path) -> None:
    checkpoint = load(saved(tmp_path, name)[1])
    fate = "keep" if checkpoint.model.config.post_norm else "lose"
    short = shortened(checkpoint, {"0.mlp": fate, "1.attn": "lose", "1.mlp": "lose"})
    save(short, tmp_path / "short", {"plan": "by hand"})
    config = json.loads((tmp_path / "short" / "config.json").read_text())
    assert config["model_type"] == "chinchilla"
    assert "architectures" not in config
    names = load_file(tmp_path / "short" / "model.safetensors")
    assert not any(".1." in key for key in names)
    assert any(".2." in key for key in names)
    again = load(tmp_path / "short")
    assert again.model.dropped == short.model.dropped
    assert again.meta == {"version": 1, "dropped": short.model.dropped, "plan": "by hand"}
    data = batch(True)
    with torch.no_grad():
        assert torch.equal(again.model(data)[data.mask], short.model(data)[data.mask])
        assert not torch.allclose(again.model(data)[data.mask], checkpoint.model(data)[data.mask], atol=1e-2)
    with pytest.raises((ValueError, KeyError)):
        auto_class(name, "language-modeling").from_pretrained(tmp_path / "short")


def test_gemma_tags_too_in_our_own_layout(tmp_path: Path) -> None:
    checkpoint = load(saved(tmp_path, "gemma3")[1], task="token-classification", labels=LABELS, bidirectional=True)
    assert checkpoint.fresh == ("head.output.weight", "head.output.bias")
    save(checkpoint, tmp_path / "tagger")
    assert json.loads((tmp_path / "tagger" / "config.json").read_text())["model_type"] == "chinchilla"
    again, data = load(tmp_path / "tagger"), batch(True)
    assert again.fresh == ()
    assert not again.model.config.causal
    with torch.no_grad():
        assert torch.equal(again.model(data)[data.mask], checkpoint.model(data)[data.mask])


def test_a_discriminator_is_a_body_for_other_heads(tmp_path: Path) -> None:
    """ELECTRA's discriminator is what people fine-tune; what it was trained for is none of our tasks."""
    reference, folder = saved(tmp_path, "electra", "embedding")
    discriminator = transformers.ElectraForPreTraining(reference.config).eval()
    discriminator.electra.load_state_dict(reference.state_dict())
    discriminator.save_pretrained(folder)
    with pytest.raises(InputError, match="ElectraForPreTraining"):
        load(folder)
    tagger = load(folder, task="token-classification", labels=LABELS)
    assert tagger.fresh == ("head.output.weight", "head.output.bias")
    data = batch(False)
    embedder = load(folder, task="embedding")
    expected = torch.nn.functional.normalize(theirs(reference, data).mean(1), dim=-1)
    with torch.no_grad():
        assert_same(embedder.model(data), expected, data)


def test_tokenizer_travels_with_a_shortened_model(tmp_path: Path) -> None:
    _, folder = saved(tmp_path, "llama-gqa")
    add_tokenizer(folder)
    save(shortened(load(folder), {"0.attn": "lose"}), tmp_path / "short")
    again = load(tmp_path / "short")
    assert again.tokenizer("w3 w5 zzz")["input_ids"] == [5, 7, 1]
    stock = transformers.AutoTokenizer.from_pretrained(tmp_path / "short")
    assert stock("w3 w5")["input_ids"] == [5, 7]
    assert stock.chat_template == "{{ messages[0]['content'] }}"


def test_a_new_head_is_seeded_and_named(tmp_path: Path) -> None:
    _, folder = saved(tmp_path, "llama-biased-llama3-tied")
    first, second = (load(folder, task="token-classification", labels=["A", "B"]) for _ in range(2))
    assert first.fresh == ("head.output.weight", "head.output.bias")
    assert torch.equal(first.model.head.output.weight, second.model.head.output.weight)  # type: ignore[union-attr]
    assert first.model.config.head.labels == ("A", "B")
    with pytest.raises(InputError, match="labels"):
        load(folder, task="text-classification")
    ranker = load(folder, task="ranking")
    with torch.no_grad():
        assert ranker.model(batch(True)).shape == (3, 1)


def test_bert_keeps_its_trained_pooler_under_a_new_classifier(tmp_path: Path) -> None:
    reference, folder = saved(tmp_path, "bert", "embedding")
    checkpoint = load(folder, task="text-classification", labels=["no", "yes"])
    assert checkpoint.fresh == ("head.output.weight", "head.output.bias")
    assert torch.equal(checkpoint.model.head.dense.weight, reference.pooler.dense.weight)  # type: ignore[union-attr]


def test_a_trained_head_keeps_its_labels(tmp_path: Path) -> None:
    _, folder = saved(tmp_path, "bert", "token-classification")
    for labels in (None, LABELS[::-1], LABELS[:2]):
        checkpoint = load(folder, task="token-classification", labels=labels)
        assert checkpoint.fresh == ()
        assert checkpoint.model.config.head.labels == LABELS
    other = load(folder, task="token-classification", labels=["O", "B-Y"])
    assert other.fresh
    assert other.model.config.head.labels == ("O", "B-Y")
    with pytest.raises(InputError, match="speech"):
        load(folder, task="speech")
    with pytest.raises(InputError, match="doubles"):
        load(folder, task="token-classification", labels=["A", "A"])


def test_a_decoder_that_is_not_tied_although_the_config_says_so(tmp_path: Path) -> None:
    """Transformers then keeps both matrices, and so do we."""
    _, folder = saved(tmp_path, "llama-gqa")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    stock, data = transformers.AutoModelForCausalLM.from_pretrained(folder).eval(), batch(False)
    model = load(folder).model
    assert not model.config.head.tied
    with torch.no_grad():
        assert_same(model(data), theirs(stock, data), data)


def test_tied_weights_stay_one_tensor(tmp_path: Path) -> None:
    _, folder = saved(tmp_path, "qwen2")
    model = load(folder).model
    assert model.head.output.weight is model.embedding.tokens.weight  # type: ignore[union-attr]
    stored = load_file(folder / "model.safetensors")
    stored["lm_head.weight"] = stored.pop("model.embed_tokens.weight")  # as some tools save the shared tensor
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    assert torch.equal(load(folder).model.embedding.tokens.weight, model.embedding.tokens.weight)


def test_older_names_are_read(tmp_path: Path) -> None:
    """`gamma` and `beta` of TensorFlow's BERT; GPT-2 without the base prefix; buffers that are no weights."""
    for name, change in (
        (
            "bert",
            lambda key: key.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"),
        ),
        ("gpt2", lambda key: key.removeprefix("transformer.")),
    ):
        _, folder = saved(tmp_path, name)
        expected = load(folder).model(batch(False))
        stored = {change(key): value for key, value in load_file(folder / "model.safetensors").items()}
        extra = "h.0.attn.bias" if name == "gpt2" else "bert.embeddings.position_ids"
        save_file(stored | {extra: torch.ones(1, 4)}, folder / "model.safetensors")
        assert torch.equal(load(folder).model(batch(False)), expected)


def test_shards_dtypes_and_identity(tmp_path: Path) -> None:
    whole, folder = saved(tmp_path, "qwen3")
    whole.to(torch.bfloat16).save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    reference = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "shards", dtype=torch.float32).eval()
    assert (tmp_path / "shards" / "model.safetensors.index.json").exists()
    checkpoint, half = load(tmp_path / "shards"), load(tmp_path / "shards", dtype=torch.bfloat16)
    assert checkpoint.model.norm.weight.dtype == torch.float32  # type: ignore[union-attr]
    assert half.model.norm.weight.dtype == torch.bfloat16  # type: ignore[union-attr]
    with torch.no_grad():
        assert_same(checkpoint.model(batch(False)), theirs(reference, batch(False)), batch(False))
    assert checkpoint.sha256 == half.sha256 != load(folder).sha256
    save(half, tmp_path / "half")
    assert json.loads((tmp_path / "half" / "config.json").read_text())["dtype"] == "bfloat16"
    assert load_file(tmp_path / "half" / "model.safetensors")["model.norm.weight"].dtype == torch.bfloat16
    built = Checkpoint(checkpoint.model, checkpoint.hf_config)
    before = built.sha256
    with torch.no_grad():
        checkpoint.model.embedding.tokens.weight[0] += 1
    assert Checkpoint(checkpoint.model, checkpoint.hf_config).sha256 != before
    with pytest.raises(InputError, match="tokenizer"):
        _ = built.tokenizer


def test_run_folders_and_saving_over_the_source(tmp_path: Path) -> None:
    _, folder = saved(tmp_path, "llama-gqa")
    (tmp_path / "run").mkdir()
    shutil.move(folder, tmp_path / "run" / "model")
    checkpoint = load(tmp_path / "run")
    assert checkpoint.source == tmp_path / "run" / "model"
    save(checkpoint, tmp_path / "run" / "model")
    with torch.no_grad():
        assert torch.equal(load(tmp_path / "run").model(batch(False)), checkpoint.model(batch(False)))


@pytest.mark.parametrize("name", [name for name in DECODERS if not name.endswith("unscaled")])
def test_cache_equals_the_full_pass(name: str, tmp_path: Path) -> None:
    """Prefill, single steps and a chunk; a dropped attention has no slot."""
    model = shortened(load(saved(tmp_path, name)[1]), {"1.attn": "lose", "2.mlp": "lose"}).model
    data = batch(False, rows=2)
    cache = KVCache(model, 2, data.ids.shape[1])
    assert sorted(cache.slots) == ([] if name.startswith("qwen3_5") else ["0.attn", "2.attn"])
    with torch.no_grad():
        full = model(data)
        pieces = [model(Batch(piece), cache) for piece in data.ids.split([9, 1, 1, 4, 9], dim=1)]
    assert_same(torch.cat(pieces, 1), full, data, 1e-5)
    with pytest.raises(InputError, match="cache"):
        model(Batch(data.ids[:, :1]), cache)


def test_sentence_transformers_settings_are_read(tmp_path: Path) -> None:
    _, folder = saved(tmp_path, "bert", "embedding")
    modules = [
        {"type": "sentence_transformers.models.Transformer", "path": ""},
        {"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"},
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": 32, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    checkpoint = load(folder)
    assert (checkpoint.model.config.head.pooling, checkpoint.model.config.head.normalize) == ("first", False)
    save(checkpoint, tmp_path / "again")
    assert load(tmp_path / "again").model.config == checkpoint.model.config
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_max_tokens": True}))
    with pytest.raises(InputError, match="pooling max is not one of"):
        load(folder)
    (folder / "1_Pooling" / "config.json").write_text("[]")
    with pytest.raises(InputError, match=r"1_Pooling/config\.json is not a dictionary; download"):
        load(folder)


def test_damaged_sentence_transformers_settings_are_refused(tmp_path: Path) -> None:
    _, folder = saved(tmp_path, "bert", "embedding")
    (tmp_path / "config.json").write_text(json.dumps({"pooling_mode_cls_token": True}))
    for modules in ({"type": "Pooling", "path": "1_Pooling"}, 7, ["Pooling"]):
        (folder / "modules.json").write_text(json.dumps(modules))
        with pytest.raises(InputError, match=r"modules\.json is not a list of modules with type and path; download"):
            load(folder)
    for path in ("..", ".", "../x", "/etc", "a/b"):
        (folder / "modules.json").write_text(json.dumps([{"type": "x.Pooling", "path": path}]))
        with pytest.raises(InputError, match="which is not beside it"):
            load(folder)
