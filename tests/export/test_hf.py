"""Shortened models in stock transformers: the portable folder computes what our shortened model computes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from chinchilla_lm.errors import InputError
from chinchilla_lm.export.hf import export_hf
from chinchilla_lm.models.checkpoint import load, save
from chinchilla_lm.models.families import FAMILIES
from tests.models.test_checkpoint import add_tokenizer, shortened
from tests.models.tiny import CASES, DECODERS, ENCODERS, assert_same, auto_class, batch, saved, theirs

# Blocks 0, 1, 2. Whole blocks, single links, both at once, the first and the last.
DROPS: list[dict[str, str]] = [
    {"1.attn": "lose", "1.mlp": "lose"},
    {"0.attn": "lose"},
    {"2.mlp": "lose"},
    {"0.attn": "lose", "0.mlp": "lose", "2.attn": "lose"},
    {"0.mlp": "lose", "1.attn": "lose", "1.mlp": "lose", "2.mlp": "lose"},
    {"0.attn": "lose", "0.mlp": "lose", "1.attn": "lose", "1.mlp": "lose", "2.attn": "lose", "2.mlp": "lose"},
]
# What a post-norm model can have besides: norms that stay, chains of lost ones across blocks, one of each in a block.
POST_DROPS: list[dict[str, str]] = [
    {"0.attn": "keep"},
    {"1.attn": "keep", "1.mlp": "keep"},
    {"0.attn": "lose", "0.mlp": "keep"},
    {"0.attn": "keep", "0.mlp": "lose", "1.attn": "lose", "2.mlp": "keep"},
    {"0.mlp": "lose", "1.attn": "lose"},
    {"0.mlp": "lose", "1.attn": "lose", "1.mlp": "lose", "2.attn": "lose"},
    {"1.mlp": "lose", "2.attn": "lose", "2.mlp": "keep"},
]


def compare(tmp_path: Path, name: str, kind: str, dropped: dict[str, Any]) -> transformers.PreTrainedModel:
    short = shortened(load(saved(tmp_path, name, kind)[1]), dropped)
    export_hf(short, tmp_path / "portable")
    stock, loading = auto_class(name, kind).from_pretrained(tmp_path / "portable", output_loading_info=True)
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    for padded in (False, True):
        data = batch(padded)
        with torch.no_grad():
            assert_same(theirs(stock.eval(), data), short.model(data), data)
            assert_same(load(tmp_path / "portable").model(data), short.model(data), data)
    return stock


@pytest.mark.parametrize("dropped", DROPS, ids=lambda drop: "-".join(drop))
@pytest.mark.parametrize("name", ["llama-biased-llama3-tied", "mistral-window", "qwen2-window", "gemma3", "gpt2"])
def test_pre_norm_models(name: str, dropped: dict[str, str], tmp_path: Path) -> None:
    stock = compare(tmp_path, name, "language-modeling", dropped)
    gone = sum({f"{block}.attn", f"{block}.mlp"} <= set(dropped) for block in range(3))
    assert stock.config.num_hidden_layers == max(3 - gone, 1)


@pytest.mark.parametrize(
    "dropped", [*DROPS, *POST_DROPS], ids=lambda drop: "-".join(f"{k}-{v}" for k, v in drop.items())
)
@pytest.mark.parametrize("name", ["bert", "roberta", "distilbert"])
def test_post_norm_models(name: str, dropped: dict[str, str], tmp_path: Path) -> None:
    compare(tmp_path, name, "token-classification", dropped)


@pytest.mark.parametrize("dropped", DROPS, ids=lambda drop: "-".join(drop))
def test_a_first_block_unlike_the_others_stays(dropped: dict[str, str], tmp_path: Path) -> None:
    stock = compare(tmp_path, "modernbert-biased-mean", "token-classification", dropped)
    gone = sum({f"{block}.attn", f"{block}.mlp"} <= set(dropped) for block in (1, 2))
    assert stock.config.num_hidden_layers == 3 - gone


@pytest.mark.parametrize("dropped", [{"1.attn": "lose"}, {"0.attn": "keep", "0.mlp": "lose", "2.mlp": "lose"}], ids=str)
def test_narrow_embeddings(dropped: dict[str, str], tmp_path: Path) -> None:
    compare(tmp_path, "electra", "token-classification", dropped)


def test_a_norm_that_would_move_through_a_projection_is_refused(tmp_path: Path) -> None:
    """Where the embeddings are as wide as the hidden states there is no projection, and it can move."""
    dropped = {"0.attn": "lose"}
    short = shortened(load(saved(tmp_path, "electra")[1]), dropped)
    with pytest.raises(InputError, match=r"link 0\.attn lost its norm") as caught:
        export_hf(short, tmp_path / "refused")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "refused").exists()
    compare(tmp_path, "electra-same-untied", "language-modeling", dropped)


@pytest.mark.parametrize("name", CASES)
def test_every_family_and_setting(name: str, tmp_path: Path) -> None:
    dropped = {"0.mlp": "lose", "1.attn": "lose", "1.mlp": "lose"}
    compare(tmp_path, name, "language-modeling", dropped)


@pytest.mark.parametrize("name", ["qwen3-biased-mixed", "bert", "gpt2"])
def test_sequence_heads(name: str, tmp_path: Path) -> None:
    compare(tmp_path, name, "text-classification", {"0.attn": "lose", "0.mlp": "lose"})


def test_bidirectional_tagger(tmp_path: Path) -> None:
    """The model of the main job: a decoder made bidirectional, shortened, in stock transformers."""
    _, folder = saved(tmp_path, "llama-gqa", "token-classification")
    add_tokenizer(folder)
    short = shortened(load(folder, bidirectional=True), {"1.attn": "lose", "2.attn": "lose", "2.mlp": "lose"})
    export_hf(short, tmp_path / "portable")
    stock = transformers.AutoModelForTokenClassification.from_pretrained(tmp_path / "portable").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "portable")
    assert tokenizer("w3")["input_ids"] == [5]
    data = batch(True)
    with torch.no_grad():
        assert_same(theirs(stock, data), short.model(data), data)


def test_windows_follow_their_blocks(tmp_path: Path) -> None:
    stock = compare(tmp_path, "qwen2-window", "language-modeling", {"0.attn": "lose", "0.mlp": "lose"})
    assert stock.config.layer_types == ["sliding_attention", "sliding_attention"]


def test_nothing_dropped_is_the_same_folder(tmp_path: Path) -> None:
    checkpoint = load(saved(tmp_path, "bert")[1])
    save(checkpoint, tmp_path / "saved")
    export_hf(checkpoint, tmp_path / "exported")
    files = sorted(path.name for path in (tmp_path / "saved").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "exported").iterdir())
    for name in files:
        assert (tmp_path / "saved" / name).read_bytes() == (tmp_path / "exported" / name).read_bytes()


def test_the_model_itself_is_left_alone(tmp_path: Path) -> None:
    short = shortened(load(saved(tmp_path, "bert")[1]), {"0.mlp": "lose", "1.attn": "lose"})
    before = {name: value.clone() for name, value in short.model.state_dict().items()}
    config = json.dumps(short.hf_config, sort_keys=True)
    export_hf(short, tmp_path / "portable")
    for name, value in short.model.state_dict().items():
        assert torch.equal(value, before[name])
    assert json.dumps(short.hf_config, sort_keys=True) == config


def test_heads_that_transformers_lacks_are_refused(tmp_path: Path) -> None:
    checkpoint = load(saved(tmp_path, "gemma3")[1], task="token-classification", labels=["A", "B"])
    with pytest.raises(InputError, match="transformers has no"):
        export_hf(checkpoint, tmp_path / "portable")


def test_the_families_are_all_covered() -> None:
    assert {CASES[name][0].model_type for name in DECODERS + ENCODERS} == set(FAMILIES)
