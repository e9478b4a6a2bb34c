"""What a pass must read and compute at the least: the roof that a measured speed is held against.

Decoding at batch 1 reads every live weight and the cache once a token, so bytes over time against the read bandwidth is
the share of what the machine can do. Reading a prompt, or an encoder's batch, multiplies matrices, so operations over
time against the GEMM peak is. Counted is the work that no implementation can leave out: of attention, the pairs of
positions that see each other; of a causal prompt, the head at its last position.

A model that is prepared (`runtime.prepare`) has folded norms and another dtype: count what is run.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from torch import nn

from chinchilla_lm.models.config import ModelConfig
from chinchilla_lm.models.delta import GatedDelta
from chinchilla_lm.models.layers import Attention
from chinchilla_lm.models.transformer import Transformer
from chinchilla_lm.runtime.engine.demand import memory_size, pairs


@dataclass(frozen=True, slots=True)
class Size:
    """Parameters (a shared one counted once) and their bytes."""

    parameters: int
    bytes: int


def size_of(module: nn.Module) -> Size:
    """The size of a module or a whole model."""
    weights = list(module.parameters())
    return Size(sum(w.numel() for w in weights), sum(w.numel() * w.element_size() for w in weights))


class ModelDemand:
    """What a model in torch is and needs; see demand.Demand."""

    def __init__(self, model: Transformer) -> None:
        self._model, config, size = model, model.config, size_of(model)
        self.kind, self.causal = config.head.kind, config.causal
        self.positions, self.vocabulary = config.max_positions, config.vocab_size
        self.parameters, self.bytes = size.parameters, size.bytes

    def pass_flops(self, rows: int, tokens: int) -> float:
        """Those of a pass, see pass_flops."""
        return pass_flops(self._model, rows, tokens)

    def decode_bytes(self, rows: int, seen: float) -> float:
        """Those of a step, see decode_bytes."""
        return decode_bytes(self._model, rows, seen)


def decode_bytes(model: Transformer, rows: int, seen: float) -> float:
    """Bytes that one step of `rows` texts reads which have `seen` positions each (a mean, so not always whole)."""
    config = model.config
    weight = model.embedding.tokens.weight
    links = sum(size_of(model.link(name)).bytes for name in model.link_names)
    head = size_of(model.head).bytes + (size_of(model.norm).bytes if model.norm is not None else 0)
    looked_up = rows * config.hidden_size * weight.element_size()
    cached = 0.0
    for name in model.link_names:
        link = model.link(name)
        if isinstance(link, Attention):
            positions = seen if link.window is None else min(seen, link.window)
            cached += 2 * rows * positions * config.num_kv_heads * config.head_dim * weight.element_size()
        elif isinstance(link, GatedDelta):
            cached += 2 * rows * 4 * memory_size(asdict(link.delta))
    return links + head + looked_up + cached


def looked_up_share(model: Transformer) -> float:
    """Share of the parameters that decoding only looks up: embedding tables that are not the decoder's matrix too."""
    parts = [*(model.link(name) for name in model.link_names), model.head, *([model.norm] if model.norm else [])]
    return 1 - sum(size_of(part).parameters for part in parts) / size_of(model).parameters


def pass_flops(model: Transformer, rows: int, tokens: int) -> float:
    """Floating-point operations (a product and its sum are two) of one pass over `rows` texts of `tokens` tokens."""
    config = model.config
    per_token = sum(_matrix_flops(part) for part in (model.embedding, *map(model.link, model.link_names)))
    compared = sum(_pairs(config, model.link(name), tokens) for name in model.link_names)
    attention = 4 * config.num_heads * config.head_dim * compared
    sequence = config.head.kind not in ("language-modeling", "token-classification")
    last_only = config.causal and config.head.kind == "language-modeling"
    head = _matrix_flops(model.head) * (1 if sequence or last_only else tokens)
    links = [model.link(name) for name in model.link_names]
    memories = sum(8 * memory_size(asdict(link.delta)) for link in links if isinstance(link, GatedDelta)) * tokens
    return float(rows * (per_token * tokens + attention + memories + head))


def _matrix_flops(module: nn.Module) -> int:
    return sum(2 * part.weight.numel() for part in module.modules() if isinstance(part, nn.Linear))


def _pairs(config: ModelConfig, link: nn.Module, tokens: int) -> int:
    """Pairs of positions, query and key, that one attention link compares; 0 for an MLP."""
    if not isinstance(link, Attention):
        return 0
    return pairs(tokens, link.window or 0, config.causal)
