"""Damaged, hostile and misplaced model files: one line that names the file, the rule and the remedy."""

from __future__ import annotations

import json
import pickle
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from chinchilla_lm.errors import InputError
from chinchilla_lm.models.checkpoint import load, save
from chinchilla_lm.models.tokenizer import load_tokenizer
from tests.models.tiny import LABELS, saved

WEIGHTS = "model.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return saved(tmp_path, "llama-gqa")[1]


def refused(source: Path | str, *named: str, **options: Any) -> None:
    with pytest.raises(InputError) as caught:
        load(source, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert ";" in message or "," in message
    for word in named:
        assert word in message


def rewrite(folder: Path, **changes: torch.Tensor | None) -> None:
    stored = load_file(folder / WEIGHTS)
    for name, value in changes.items():
        full = name.replace("__", ".")
        if value is None:
            del stored[full]
        else:
            stored[full] = value
    save_file(stored, folder / WEIGHTS, {"format": "pt"})


@pytest.mark.parametrize("kept", [0, 4, 100, 2000, -1])
def test_truncated_safetensors(folder: Path, kept: int) -> None:
    whole = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(whole[:kept])
    refused(folder, WEIGHTS)


def test_a_header_that_claims_too_much(folder: Path) -> None:
    whole = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", 1 << 60) + whole[8:])
    refused(folder, WEIGHTS)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite(folder: Path, value: float) -> None:
    norm = torch.ones(32)
    norm[3] = value
    rewrite(folder, model__norm__weight=norm)
    refused(folder, "model.norm.weight", "1 value", WEIGHTS)


def test_large_finite_values_are_fine(folder: Path) -> None:
    rewrite(folder, model__norm__weight=torch.full((32,), 3e38))
    load(folder)


def test_missing_unexpected_misshapen_and_integer_tensors(folder: Path) -> None:
    whole = (folder / WEIGHTS).read_bytes()
    cases: list[tuple[str, torch.Tensor | None]] = [
        ("model__layers__1__mlp__up_proj__weight", None),
        ("lm_head__weight", None),
        ("model__layers__1__self_attn__q_proj__bias", torch.zeros(32)),
        ("model__layers__3__mlp__up_proj__weight", torch.zeros(48, 32)),
        ("lm_head__bias", torch.zeros(97)),
        ("model__layers__0__self_attn__k_proj__weight", torch.zeros(32, 32)),
        ("model__layers__0__self_attn__k_proj__weight", torch.zeros(16, 32, dtype=torch.int8)),
    ]
    for name, value in cases:
        (folder / WEIGHTS).write_bytes(whole)
        rewrite(folder, **{name: value})
        refused(folder, name.replace("__", "."))


def test_a_base_weight_missing_under_a_new_head(folder: Path) -> None:
    rewrite(folder, model__layers__1__mlp__up_proj__weight=None)
    refused(folder, "model.layers.1.mlp.up_proj.weight", task="token-classification", labels=LABELS)


def test_pickle_only(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    refused(folder, WEIGHTS)

    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path(folder / "sprung").touch, ())

    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Trap()))
    refused(folder, "pytorch_model.bin", "pickle")
    assert not (folder / "sprung").exists()


@pytest.mark.parametrize(
    "shard", ["../outside.safetensors", "/etc/passwd", "sub/x.safetensors", "x.bin", "gone.safetensors", 7]
)
def test_an_index_that_points_elsewhere(folder: Path, shard: Any) -> None:
    (folder / WEIGHTS).rename(folder.parent / "outside.safetensors")
    index = {"weight_map": {"model.norm.weight": shard}}
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index))
    refused(folder, str(shard))


def test_doubled_tensors_in_shards(folder: Path) -> None:
    whole = (folder / WEIGHTS).read_bytes()
    for name in ("a.safetensors", "b.safetensors"):
        (folder / name).write_bytes(whole)
    (folder / WEIGHTS).unlink()
    index = {"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index))
    refused(folder, "a.safetensors", "b.safetensors")


def test_no_model_there(folder: Path, tmp_path: Path) -> None:
    refused(tmp_path / "missing" / "deep", "missing")
    refused(folder / "config.json", "config.json")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "config.json")
    (folder / "config.json").write_text("{")
    refused(folder, "config.json")
    (folder / "config.json").write_text("[]")
    refused(folder, "config.json")


def test_the_hub_out_of_reach(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub

    def fail(*args: Any, **options: Any) -> str:
        assert not any(pattern.endswith((".py", ".bin")) for pattern in options["allow_patterns"])
        raise OSError("no route to host\nat all")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    monkeypatch.chdir(tmp_path)
    refused("someone/some-model", "someone/some-model", "hub")
    refused("../x/y", "does not exist")


def test_no_tokenizer(folder: Path) -> None:
    checkpoint = load(folder)  # the model alone works
    with pytest.raises(InputError, match=r"tokenizer\.json"):
        _ = checkpoint.tokenizer
    (folder / "tokenizer.json").write_text("{]")
    with pytest.raises(InputError, match="tokenizer"):
        _ = load(folder).tokenizer


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("config.json", {"vocab_size": [3]}, r"'vocab_size': TypeError: .* expected int, got list \(value: \[3\]\)"),
        ("config.json", {"bos_token_id": "x"}, "Field 'bos_token_id' with value 'x' doesn't match"),
        ("tokenizer_config.json", {"padding_side": "up"}, "current value: up"),
        ("tokenizer.json", {"model": {}}, "ModelUntagged"),
        ("tokenizer.json", {"version": 3}, "integer `3`, expected a string"),
    ],
)
def test_damaged_tokenizers(model_folder: Any, tmp_path: Path, name: str, change: dict[str, Any], said: str) -> None:
    folder = shutil.copytree(model_folder("bert"), tmp_path / "model")
    content = json.loads((folder / name).read_text(encoding="utf-8"))
    (folder / name).write_text(json.dumps(content | change), encoding="utf-8")
    with pytest.raises(InputError, match=rf"tokenizer in .* cannot be loaded \(.*{said}.*\); copy") as caught:
        load_tokenizer(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "meta",
    [
        {"version": 2},
        [],
        {"version": 1, "dropped": {"0.attn": "maybe"}},
        {"version": 1, "dropped": []},
        {"version": 1, "window": 512},
        {"version": 1, "window": None},
        {"version": 1, "window": {"context": 3}},
        {"version": 1, "window": {"max_tokens": "many"}},
        {"version": 1, "window": {"max_tokens": 0}},
        {"version": 1, "window": {"max_tokens": True}},
    ],
)
def test_damaged_descriptions(folder: Path, meta: Any) -> None:
    (folder / "chinchilla.json").write_text(json.dumps(meta))
    refused(folder, "chinchilla.json")


def test_a_plan_for_another_model(folder: Path) -> None:
    (folder / "chinchilla.json").write_text(json.dumps({"version": 1, "dropped": {"9.attn": "lose"}}))
    refused(folder, "9.attn")


def test_tags_that_are_no_scheme_of_ours(model_folder, tmp_path):
    checkpoint = load(model_folder("bert", "token-classification"))
    save(checkpoint, tmp_path / "model", {"tags": "IOB1"})
    with pytest.raises(InputError, match="tags 'IOB1' is not BIO"):
        load(tmp_path / "model")
