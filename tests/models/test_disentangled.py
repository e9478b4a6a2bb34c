"""DeBERTa's scores: buckets against transformers', one pair by hand, the two ways of computing, what is trained."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.models.deberta_v2.modeling_deberta_v2 import make_log_bucket_position

from chinchilla_lm.errors import InputError
from chinchilla_lm.models.checkpoint import load
from chinchilla_lm.models.disentangled import DisentangledAttention, log_bucket
from tests.models.tiny import CASES, HIDDEN, LABELS, VOCAB, assert_same, batch, saved

NAMES = [name for name in CASES if name.startswith("deberta") and not name.endswith("absolute")]


@pytest.mark.parametrize(("buckets", "farthest"), [(256, 512), (32, 128), (8, 40), (4, 9), (7, 300)])
def test_buckets_are_those_of_transformers(buckets: int, farthest: int) -> None:
    distance = torch.arange(-600, 601)
    expected = make_log_bucket_position(distance, buckets, farthest).to(torch.int64)
    assert torch.equal(log_bucket(distance, buckets, farthest), expected)


def test_one_pair_by_hand(tmp_path: Path) -> None:
    """What query 7 gains on key 2, from the formula and the table's row of distance 5."""
    model = load(saved(tmp_path, "deberta-v2-own-matrices")[1]).model
    link, data = model.link("1.attn"), batch(False)
    assert isinstance(link, DisentangledAttention)
    with torch.no_grad():
        _, context = model.embed(data)
        generator = torch.Generator().manual_seed(1)
        query, key = (torch.randn(3, 4, 24, 8, generator=generator) for _ in range(2))
        added = link.mask(query, key, context)
        assert added is not None
        assert link.distance_key is not None
        assert link.distance_query is not None
        row = model.embedding.distances.weight[9 + 5]  # type: ignore[union-attr]
        as_key, as_query = link.distance_key(row).view(4, 8), link.distance_query(row).view(4, 8)
        expected = ((query[:, :, 7] * as_key).sum(-1) + (key[:, :, 2] * as_query).sum(-1)) / 24**0.5
    torch.testing.assert_close(added[:, :, 7, 2], expected)


@pytest.mark.parametrize("name", NAMES)
def test_training_computes_the_same_and_reaches_every_weight(name: str, tmp_path: Path) -> None:
    model, data = load(saved(tmp_path, name, "token-classification")[1]).model, batch(True)
    with torch.no_grad():
        expected = model(data)
    found = model(data)
    torch.testing.assert_close(found[data.mask], expected[data.mask], rtol=0, atol=1e-5)
    found[data.mask].square().sum().backward()
    for parameter_name, parameter in model.named_parameters():
        if parameter_name != "embedding.positions.weight":
            assert parameter.grad is not None, parameter_name
            assert torch.isfinite(parameter.grad).all(), parameter_name
    table = model.get_parameter("embedding.distances.weight").grad
    assert table is not None
    assert table.abs().max() > 1e-6


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"conv_kernel_size": 3}, "conv_kernel_size 3"),
        ({"pos_att_type": ["c2c"]}, "pos_att_type"),
        ({"position_buckets": 1}, "position_buckets 1"),
        ({"embedding_size": 16}, "embedding_size 16"),
        ({"attention_head_size": 4}, "attention_head_size 4"),
    ],
)
def test_what_is_beyond_us_is_one_line(change: dict, named: str, tmp_path: Path) -> None:
    path = saved(tmp_path, "deberta-v2")[1] / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InputError, match=named) as caught:
        load(path.parent)
    assert "\n" not in str(caught.value)


@torch.no_grad()
def test_a_discriminator_as_it_is_published(tmp_path: Path) -> None:
    """mdeberta-v3-base's file has no class in its config, and what only its training needed beside the encoder."""
    reference, folder = saved(tmp_path, "deberta-v2", "embedding")
    stored = {f"deberta.{name}": tensor for name, tensor in load_file(folder / "model.safetensors").items()}
    for name, shape in {
        "deberta.embeddings.word_embeddings._weight": (VOCAB, HIDDEN),
        "deberta.embeddings.position_embeddings._weight": (40, HIDDEN),
        "deberta.embeddings.position_embeddings.weight": (40, HIDDEN),
        "lm_predictions.lm_head.dense.weight": (HIDDEN, HIDDEN),
        "mask_predictions.classifier.weight": (1, HIDDEN),
    }.items():
        stored[name] = torch.randn(shape)
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({key: config[key] for key in config if key != "architectures"}))
    data = batch(False)
    for task, labels in (("embedding", None), ("token-classification", LABELS)):
        model = load(folder, task=task, labels=labels).model
        hidden = model.finish(model.run(*model.embed(data)))
        assert_same(hidden, reference(input_ids=data.ids).last_hidden_state, data)
