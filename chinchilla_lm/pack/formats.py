"""The table of formats: how a matrix can be stored, and the paper or file that it follows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from chinchilla_lm.errors import InputError
from chinchilla_lm.pack import bf16, f32, int4, int8
from chinchilla_lm.pack.panels import ALIGNMENT, LANES, Bytes, Floats, round_up


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


def _int4(name: str, group: int, asymmetric: bool, source: str) -> Format:
    def panel(inputs: int) -> int:
        side = round_up(inputs // group * 2 * LANES, ALIGNMENT)
        return inputs * LANES // 2 + side * (2 if asymmetric else 1)

    options = {"group": group, "asymmetric": asymmetric}
    return Format(name, "int4", int4.pack, int4.unpack, int4.step(group), panel, source, options)


FORMATS: dict[str, Format] = {
    one.name: one
    for one in (
        Format("f32", "f32", f32.pack, f32.unpack, f32.STEP, lambda k: 64 * k, "IEEE 754"),
        Format("bf16", "bf16", bf16.pack, bf16.unpack, bf16.STEP, lambda k: 32 * k, "Kalamkar et al. 2019"),
        Format("int8", "int8", int8.pack, int8.unpack, int8.STEP, lambda k: 16 * k + 64, "Dettmers et al. 2022"),
        _int4("int4", 32, True, "ggml's Q4_1"),
        _int4("int4-sym", 32, False, "ggml's Q4_0"),
        _int4("int4-g64", 64, True, "ggml's Q4_1 in larger groups"),
        _int4("int4-sym-g64", 64, False, "ggml's Q4_0 in larger groups"),
        _int4("int4-g128", 128, True, "Frantar et al. 2022, GPTQ's groups"),
        _int4("int4-sym-g128", 128, False, "Frantar et al. 2022, GPTQ's groups"),
    )
}


def format_named(name: str) -> Format:
    """The format of that name. Raises InputError for one that is not in the table."""
    if name not in FORMATS:
        raise InputError(f"format {name!r} is not one of {', '.join(FORMATS)}; pass one of them")
    return FORMATS[name]
