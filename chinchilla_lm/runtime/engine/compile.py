"""Model → program: every link that is left becomes one operation, its matrices packed in a format.

Norms are not folded here: the engine multiplies by their weights while it rounds, for nothing, and a matrix that came
out of a 4-bit file stays exactly as it was. Only the bias of a plain layer norm would be cheaper folded.

D hidden features, N outputs, K inputs.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from chinchilla_lm.errors import InputError
from chinchilla_lm.models.config import Activation, RopeConfig
from chinchilla_lm.models.delta import GatedDelta
from chinchilla_lm.models.disentangled import DisentangledAttention, Distances
from chinchilla_lm.models.layers import MLP, Attention, BareNorm, Link, Norm
from chinchilla_lm.models.rope import attention_factor, inverse_frequencies
from chinchilla_lm.models.transformer import Transformer
from chinchilla_lm.pack.bf16 import to_halves
from chinchilla_lm.pack.formats import FORMATS, PIECE, Format
from chinchilla_lm.pack.mixed import Mixed, mixed
from chinchilla_lm.pack.panels import LANES, Bytes, Floats, round_up, rows_of
from chinchilla_lm.pack.quantized import Quantized
from chinchilla_lm.runtime.engine.program import Draft, Fill, Parts, Program, together

Part = dict[str, Any]
M = TypeVar("M", bound=nn.Module)
NO_DISTANCES: Part = dict.fromkeys(("on_keys", "on_queries", "key_matrix", "query_matrix"))
PART = 1 << 22  # weights that are read at a time: 17 MB as floats, which the allocator keeps for the next


Read = Callable[[str, slice | None], torch.Tensor]


def compile_model(model: Transformer, formats: str, read: Read | None = None) -> Program:
    """The program of a model, as `draft` has it, in memory."""
    return draft(model, formats, read).program()


def draft(
    model: Transformer, formats: str, read: Read | None = None, rounded: Mapping[str, Quantized] | None = None
) -> Draft:
    """The program of a model, its large matrices in one format, or in several (`pack.mixed`); they are packed when its
    data is made.

    What is small beside them, or is looked up and not multiplied, is bfloat16 (float32 in a program of `f32`): the
    outputs of a classification head, embeddings that no decoder shares. So is the cache of keys and values, but with
    int8 and int4 weights it is int8, a scale for each key and each value. Raises InputError for an unknown
    format, or a matrix that the model lacks; so does the making of the data for weights that are not finite numbers.

    read: gives a parameter by its name, or some of its rows, where the model itself has no storage. A large file is so
    packed without ever being in memory as floats. rounded: large matrices, by the name of the parameter, that a solver
    has rounded in these formats.
    """
    return _Compiler(model, mixed(formats), read, rounded or {}).draft()


class _Compiler:
    def __init__(self, model: Transformer, formats: Mixed, read: Read | None, rounded: Mapping[str, Quantized]) -> None:
        self.model, self.config, self.read, self.rounded = model, model.config, read, rounded
        formats.check(model.matrices())
        self.formats = formats
        self.names = {id(one): name for name, one in model.named_parameters(remove_duplicate=False)}
        self.small = FORMATS["f32" if formats.default.name == "f32" else "bf16"]
        self.data = Parts()
        self.ropes = list(dict.fromkeys(rope for rope in self.config.ropes if rope is not None))

    def draft(self) -> Draft:
        config = self.config
        header = {
            "format": str(self.formats),
            "hidden": config.hidden_size,
            "vocabulary": config.vocab_size,
            "max_positions": config.max_positions,
            "causal": config.causal,
            "cache": self.cache(),
            "relative": self.relative(),
            "distances": self.distances(),
            "ropes": [self.rope(rope) for rope in self.ropes],
            "embedding": self.embedding(),
            "operations": [self.operation(name, module) for name, module in self.model.links.items()],
            "head": self.head(),
        }
        return Draft(header, self.data)

    def cache(self) -> str:
        """The format of keys and values. What is read once, by a bidirectional model, is not worth rounding further."""
        return "int8" if self.config.causal and self.formats.default.rounding is not None else self.small.name

    def rope(self, rope: RopeConfig) -> Part:
        """Radians a position; `longer` is for texts of more than `switch` tokens, and `scale` of cosine and sine."""
        short, long = (
            inverse_frequencies(rope, self.config.head_dim, torch.device("cpu"), long).tolist()
            for long in (False, True)
        )
        return {
            "frequencies": short,
            "longer": None if rope.switch is None else long,
            "switch": rope.switch or 0,
            "scale": attention_factor(rope),
        }

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
            "size": config.embedding_width,
            "project": None if module.project is None else self.linear(module.project, "embedding", self.small),
        }

    def relative(self) -> Part | None:
        """What each head adds to a score, written out for every distance that two positions can have."""
        module, positions = self.model.embedding.relative, self.config.max_positions
        if module is None:
            return None
        values_HN = _finite(self.filled(module).by_distance(positions), "bias of positions")
        pitch = round_up(2 * positions + LANES, LANES)
        rows = np.pad(values_HN, ((0, 0), (0, pitch - values_HN.shape[1])))
        offset = self.data.vector(rows.reshape(-1))
        return {"heads": len(rows), "positions": positions, "buckets": self.config.relative_buckets, "offset": offset}

    def distances(self) -> Part | None:
        """Which row of a head each distance has; and the embeddings as torch has them, which are for the twin."""
        module, positions = self.model.embedding.distances, self.config.max_positions
        if module is None:
            return None
        rows = module.rows(torch.arange(1 - positions, positions))
        return {
            "count": round_up(len(module.weight), LANES),
            "rows": rows.tolist(),
            "embeddings": self.table(module, "embedding of distances"),
            "norm": self.norm(module.norm),
        }

    def on_distances(self, link: DisentangledAttention) -> Part:
        """The embeddings of distances as the link's queries and keys see them; and by which matrices, for the twin."""
        assert self.model.embedding.distances is not None
        with torch.no_grad():
            embeddings = self.filled(self.model.embedding.distances).embeddings()
            queries_HNP, keys_HNP = self.filled(link).projected(embeddings)
        return {
            "on_keys": self.rows_of_heads(keys_HNP, link.name),
            "on_queries": self.rows_of_heads(queries_HNP, link.name),
            "key_matrix": None if link.distance_key is None else self.linear(link.distance_key, link.name, self.small),
            "query_matrix": None
            if link.distance_query is None
            else self.linear(link.distance_query, link.name, self.small),
        }

    def rows_of_heads(self, x_HNP: torch.Tensor | None, where: str) -> Part | None:
        if x_HNP is None:
            return None
        _, rows, size = x_HNP.shape
        padded = nn.functional.pad(x_HNP, (0, 0, 0, -rows % LANES)).flatten(0, 1)
        return self.matrix(
            (len(padded), size), lambda room: self.small.pack_into(_finite(padded, where), room), None, self.small
        )

    def operation(self, key: str, module: nn.Module) -> Part:
        name = key.replace("_", ".")
        if isinstance(module, BareNorm):
            return {"name": name, "kind": "norm", "norm": self.norm(module.norm)}
        assert isinstance(module, Attention | GatedDelta | MLP)
        part = {
            "name": name,
            "placement": module.placement,
            "norm": self.norm(module.norm),
            "after": self.norm(module.norm_after),
            "residual_scale": module.residual_scale,
        }
        if isinstance(module, GatedDelta):
            return part | self.delta(module)
        return part | (self.attention(module) if isinstance(module, Attention) else self.mlp(module))

    def attention(self, link: Attention) -> Part:
        return {
            "kind": "attention",
            "first": self.gates_last(link) if link.gated else self.first(link),
            "gated_heads": link.gated,
            "second": self.second(link),
            "heads": link.heads,
            "kv_heads": link.kv_heads,
            "head_dim": link.head_dim,
            "query_norm": self.norm(link.q_norm),
            "key_norm": self.norm(link.k_norm),
            "whole_norms": link.whole_norms,
            "norms_last": link.norms_last,
            "rope": None if link.rope is None else self.ropes.index(link.rope),
            "window": link.window or 0,
            "scale": link.head_dim**-0.5 if link.scale is None else link.scale,
            "softcap": link.softcap or 0.0,
            **(self.on_distances(link) if isinstance(link, DisentangledAttention) else NO_DISTANCES),
        }

    def gates_last(self, link: Attention) -> Part:
        """Queries, keys, values, gates: in torch each head's gate stands behind its query."""
        order = gate_order(link.heads, link.kv_heads, link.head_dim)
        bias = None if link.qkv.bias is None else self.numbers(link.qkv.bias, link.name)[order]
        shape, form = (link.qkv.out_features, link.qkv.in_features), self.formats.of(f"{link.name}.first")

        def pack(room: Bytes) -> None:
            found = self.rounded.get(self.names[id(link.qkv.weight)])
            rows = self.numbers(link.qkv.weight, link.name)[order] if found is None else found.take(order)
            form.pack_into(rows, room)

        return self.matrix(shape, pack, bias, form)

    def delta(self, link: GatedDelta) -> Part:
        delta = link.delta
        return {
            "kind": "delta",
            "first": self.first(link),
            "second": self.second(link),
            "key_heads": delta.key_heads,
            "value_heads": delta.value_heads,
            "key_dim": delta.key_dim,
            "value_dim": delta.value_dim,
            "kernel": delta.kernel,
            "conv": self.data.vector(self.numbers(link.conv.weight, link.name).reshape(-1)),
            "decay": self.data.vector(self.numbers(link.decay, link.name)),
            "step": self.data.vector(self.numbers(link.step, link.name)),
            "head_norm": {
                "rms": True,
                "eps": link.eps,
                "weight": self.data.vector(self.numbers(link.head_norm.weight, link.name)),
                "bias": None,
            },
        }

    def mlp(self, link: MLP) -> Part:
        return {
            "kind": "mlp",
            "first": self.alternating(link) if link.gated else self.first(link),
            "second": self.second(link),
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
            else self.linear(head.output, "head", self.formats.of("head") if decoder else self.small),
            "scale": head.scale,
            "softcap": head.softcap or 0.0,
        }

    def numbers(self, tensor: torch.Tensor, where: str, rows: slice | None = None) -> Floats:
        """float32 on the CPU. Raises InputError where one is not finite: a rounded NaN would look like a number."""
        if self.read is not None:  # which refuses them itself
            read: Floats = self.read(self.names[id(tensor)], rows).float().numpy()
            return read
        return _finite(tensor if rows is None else tensor[rows], where)

    def filled(self, module: M) -> M:
        """A module with its weights, for what is computed of them here."""
        if self.read is None:
            return module
        with_weights = copy.deepcopy(module)
        weights = {name: torch.from_numpy(self.numbers(one, name)) for name, one in module.named_parameters()}
        with_weights.load_state_dict(weights, assign=True)
        return with_weights

    def first(self, link: Link) -> Part:
        return self.linear(link.first, link.name, self.formats.of(f"{link.name}.first"))

    def second(self, link: Link) -> Part:
        return self.linear(link.second, link.name, self.formats.of(f"{link.name}.second"))

    def linear(self, module: nn.Linear, where: str, form: Format) -> Part:
        bias = None if module.bias is None else self.numbers(module.bias, where)
        shape = module.out_features, module.in_features
        found = self.rounded.get(self.names[id(module.weight)])

        def pack(room: Bytes) -> None:
            def part(rows: slice, some: Bytes) -> None:
                form.panels_into(self.numbers(module.weight, where, rows) if found is None else found.part(rows), some)

            together([partial(part, *one) for one in _parts(shape, form.front_into(found, room))])

        return self.matrix(shape, pack, bias, form)

    def alternating(self, link: MLP) -> Part:
        """Gate and up in one."""
        module, where, form = link.up, link.name, self.formats.of(f"{link.name}.first")
        bias = None if module.bias is None else _alternate(self.numbers(module.bias, where)[:, None])[:, 0]
        shape = 2 * round_up(module.out_features // 2, LANES), module.in_features

        def pack(room: Bytes) -> None:
            found = self.rounded.get(self.names[id(module.weight)])
            if found is None:
                form.pack_into(_alternate(self.numbers(module.weight, where)), room)
            else:
                order = _alternate(np.arange(1, module.out_features + 1)[:, None])[:, 0] - 1  # -1: a row of zeros
                form.pack_into(found.take(order), room)

        return self.matrix(shape, pack, bias, form)

    def matrix(self, shape: tuple[int, int], pack: Fill, bias_N: Floats | None, form: Format) -> Part:
        """pack: writes the packed matrix into the bytes that it is given."""
        outputs, inputs = shape
        return {
            "format": form.kind,
            "outputs": outputs,
            "inputs": inputs,
            "offset": self.data.add(form.bytes(*shape), pack),
            "bias": None if bias_N is None else self.data.vector(bias_N),
            **form.options,
        }

    def table(self, module: nn.Embedding | Distances, where: str) -> Part:
        width = 4 if self.small.name == "f32" else 2
        rows, size = module.weight.shape
        offset = self.data.add(rows * size * width, lambda room: _lay_rows(self.numbers(module.weight, where), room))
        return {"format": self.small.name, "rows": rows, "size": size, "offset": offset}

    def norm(self, module: Norm | nn.LayerNorm | None) -> Part | None:
        if module is None:
            return None
        rms = isinstance(module, Norm) and module.rms
        weight = None if module.weight is None else self.numbers(module.weight, "norm")
        if weight is not None and isinstance(module, Norm) and module.unit_offset:
            weight = weight + np.float32(1.0)
        bias = None if module.bias is None else self.numbers(module.bias, "norm")
        return {
            "rms": rms,
            "eps": module.eps,
            "weight": None if weight is None else self.data.vector(weight),
            "bias": None if bias is None else self.data.vector(bias),
        }


def gate_order(heads: int, kv_heads: int, head_dim: int) -> NDArray[np.intp]:
    """Where in torch the rows stand that the engine has as queries, keys, values, gates."""
    pairs = np.arange(2 * heads * head_dim).reshape(heads, 2, head_dim)
    rest = 2 * heads * head_dim + np.arange(2 * kv_heads * head_dim)
    return np.concatenate((pairs[:, 0].reshape(-1), rest, pairs[:, 1].reshape(-1)))


def _parts(shape: tuple[int, int], room: Bytes) -> Iterator[tuple[slice, Bytes]]:
    """The rows of a matrix a part at a time, of whole panels, and the room of each part's packed bytes."""
    outputs, inputs = shape
    panels = rows_of(room, outputs)
    step = max(1, PART // (LANES * inputs))
    for first in range(0, len(panels), step):
        some = panels[first : first + step]
        yield slice(first * LANES, min((first + step) * LANES, outputs)), some.reshape(-1)


def _finite(tensor: torch.Tensor, where: str) -> Floats:
    values: Floats = tensor.detach().to("cpu", torch.float32).numpy()
    if not (np.isfinite(values.min()) and np.isfinite(values.max())):  # NaN where one is, and no copy of the whole
        raise InputError(f"{where} has a weight that is NaN or infinite; restore the checkpoint")
    return values


def _lay_rows(values: Floats, room: Bytes) -> None:
    """A table as it is looked up, row after row: float32, or bfloat16 where there is room for no more."""
    if room.size == values.nbytes:
        room.view(np.float32).reshape(values.shape)[:] = values
        return
    halves = room.view(np.uint16).reshape(values.shape)
    step = max(1, PIECE // values.shape[1])
    for row in range(0, len(values), step):
        halves[row : row + step] = to_halves(values[row : row + step])


def _alternate(both: NDArray[Any]) -> NDArray[Any]:
    """Gate and up, [2N, K] with gate first, as 16 rows of gate, 16 of up, and so on, each padded to 16."""
    gate, up = np.split(both, 2)
    missing = (0, -len(gate) % LANES), (0, 0)
    panels = [np.pad(part, missing).reshape(-1, LANES, both.shape[1]) for part in (gate, up)]
    return np.stack(panels, axis=1).reshape(-1, both.shape[1])
