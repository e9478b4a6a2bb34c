"""Model → program: every link that is left becomes one operation, its matrices packed in a format.

Norms are not folded here: the engine multiplies by their weights while it rounds, for nothing, and a matrix that came
out of a 4-bit file stays exactly as it was. Only the bias of a plain layer norm would be cheaper folded.

D hidden features, N outputs, K inputs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from chinchilla_lm.errors import InputError
from chinchilla_lm.models.config import Activation
from chinchilla_lm.models.layers import MLP, Attention, BareNorm, Norm
from chinchilla_lm.models.rope import inverse_frequencies
from chinchilla_lm.models.transformer import Transformer
from chinchilla_lm.pack.bf16 import to_halves
from chinchilla_lm.pack.formats import FORMATS, Format, format_named
from chinchilla_lm.pack.panels import LANES, Floats
from chinchilla_lm.runtime.program import Data, Program

Part = dict[str, Any]


def compile_model(model: Transformer, format_name: str) -> Program:
    """The program of a model, its large matrices in one format.

    What is small beside them, or is looked up and not multiplied, is bfloat16 (float32 in a program of `f32`): the
    outputs of a classification head, embeddings that no decoder shares. So is the cache of keys and values, but with
    int8 and int4 weights it is int8, a scale for each key and each value. Raises InputError for an unknown
    format, and for weights that are not finite numbers.
    """
    return _Compiler(model, format_named(format_name)).program()


class _Compiler:
    def __init__(self, model: Transformer, form: Format) -> None:
        self.model, self.config, self.form = model, model.config, form
        self.small = FORMATS["f32" if form.name == "f32" else "bf16"]
        self.data = Data()
        self.ropes = list(dict.fromkeys(self.config.ropes))

    def program(self) -> Program:
        config = self.config
        header = {
            "format": self.form.name,
            "hidden": config.hidden_size,
            "vocabulary": config.vocab_size,
            "max_positions": config.max_positions,
            "causal": config.causal,
            "cache": self.cache(),
            "ropes": [self._frequencies(index) for index in range(len(self.ropes))],
            "embedding": self.embedding(),
            "operations": [self.operation(name, module) for name, module in self.model.links.items()],
            "head": self.head(),
        }
        return Program(header, self.data.joined())

    def cache(self) -> str:
        """The format of keys and values. What is read once, by a bidirectional model, is not worth rounding further."""
        return "int8" if self.config.causal and self.form.name.startswith(("int8", "int4")) else self.small.name

    def _frequencies(self, index: int) -> list[float]:
        found: list[float] = inverse_frequencies(self.ropes[index], self.config.head_dim, torch.device("cpu")).tolist()
        return found

    def embedding(self) -> Part:
        config, module = self.config, self.model.embedding
        tied = config.head.kind == "language-modeling" and config.head.tied
        return {
            "tokens": None if tied else self.table(module.tokens, "token embedding"),
            "positions": None if module.positions is None else self.table(module.positions, "position embedding"),
            "segments": None if module.segments is None else self.table(module.segments, "segment embedding"),
            "position_offset": config.position_offset,
            "scale": config.embedding_scale,
            "norm": self.norm(module.norm),
        }

    def operation(self, key: str, module: nn.Module) -> Part:
        name = key.replace("_", ".")
        if isinstance(module, BareNorm):
            return {"name": name, "kind": "norm", "norm": self.norm(module.norm)}
        assert isinstance(module, Attention | MLP)
        part = {
            "name": name,
            "placement": module.placement,
            "norm": self.norm(module.norm),
            "after": self.norm(module.norm_after),
        }
        return part | (self.attention(module) if isinstance(module, Attention) else self.mlp(module))

    def attention(self, link: Attention) -> Part:
        return {
            "kind": "attention",
            "first": self.linear(link.qkv, link.name),
            "second": self.linear(link.out, link.name),
            "heads": link.heads,
            "kv_heads": link.kv_heads,
            "head_dim": link.head_dim,
            "query_norm": self.norm(link.q_norm),
            "key_norm": self.norm(link.k_norm),
            "rope": None if link.rope is None else self.ropes.index(link.rope),
            "window": link.window or 0,
            "scale": link.head_dim**-0.5 if link.scale is None else link.scale,
        }

    def mlp(self, link: MLP) -> Part:
        weight, bias = _numbers(link.up.weight, link.name), link.up.bias
        added = None if bias is None else _numbers(bias, link.name)
        if link.gated:
            weight = _alternate(weight)
            added = None if added is None else _alternate(added[:, None])[:, 0]
        return {
            "kind": "mlp",
            "first": self.matrix(weight, added, self.form),
            "second": self.linear(link.down, link.name),
            "gated": link.gated,
            "activation": self.config.activation,
        }

    def head(self) -> Part:
        head, config = self.model.head, self.config.head
        decoder = config.kind == "language-modeling"
        sequence = config.kind not in ("language-modeling", "token-classification")
        activation: Activation = config.dense_activation or self.config.activation
        return {
            "norm": self.norm(self.model.norm),
            "pooling": config.pooling if sequence else "none",
            "normalize": config.kind == "embedding" and config.normalize,
            "dense": None if head.dense is None else self.linear(head.dense, "head", self.small),
            "activation": activation,
            "transform": self.norm(head.transform_norm),
            "output": None
            if head.output is None
            else self.linear(head.output, "head", self.form if decoder else self.small),
        }

    def linear(self, module: nn.Linear, where: str, form: Format | None = None) -> Part:
        bias = None if module.bias is None else _numbers(module.bias, where)
        return self.matrix(_numbers(module.weight, where), bias, form or self.form)

    def matrix(self, weight_NK: Floats, bias_N: Floats | None, form: Format) -> Part:
        outputs, inputs = weight_NK.shape
        return {
            "format": form.kind,
            "outputs": outputs,
            "inputs": inputs,
            "offset": self.data.add(form.pack(weight_NK, **form.options)),
            "bias": None if bias_N is None else self.data.vector(bias_N),
            **form.options,
        }

    def table(self, module: nn.Embedding, where: str) -> Part:
        values = _numbers(module.weight, where)
        offset = self.data.add(values if self.small.name == "f32" else to_halves(values))
        return {"format": self.small.name, "rows": values.shape[0], "size": values.shape[1], "offset": offset}

    def norm(self, module: Norm | nn.LayerNorm | None) -> Part | None:
        if module is None:
            return None
        rms = isinstance(module, Norm) and module.rms
        weight = None if module.weight is None else _numbers(module.weight, "norm")
        if weight is not None and isinstance(module, Norm) and module.unit_offset:
            weight = weight + np.float32(1.0)
        bias = None if module.bias is None else _numbers(module.bias, "norm")
        return {
            "rms": rms,
            "eps": module.eps,
            "weight": None if weight is None else self.data.vector(weight),
            "bias": None if bias is None else self.data.vector(bias),
        }


def _numbers(tensor: torch.Tensor, where: str) -> Floats:
    """float32 on the CPU. Raises InputError where one is not finite: a rounded NaN would look like a number."""
    if not bool(torch.isfinite(tensor).all()):
        raise InputError(f"{where} has a weight that is NaN or infinite; restore the checkpoint")
    values: Floats = tensor.detach().to("cpu", torch.float32).numpy()
    return values


def _alternate(both: Floats) -> Floats:
    """Gate and up, [2N, K] with gate first, as 16 rows of gate, 16 of up, and so on, each padded to 16."""
    gate, up = np.split(both, 2)
    missing = (0, -len(gate) % LANES), (0, 0)
    panels = [np.pad(part, missing).reshape(-1, LANES, both.shape[1]) for part in (gate, up)]
    return np.stack(panels, axis=1).reshape(-1, both.shape[1])
