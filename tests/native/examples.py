"""Models for the engine to run, texts for them to read, and how near the outputs shall be."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from chinchilla_lm.models import checkpoint as checkpoints
from chinchilla_lm.models.transformer import Transformer
from tests.models.tiny import VOCAB, saved

LENGTHS = (24, 1, 7, 13, 3)


def load(tmp_path: Path, name: str, kind: str = "language-modeling") -> Transformer:
    model = checkpoints.load(saved(tmp_path, name, kind)[1], task=kind).model
    return model.eval().requires_grad_(False)


def texts(lengths: tuple[int, ...] = LENGTHS) -> list[np.ndarray]:
    random = np.random.default_rng(7)
    return [random.integers(7, VOCAB, length).astype(np.int32) for length in lengths]


def assert_near(got: np.ndarray, expected: np.ndarray, tolerance: float = 1e-4) -> None:
    assert got.shape == expected.shape
    assert np.isfinite(got).all()
    assert np.abs(got - expected).max() < tolerance
    assert expected.std() > 0.01


def long_reader(tmp_path: Path) -> Transformer:
    """A decoder with room for texts that take several passes."""
    _, folder = saved(tmp_path, "llama-gqa")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 1024}), encoding="utf-8")
    return checkpoints.load(folder, task="language-modeling").model.eval()
