"""Program → model: the torch twin of a packed model, whose weights are what the packed ones mean.

The twin rounds weights as the engine does, but not the inputs of its products: it is what a format costs by itself, and
it runs where the engine does not. An export takes the codes besides, which other programs' formats hold as they are.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from chinchilla_lm.errors import InputError
from chinchilla_lm.models.checkpoint import Checkpoint, describe
from chinchilla_lm.models.filling import EMBEDDING, OUTPUT, skeleton
from chinchilla_lm.models.relative import bucket
from chinchilla_lm.models.source import locate
from chinchilla_lm.models.transformer import Transformer
from chinchilla_lm.pack.bf16 import from_halves
from chinchilla_lm.pack.formats import FORMATS
from chinchilla_lm.pack.panels import ALIGNMENT, LANES, Floats, round_up
from chinchilla_lm.pack.quantized import Quantized
from chinchilla_lm.runtime.engine.compile import gate_order
from chinchilla_lm.runtime.engine.packed import PROGRAM, read_packed
from chinchilla_lm.runtime.engine.program import Program


def unpack_checkpoint(path: str | Path, task: str | None = None) -> Checkpoint:
    """The torch twin of a packed model's folder. Raises InputError for a damaged one, or one for another task."""
    return unpack_with_codes(path, task)[0]


def unpack_with_codes(path: str | Path, task: str | None = None) -> tuple[Checkpoint, dict[str, Quantized]]:
    """The twin, and the codes of its rounded matrices, by the names of its parameters. Raises InputError likewise."""
    program, card = read_packed(path)
    located = locate(path)
    if task not in (None, card.kind):
        raise InputError(f"this packed model is for {card.kind}, not {task}; load another one")
    about = describe(located, card.hf_config, card.kind)
    model = skeleton(about.config, about.dropped)
    try:
        found = _State(program, model)
        state = found.tensors()
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:  # a part of another type
        raise InputError(
            f"the program in {path} does not fit its config ({error}); run chinchilla pack again"
        ) from error
    model.load_state_dict(state, assign=True)
    model.tie()
    files = (located.folder / PROGRAM, located.folder / "config.json")
    return about.checkpoint(model.eval(), located, (), files), found.codes


