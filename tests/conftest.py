"""Tiny random models and tokenizers, built on the spot."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch

from chinchilla_lm.models.config import HeadConfig, ModelConfig, RopeConfig
from chinchilla_lm.models.transformer import Transformer


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny products gain nothing from a second thread and wait long for it where the cores are busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def tiny_config() -> Callable[..., ModelConfig]:
    """A maker of three-block causal pre-norm models with rotary positions; keyword arguments change fields."""

    def make(**changes: Any) -> ModelConfig:
        config = ModelConfig(
            family="test",
            vocab_size=97,
            hidden_size=32,
            num_blocks=3,
            num_heads=4,
            num_kv_heads=2,
            head_dim=8,
            intermediate_size=48,
            max_positions=64,
            causal=True,
            norm="rmsnorm",
            norm_eps=1e-5,
            placement="pre",
            activation="silu",
            gated=True,
            head=HeadConfig("language-modeling", bias=False, tied=True),
            qkv_bias=False,
            out_bias=False,
            mlp_bias=False,
            positions="rope",
            ropes=(RopeConfig(),) * 3,
        )
        changes = {"ropes": ()} | changes if changes.get("positions") == "learned" else changes
        return replace(config, **changes)

    return make


@pytest.fixture
def tiny_model() -> Callable[..., Transformer]:
    """A maker of models with every weight random: norms, their biases and all others too."""

    def make(
        config: ModelConfig,
        dropped: Mapping[str, Any] | None = None,
        dtype: torch.dtype = torch.float64,
        seed: int = 0,
    ) -> Transformer:
        model = Transformer(config, dropped).to(dtype).eval()
        random = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, weight in model.named_parameters():
                spread = 0.3 if "norm" in name else weight.shape[-1] ** -0.5
                centre = 1.0 if name.endswith("norm.weight") and not config.norm_unit_offset else 0.0
                weight.copy_(centre + spread * torch.randn(weight.shape, generator=random, dtype=torch.float64))
        return model

    return make
