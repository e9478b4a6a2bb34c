"""The table of formats: how a matrix can be stored, and the paper or file that it follows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from chinchilla_lm.errors import InputError
from chinchilla_lm.native import engine_module
from chinchilla_lm.pack import bf16, codes, f32, int4, int8
from chinchilla_lm.pack.codebook import Codebook
from chinchilla_lm.pack.panels import ALIGNMENT, LANES, Bytes, Floats, round_up, rows_of
from chinchilla_lm.pack.quantized import Quantized
from chinchilla_lm.pack.sides import side_bytes
from chinchilla_lm.pack.sparse import Sparse
from chinchilla_lm.pack.uniform import Uniform

# Weights that are packed at a time; measured on SmolLM2-135M: 2^16 … 2^20 take the same time, 2^14 half as much again.
PIECE = 1 << 18


# How weights become codes, each by itself: `round` of a matrix, and what a program's header says of it, `options`.
Rounding = Uniform | Codebook | Sparse


@dataclass(frozen=True, slots=True)
class Format:
    """One way to store a matrix of N outputs × K inputs.

    kind: what native/kernels.h calls it; lay: the panels of a matrix, of its codes where the format rounds; read: the
    matrix of its bytes, with its outputs and inputs; step: K is padded to a multiple of it; panel: bytes of 16 outputs
    with a padded K; source: whose idea it is; rounding: how weights become codes, where they do; front: bytes in front
    of the panels, of a codebook that they share, which `lay_front` makes.
    """

    name: str
    kind: str
    lay: Callable[[Any], Bytes]
    read: Callable[..., Any]
    step: int
    panel: Callable[[int], int]
    source: str
    rounding: Rounding | None = None
    front: int = 0
    lay_front: Callable[[Any], Bytes] | None = None

    @property
    def options(self) -> dict[str, Any]:
        """What a program's header says of a matrix besides its kind."""
        return {} if self.rounding is None else self.rounding.options

    def bytes(self, outputs: int, inputs: int) -> int:
        """Bytes of a packed matrix, without any data."""
        return self.front + round_up(outputs, LANES) // LANES * self.panel(round_up(inputs, self.step))

    def pack(self, matrix_NK: Floats | Quantized) -> Bytes:
        """The bytes of a matrix, [N, K] float32, or of one that is rounded."""
        outputs, inputs = matrix_NK.shape
        room = np.empty(self.bytes(outputs, inputs), np.uint8)
        self.pack_into(matrix_NK, room)
        return room

    def unpack(self, packed: Bytes, outputs: int, inputs: int) -> Floats:
        """What the bytes mean, float32 [N, K]."""
        values: Floats = (
            self.read(packed, outputs, inputs)
            if self.rounding is None
            else self.rounded(packed, outputs, inputs).values()
        )
        return values

    def meant(self, matrix_NK: Floats) -> Floats:
        """What a matrix becomes in this format, each weight by itself, float32 [N, K]."""
        if self.rounding is not None:
            return self.rounding.round(matrix_NK).values()
        return self.unpack(self.pack(matrix_NK), *matrix_NK.shape)

    def rounded(self, packed: Bytes, outputs: int, inputs: int) -> Quantized:
        """The codes of the bytes, of a format that rounds."""
        rounded: Quantized = self.read(packed, outputs, inputs, self.rounding)
        return rounded

    def pack_into(self, matrix_NK: Floats | Quantized, room: Bytes) -> None:
        """Pack [N, K], or lay out what is rounded, into room [`bytes`]."""
        self.panels_into(matrix_NK, self.front_into(matrix_NK if isinstance(matrix_NK, Quantized) else None, room))

    def front_into(self, rounded: Quantized | None, room: Bytes) -> Bytes:
        """Write what the panels share, of a rounded matrix or what is used without data, and give the panels' room."""
        if self.lay_front is not None:
            room[: self.front] = self.lay_front(rounded)
        return room[self.front :]

    def panels_into(self, matrix_NK: Floats | Quantized, room: Bytes) -> None:
        """Pack or lay out some panels at a time, so that what lies between stays in the cache."""
        engine = engine_module()
        if self.kind == "bf16" and engine is not None:
            engine.pack_bf16(np.ascontiguousarray(matrix_NK, np.float32), room)
            return
        outputs, inputs = matrix_NK.shape
        panels = rows_of(room, outputs)
        step = max(1, PIECE // (LANES * inputs))
        for first in range(0, len(panels), step):
            rows = slice(first * LANES, min((first + step) * LANES, outputs))
            some = matrix_NK.part(rows) if isinstance(matrix_NK, Quantized) else matrix_NK[rows]
            if self.rounding is not None and not isinstance(some, Quantized):
                some = self.rounding.round(some)
            panels[first : first + step] = rows_of(self.lay(some), rows.stop - rows.start)

    def matches(self, part: Mapping[str, Any]) -> bool:
        """Whether a matrix in a program's header is of this format."""
        return part["format"] == self.kind and all(part.get(key) == value for key, value in self.options.items())


def _even(name: str, how: Uniform, source: str) -> Format:
    four = how.bits == 4
    module, step = (int4, int4.step(how.group)) if four else (int8, int8.STEP)

    def panel(inputs: int) -> int:
        side = side_bytes(inputs // how.group) if how.group else ALIGNMENT
        return inputs * LANES // (2 if four else 1) + side * (2 if how.asymmetric else 1)

    return Format(name, "int4" if four else "int8", module.lay, module.read, step, panel, source, how)


def _codes(name: str, how: Codebook | Sparse, source: str) -> Format:
    def lay_front(rounded: Quantized | None) -> Bytes:
        return codes.lay_codebook(how.begun() if rounded is None else rounded.codebook_ED, how)

    def panel(inputs: int) -> int:
        return codes.panel_bytes(inputs, how)

    lay, front = partial(codes.lay, how=how), codes.codebook_bytes(how)
    return Format(name, "codes", lay, codes.read, codes.step(how), panel, source, how, front, lay_front)


GPTVQ, HIGGS = "van Baalen et al. 2024, GPTVQ", "Malinovskii et al. 2024, HIGGS"
FORMATS: dict[str, Format] = {
    one.name: one
    for one in (
        Format("f32", "f32", f32.lay, f32.read, f32.STEP, lambda k: 64 * k, "IEEE 754"),
        Format("bf16", "bf16", bf16.lay, bf16.read, bf16.STEP, lambda k: 32 * k, "Kalamkar et al. 2019"),
        _even("int8", Uniform(8, 64), "ggml's Q8_0 in groups of 64"),
        _even("int8-row", Uniform(8, 0), "Dettmers et al. 2022, LLM.int8()"),
        _even("int4", Uniform(4, 32, asymmetric=True), "ggml's Q4_1"),
        _even("int4-sym", Uniform(4, 32), "ggml's Q4_0"),
        _even("int4-g64", Uniform(4, 64, asymmetric=True), "ggml's Q4_1 in larger groups"),
        _even("int4-sym-g64", Uniform(4, 64), "ggml's Q4_0 in larger groups"),
        _even("int4-g128", Uniform(4, 128, asymmetric=True), "ggml's Q4_1 in GPTQ's groups"),
        _even("int4-sym-g128", Uniform(4, 128), "ggml's Q4_0 in GPTQ's groups"),
        _codes("int3", Codebook(1, 8, 64, even=True), "Frantar et al. 2023, GPTQ"),
        _codes("codebook-1x16", Codebook(1, 16, 64), "Dettmers et al. 2023, QLoRA's NF4, its levels learned"),
        _codes("codebook-2x256", Codebook(2, 256, 64), GPTVQ),
        _codes("codebook-1x8", Codebook(1, 8, 64), HIGGS),
        _codes("codebook-2x64", Codebook(2, 64, 64), GPTVQ),
        _codes("codebook-2x16", Codebook(2, 16, 64), GPTVQ),
        _codes("codebook-4x256", Codebook(4, 256, 64), GPTVQ),
        _codes("codebook-4x256-row", Codebook(4, 256, 0), GPTVQ),
        _codes("sparse-50", Sparse(32, 64), "Frantar and Alistarh 2023, SparseGPT"),
        _codes("sparse-2of4", Sparse(32, 64, of_four=2), "Mishra et al. 2021"),
        _codes("sparse-50-codebook", Sparse(32, 64, entries=16), "one-hot codes of what is kept"),
        _codes("sparse-75-codebook", Sparse(16, 64, entries=16), "one-hot codes of what is kept"),
    )
}


def format_of(part: Mapping[str, Any]) -> Format:
    """The format of a matrix in a program's header, the first of those that lay it out so: int3 and codebook-1x8, or
    sparse-50 and sparse-2of4, cannot be told apart, and read the same. Raises InputError for one that is none."""
    found = next((one for one in FORMATS.values() if one.matches(part)), None)
    if found is None:
        raise InputError(f"a matrix is of no known format ({part.get('format')!r}); run chinchilla pack again")
    return found


# Tokens of calibration text that solvers read where no number is asked for.
CALIBRATION_TOKENS = 65_536
SOLVERS: dict[str, str] = {
    "round": "each weight to the nearest, by itself",
    "gptq": "Frantar et al. 2023, with scales fitted to the codes; of codebooks GPTVQ, of sparse formats ALPS; needs "
    "calibration data",
}


def format_named(name: str) -> Format:
    """The format of that name. Raises InputError for one that is not in the table."""
    if name not in FORMATS:
        raise InputError(f"format {name!r} is not one of {', '.join(FORMATS)}; pass one of them")
    return FORMATS[name]