class _State:
    """A program's parts as the tensors of a model."""

    def __init__(self, program: Program, model: Transformer) -> None:
        self.program, self.model = program, model
        self.found: dict[str, Tensor] = {}
        self.codes: dict[str, Quantized] = {}

    def tensors(self) -> dict[str, Tensor]:
        """By name, each of the shape that the model has there."""
        header = self.program.header
        self._same_head(header["head"])
        self._embedding(header["embedding"])
        self._relative(header["relative"])
        if header["distances"] is not None:
            self._put("embedding.distances.weight", self._table(header["distances"]["embeddings"]))
            self._norm("embedding.distances.norm", header["distances"]["norm"])
        for operation in header["operations"]:
            self._operation(operation)
        self._head(header["head"])
        wanted = self.model.state_dict()
        if missing := sorted(wanted.keys() - self.found.keys()):
            raise ValueError(f"{missing[0]} is missing")
        for name, like in wanted.items():
            if self.found[name].shape != like.shape:
                raise ValueError(f"{name} is {tuple(self.found[name].shape)}, not {tuple(like.shape)}")
        return {name: self.found[name] for name in wanted}

    def _same_head(self, part: dict[str, Any]) -> None:
        """The model pools as its config says: so must the program."""
        head = self.model.config.head
        pools = head.kind not in ("language-modeling", "token-classification")
        wanted = (head.pooling if pools else "none", head.kind == "embedding" and head.normalize)
        if (part["pooling"], part["normalize"]) != wanted:
            raise ValueError(f"pooling is {part['pooling']!r} and normalize {part['normalize']!r}, not {wanted}")

    def _embedding(self, part: dict[str, Any]) -> None:
        for name in ("tokens", "positions", "segments"):
            if part[name] is not None:
                self._put(f"embedding.{name}.weight", self._table(part[name]))
        self._norm("embedding.norm", part["norm"])
        if part["project"] is not None:
            self._linear("embedding.project", part["project"])

    def _relative(self, part: dict[str, Any] | None) -> None:
        """A bucket's row is what any of its distances has; one that no two positions have stays 0."""
        if part is None:
            return
        config, positions = self.model.config, part["positions"]
        if positions < config.max_positions:
            raise ValueError(f"the bias of positions is for {positions} positions, not {config.max_positions}")
        pitch = round_up(2 * positions + LANES, LANES)
        values = self._floats(part["offset"], part["heads"] * pitch).reshape(part["heads"], pitch)
        table = np.zeros((config.relative_buckets, part["heads"]), np.float32)
        distances = torch.arange(1 - positions, positions)
        buckets = bucket(distances, config.relative_buckets, config.relative_distance)
        table[buckets.numpy()] = values[:, : len(distances)].T
        self._put("embedding.relative.weight", table)

    def _operation(self, part: dict[str, Any]) -> None:
        link = f"links.{part['name'].replace('.', '_')}"
        self._norm(f"{link}.norm", part["norm"])
        if part["kind"] == "norm":
            return
        self._norm(f"{link}.norm_after", part["after"])
        attention = part["kind"] == "attention"
        first, second = {"attention": ("qkv", "out"), "delta": ("inner", "out")}.get(part["kind"], ("up", "down"))
        self._linear(f"{link}.{second}", part["second"])
        self._linear(f"{link}.{first}", part["first"])
        if attention:
            for name in ("key", "query"):
                if part[f"{name}_matrix"] is not None:
                    self._linear(f"{link}.distance_{name}", part[f"{name}_matrix"])
            self._norm(f"{link}.q_norm", part["query_norm"])
            self._norm(f"{link}.k_norm", part["key_norm"])
            if part["gated_heads"]:
                self._gates(f"{link}.{first}", part)
        elif part["kind"] == "delta":
            self._delta(link, part)
        elif part["gated"]:
            panels = np.arange(part["first"]["outputs"]).reshape(-1, 2, LANES).swapaxes(0, 1)
            self._reorder(f"{link}.{first}", panels.reshape(2, -1)[:, : part["second"]["inputs"]].reshape(-1))

    def _gates(self, name: str, part: dict[str, Any]) -> None:
        """Each head's gate back behind its query."""
        heads, kv_heads, size, rows = part["heads"], part["kv_heads"], part["head_dim"], part["first"]["outputs"]
        if 2 * (heads + kv_heads) * size != rows:  # before there is an order of so many rows
            raise ValueError(f"{name} has {rows} rows, not 2 · ({heads} + {kv_heads}) · {size}")
        self._reorder(name, np.argsort(gate_order(heads, kv_heads, size)))

    def _reorder(self, name: str, rows: NDArray[np.intp]) -> None:
        """The outputs of a matrix in the model's order."""
        for one in (f"{name}.weight", f"{name}.bias"):
            if one in self.found:
                self._put(one, self.found[one].numpy()[rows])
            if one in self.codes:
                self.codes[one] = self.codes[one].take(rows)

    def _delta(self, link: str, part: dict[str, Any]) -> None:
        self._norm(f"{link}.head_norm", part["head_norm"], unit_offset=False)
        features = 2 * part["key_heads"] * part["key_dim"] + part["value_heads"] * part["value_dim"]
        self._put(f"{link}.conv.weight", self._floats(part["conv"], features * part["kernel"]).reshape(features, 1, -1))
        for name in ("decay", "step"):
            self._put(f"{link}.{name}", self._floats(part[name], part["value_heads"]))

    def _head(self, part: dict[str, Any]) -> None:
        self._norm("norm", part["norm"])
        self._norm("head.transform_norm", part["transform"])
        for name in ("dense", "output"):
            if part[name] is not None:
                self._linear(f"head.{name}", part[name])
        if EMBEDDING not in self.found:
            self.found[EMBEDDING] = self.found[OUTPUT]
            if OUTPUT in self.codes:
                self.codes[EMBEDDING] = self.codes[OUTPUT]

    def _norm(self, name: str, part: dict[str, Any] | None, unit_offset: bool = True) -> None:
        if part is None:
            return
        like = self.model.state_dict().get(f"{name}.weight")
        for key in ("weight", "bias"):
            if part[key] is not None and like is not None:
                values = self._floats(part[key], like.shape[0])
                offset = key == "weight" and self.model.config.norm_unit_offset and unit_offset
                self._put(f"{name}.{key}", values - np.float32(1.0) if offset else values)

    def _linear(self, name: str, part: dict[str, Any]) -> None:
        form = next((one for one in FORMATS.values() if one.matches(part)), None)
        if form is None:
            raise ValueError(f"{name}: no format is {part.get('format')!r} with groups of {part.get('group')!r}")
        outputs, inputs = part["outputs"], part["inputs"]
        packed = self._bytes(part["offset"], form.bytes(outputs, inputs))
        if form.rounding is None:
            self._put(f"{name}.weight", form.unpack(packed, outputs, inputs))
        else:
            self.codes[f"{name}.weight"] = rounded = form.rounded(packed, outputs, inputs)
            self._put(f"{name}.weight", rounded.values())
        if part["bias"] is not None:
            self._put(f"{name}.bias", self._floats(part["bias"], outputs))

    def _table(self, part: dict[str, Any]) -> Floats:
        count = part["rows"] * part["size"]
        if part["format"] == "f32":
            values = self._floats(part["offset"], count)
        else:
            values = from_halves(self._bytes(part["offset"], 2 * count).view(np.uint16))
        return values.reshape(part["rows"], part["size"])

    def _floats(self, offset: int, count: int) -> Floats:
        return self._bytes(offset, 4 * count).view(np.float32)

    def _bytes(self, offset: int, count: int) -> NDArray[np.uint8]:
        if not 0 <= offset <= offset + count <= self.program.data.size or offset % ALIGNMENT:
            raise ValueError(f"{count} bytes at {offset} are outside the program, or not on {ALIGNMENT} bytes")
        return self.program.data[offset : offset + count]

    def _put(self, name: str, values: Floats) -> None:
        self.found[name] = torch.from_numpy(np.array(values, np.float32))
