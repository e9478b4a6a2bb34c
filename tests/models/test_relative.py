"""Buckets of distances, against transformers' and by hand; one table against the bias of each pair."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers.models.mpnet.modeling_mpnet import MPNetEncoder

from chinchilla_lm.models.checkpoint import load
from chinchilla_lm.models.relative import RelativeBias, bucket
from tests.models.tiny import saved


def test_buckets_are_those_of_transformers() -> None:
    distance = torch.arange(-700, 701)
    assert torch.equal(bucket(distance, 32, 128), MPNetEncoder.relative_position_bucket(distance, 32, 128))


def test_buckets_by_hand() -> None:
    near = torch.tensor([0, -1, 1, -7, 7, -8, 8, -128, 128, 5000])
    assert bucket(near, 32, 128).tolist() == [0, 1, 17, 7, 23, 8, 24, 15, 31, 31]


def test_bias_of_each_pair(tmp_path: Path) -> None:
    """Row t, key s holds the table's value for s − t, with and without earlier positions."""
    model = load(saved(tmp_path, "mpnet")[1]).model
    table = model.embedding.relative
    assert isinstance(table, RelativeBias)
    pairs = torch.arange(13)[None] - torch.arange(13)[:, None]
    expected = table.weight[bucket(pairs, 32, 128)].permute(2, 0, 1)[None]
    assert torch.equal(table(0, 13), expected)
    assert torch.equal(table(9, 13), expected[:, :, 9:])
