"""What stands on top of the last hidden state: logits for tokens, tags or classes, or an embedding.

B rows, T positions, D hidden features, V vocabulary, C labels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chinchilla_lm.models.batch import Batch
from chinchilla_lm.models.config import ModelConfig
from chinchilla_lm.models.layers import ACTIVATIONS


class Head(nn.Module):
    """The head that `config.head` describes; its modules are absent where the kind has none."""

    dense: nn.Linear | None
    transform_norm: nn.LayerNorm | None
    output: nn.Linear | None

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = head = config.head
        size = config.hidden_size
        lm = head.kind == "language-modeling"
        self.scale, self.softcap = (config.logit_scale, config.logit_softcap) if lm else (1.0, None)
        self.activation = ACTIVATIONS[head.dense_activation or config.activation]
        inner = config.embedding_width if head.kind == "language-modeling" else size
        dense = head.transform or head.dense_activation is not None
        self.dense = nn.Linear(size, inner, bias=head.dense_bias) if dense else None
        norm = nn.LayerNorm(inner, eps=config.norm_eps, bias=config.norm_bias) if head.transform else None
        self.transform_norm = norm
        if head.kind == "embedding":
            self.output = None
        elif head.kind == "language-modeling":
            self.output = nn.Linear(inner, config.vocab_size, bias=head.bias)
        else:
            self.output = nn.Linear(size, len(head.labels), bias=head.bias)

    def forward(self, x_BTD: Tensor, batch: Batch) -> Tensor:
        """Logits [B, T, V] or [B, T, C] for tokens, [B, C] for a sequence; an embedding [B, D]."""
        if self.config.kind in ("language-modeling", "token-classification"):
            return self.classify(x_BTD)
        pooled = pool(x_BTD, batch, self.config.pooling)
        if self.config.kind == "embedding":
            return F.normalize(pooled, dim=-1) if self.config.normalize else pooled
        return self.classify(pooled)

    def classify(self, x: Tensor) -> Tensor:
        """Logits [..., V or C] of any hidden states [..., D]."""
        if self.dense is not None:
            x = self.activation(self.dense(x))
        if self.transform_norm is not None:
            x = self.transform_norm(x)
        assert self.output is not None
        logits: Tensor = self.output(x)
        if self.scale != 1.0:
            logits = logits * self.scale
        return logits if self.softcap is None else (logits / self.softcap).tanh() * self.softcap


def pool(x_BTD: Tensor, batch: Batch, how: str) -> Tensor:
    """One vector a row, [B, D]: the first token's, the last real token's, or the mean over real tokens."""
    if how == "first":
        return x_BTD[:, 0]
    if how == "last":
        return x_BTD[torch.arange(x_BTD.shape[0], device=x_BTD.device), batch.lengths() - 1]
    if batch.mask is None:
        return x_BTD.mean(1)
    weights = batch.mask.to(x_BTD.dtype)[..., None]
    return (x_BTD * weights).sum(1) / weights.sum(1)
