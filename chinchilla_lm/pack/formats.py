"""The table of formats: how a matrix can be stored, and the paper or file that it follows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from chinchilla_lm.errors import InputError
from chinchilla_lm.native import engine_module
from chinchilla_lm.pack import bf16, f32, int4, int8
from chinchilla_lm.pack.panels import ALIGNMENT, LANES, Bytes, Floats, round_up, rows_of
from chinchilla_lm.pack.quantized import Quantized
from chinchilla_lm.pack.sides import side_bytes
from chinchilla_lm.pack.uniform import Uniform

# Weights that are packed at a time; measured on SmolLM2-135M: 2^16 … 2^20 take the same time, 2^14 half as much again.
PIECE = 1 << 18


@dataclass(frozen=True, slots=True)
class Format:
    """One way to store a matrix of N outputs × K inputs.

    kind: what native/kernels.h calls it; lay: the bytes of a matrix, of its codes where the format rounds; read: the
    matrix of such bytes, with its outputs and inputs; step: K is padded to a multiple of it; panel: bytes of 16 outputs
    with a padded K; source: whose idea it is; rounding: how weights become codes, where they do.
    """

    name: str
    kind: str
    lay: Callable[[Any], Bytes]
    read: Callable[..., Any]
    step: int
    panel: Callable[[int], int]
    source: str
    rounding: Uniform | None = None

    @property
    def options(self) -> dict[str, Any]:
        """What a program's header says of a matrix besides its kind."""
        how = self.rounding
        return {} if how is None else {"group": how.group, "asymmetric": how.asymmetric}

    def bytes(self, outputs: int, inputs: int) -> int:
        """Bytes of a packed matrix, without any data."""
        return round_up(outputs, LANES) // LANES * self.panel(round_up(inputs, self.step))

    def pack(self, matrix_NK: Floats) -> Bytes:
        """The bytes of a matrix, [N, K] float32."""
        return self.lay(matrix_NK if self.rounding is None else self.rounding.round(matrix_NK))

    def unpack(self, packed: Bytes, outputs: int, inputs: int) -> Floats:
        """What the bytes mean, float32 [N, K]."""
        values: Floats = (
            self.read(packed, outputs, inputs)
            if self.rounding is None
            else self.rounded(packed, outputs, inputs).values()
        )
        return values

    def rounded(self, packed: Bytes, outputs: int, inputs: int) -> Quantized:
        """The codes of the bytes, of a format that rounds."""
        rounded: Quantized = self.read(packed, outputs, inputs, self.rounding)
        return rounded

    def pack_into(self, matrix_NK: Floats | Quantized, room: Bytes) -> None:
        """Pack [N, K], or lay out what is rounded, into room [`bytes`], some panels at a time, so that what lies
        between stays in the cache."""
        engine = engine_module()
        if self.kind == "bf16" and engine is not None:
            engine.pack_bf16(np.ascontiguousarray(matrix_NK, np.float32), room)
            return
        outputs, inputs = matrix_NK.shape
        panels = rows_of(room, outputs)
        step = max(1, PIECE // (LANES * inputs))
        for first in range(0, len(panels), step):
            rows = slice(first * LANES, min((first + step) * LANES, outputs))
            if isinstance(matrix_NK, Quantized):
                packed = self.lay(matrix_NK.part(rows))
            else:
                packed = self.pack(matrix_NK[rows])
            panels[first : first + step] = rows_of(packed, rows.stop - rows.start)

    def matches(self, part: Mapping[str, Any]) -> bool:
        """Whether a matrix in a program's header is of this format."""
        return part["format"] == self.kind and all(part.get(key) == value for key, value in self.options.items())


def _grouped(name: str, how: Uniform, source: str) -> Format:
    four = how.bits == 4
    module, step = (int4, int4.step(how.group)) if four else (int8, int8.STEP)

    def panel(inputs: int) -> int:
        side = side_bytes(inputs // how.group) if how.group else ALIGNMENT
        return inputs * LANES // (2 if four else 1) + side * (2 if how.asymmetric else 1)

    return Format(name, "int4" if four else "int8", module.lay, module.read, step, panel, source, how)


FORMATS: dict[str, Format] = {
    one.name: one
    for one in (
        Format("f32", "f32", f32.lay, f32.read, f32.STEP, lambda k: 64 * k, "IEEE 754"),
        Format("bf16", "bf16", bf16.lay, bf16.read, bf16.STEP, lambda k: 32 * k, "Kalamkar et al. 2019"),
        _grouped("int8", Uniform(8, 64), "ggml's Q8_0 in groups of 64"),
        _grouped("int8-row", Uniform(8, 0), "Dettmers et al. 2022, LLM.int8()"),
        _grouped("int4", Uniform(4, 32, asymmetric=True), "ggml's Q4_1"),
        _grouped("int4-sym", Uniform(4, 32), "ggml's Q4_0"),
        _grouped("int4-g64", Uniform(4, 64, asymmetric=True), "ggml's Q4_1 in larger groups"),
        _grouped("int4-sym-g64", Uniform(4, 64), "ggml's Q4_0 in larger groups"),
        _grouped("int4-g128", Uniform(4, 128, asymmetric=True), "ggml's Q4_1 in GPTQ's groups"),
        _grouped("int4-sym-g128", Uniform(4, 128), "ggml's Q4_0 in GPTQ's groups"),
    )
}


# Tokens of calibration text that solvers read where no number is asked for.
CALIBRATION_TOKENS = 65_536
SOLVERS: dict[str, str] = {
    "round": "each weight to the nearest, by itself",
    "gptq": "Frantar et al. 2023, with scales fitted to the codes; needs calibration data",
}


def format_named(name: str) -> Format:
    """The format of that name. Raises InputError for one that is not in the table."""
    if name not in FORMATS:
        raise InputError(f"format {name!r} is not one of {', '.join(FORMATS)}; pass one of them")
    return FORMATS[name]
