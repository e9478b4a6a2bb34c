"""The table of formats: how a matrix can be stored, and the paper or file that it follows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from chinchilla_lm.errors import InputError
from chinchilla_lm.native import engine_module
from chinchilla_lm.pack import bf16, f32, int4, int8
from chinchilla_lm.pack.panels import ALIGNMENT, LANES, Bytes, Floats, round_up, rows_of
from chinchilla_lm.pack.sides import side_bytes

# Weights that are packed at a time; measured on SmolLM2-135M: 2^16 … 2^20 take the same time, 2^14 half as much again.
PIECE = 1 << 18


@dataclass(frozen=True, slots=True)
class Format:
    """One way to store a matrix of N outputs × K inputs.

    kind: what native/kernels.h calls it; options: what it needs besides; step: K is padded to a multiple of it; panel:
    bytes of 16 outputs with a padded K; source: whose idea it is.
    """

    name: str
    kind: str
    pack: Callable[..., Bytes]
    unpack: Callable[..., Floats]
    step: int
    panel: Callable[[int], int]
    source: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def bytes(self, outputs: int, inputs: int) -> int:
        """Bytes of a packed matrix, without any data."""
        return round_up(outputs, LANES) // LANES * self.panel(round_up(inputs, self.step))

    def pack_into(self, matrix_NK: Floats, room: Bytes) -> None:
        """Pack [N, K] into room [`bytes`], some panels at a time, so that what lies between stays in the cache."""
        engine = engine_module()
        if self.kind == "bf16" and engine is not None:
            engine.pack_bf16(np.ascontiguousarray(matrix_NK, np.float32), room)
            return
        panels = rows_of(room, len(matrix_NK))
        step = max(1, PIECE // (LANES * matrix_NK.shape[1]))
        for first in range(0, len(panels), step):
            rows = matrix_NK[first * LANES : (first + step) * LANES]
            panels[first : first + step] = rows_of(self.pack(rows, **self.options), len(rows))

    def matches(self, part: Mapping[str, Any]) -> bool:
        """Whether a matrix in a program's header is of this format."""
        return part["format"] == self.kind and all(part.get(key) == value for key, value in self.options.items())


def _grouped(name: str, group: int, asymmetric: bool, source: str, *, four: bool = True) -> Format:
    step = int4.step(group) if four else int8.STEP

    def panel(inputs: int) -> int:
        side = side_bytes(inputs // group) if group else ALIGNMENT
        return inputs * LANES // (2 if four else 1) + side * (2 if asymmetric else 1)

    kind, module = ("int4", int4) if four else ("int8", int8)
    options = {"group": group, "asymmetric": asymmetric}
    return Format(name, kind, module.pack, module.unpack, step, panel, source, options)


FORMATS: dict[str, Format] = {
    one.name: one
    for one in (
        Format("f32", "f32", f32.pack, f32.unpack, f32.STEP, lambda k: 64 * k, "IEEE 754"),
        Format("bf16", "bf16", bf16.pack, bf16.unpack, bf16.STEP, lambda k: 32 * k, "Kalamkar et al. 2019"),
        _grouped("int8", 64, False, "ggml's Q8_0 in groups of 64", four=False),
        _grouped("int8-row", 0, False, "Dettmers et al. 2022, LLM.int8()", four=False),
        _grouped("int4", 32, True, "ggml's Q4_1"),
        _grouped("int4-sym", 32, False, "ggml's Q4_0"),
        _grouped("int4-g64", 64, True, "ggml's Q4_1 in larger groups"),
        _grouped("int4-sym-g64", 64, False, "ggml's Q4_0 in larger groups"),
        _grouped("int4-g128", 128, True, "ggml's Q4_1 in GPTQ's groups"),
        _grouped("int4-sym-g128", 128, False, "ggml's Q4_0 in GPTQ's groups"),
    )
}


def format_named(name: str) -> Format:
    """The format of that name. Raises InputError for one that is not in the table."""
    if name not in FORMATS:
        raise InputError(f"format {name!r} is not one of {', '.join(FORMATS)}; pass one of them")
    return FORMATS[name]
