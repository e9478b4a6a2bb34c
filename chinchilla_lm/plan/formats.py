"""The table of formats: what it costs and takes to keep a link in each of them. The standard library only.

A link that stays can be packed in one of several formats, and so can the head of a language model. For each, the table
has the quality that it costs, the time that it takes and the bytes that it has; what dropping costs stands in the cost
table. Units are those of the cost table. A format that does not pay on a link, because one with more bits is as fast
there, has no entry for it.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from chinchilla_lm.errors import InputError
from chinchilla_lm.plan.links import Link, chain
from chinchilla_lm.plan.strict import (
    VERSION,
    check_at_most,
    check_finite,
    check_format,
    check_keys,
    check_known,
    check_version,
    check_whole,
    read,
    write,
)

HEAD = "head"


@dataclass(frozen=True)
class FormatEntry:
    """A link, or the head, kept in one format.

    Args:
        what: the link's name, or `head`.
        format: how its matrices are packed.
        cost: true rise of the metric with this one choice made, in the table's unit.
        low, high: 95 % interval of `cost` over calibration windows.
        time_us: that it takes, in microseconds a pass or request; of the head, with all else that is no link.
        bytes: that it has, packed.
        error: squared error of its weights over their squares.
        measured: whether `cost` was measured; else it is that of a coarser format by the ratio of their errors.

    Raises:
        InputError: a number is not finite or out of its range, or a name is none.
    """

    what: str
    format: str
    cost: float
    low: float
    high: float
    time_us: float
    bytes: int
    error: float
    measured: bool = True

    def __post_init__(self) -> None:
        if self.what != HEAD:
            Link.parse(self.what)
        check_format(self.format, f"format of {self.what}")
        name = f"{self.what} in {self.format}"
        for number in ("cost", "low", "high"):
            check_finite(getattr(self, number), f"{number} of {name}")
        for number in ("time_us", "error"):
            check_finite(getattr(self, number), f"{number} of {name}", least=0)
        check_whole(self.bytes, f"bytes of {name}", 0)
        if self.low > self.high:
            raise InputError(f"low {self.low} of {name} is above high {self.high}; exchange them")


@dataclass(frozen=True)
class Whole:
    """The whole model in one format, which mixes are held against. Raises InputError for a number out of its range."""

    format: str
    time_us: float
    bytes: int

    def __post_init__(self) -> None:
        check_format(self.format, "format of a whole model")
        check_finite(self.time_us, f"time_us of the whole model in {self.format}", least=0)
        check_whole(self.bytes, f"bytes of the whole model in {self.format}", 0)


@dataclass(frozen=True)
class FormatTable:
    """Costs, times and bytes of every link, and of a head, in the formats that pay there.

    Args:
        entries: in the chain's order, the head last; of each, at least one format.
        wholes: the whole model in each format that was timed, whether it pays or not.
        total_us: the whole model as it is served without packing, which speed-ups are against.
        fixed_us: all that is no link, where there is no head among the entries.
        fixed_bytes: all of a program that no entry has.
        shape, tokens, model_sha256, documents_sha256: as in the cost table.

    Raises:
        InputError: a link without an entry, a format twice, or a bad number.
    """

    metric: str
    unit: str
    num_blocks: int
    entries: tuple[FormatEntry, ...]
    wholes: tuple[Whole, ...]
    total_us: float
    fixed_us: float
    fixed_bytes: int
    shape: dict[str, int] = field(hash=False)
    tokens: int
    model_sha256: str
    documents_sha256: str

    def __post_init__(self) -> None:
        check_finite(self.total_us, "total_us", least=0)
        check_finite(self.fixed_us, "fixed_us", least=0)
        check_whole(self.fixed_bytes, "fixed_bytes", 0)
        check_keys(self.shape, {"batch": int, "tokens": int}, "shape", optional={"new_tokens": int})
        check_whole(self.tokens, "tokens", 0)
        check_at_most(self.num_blocks, "num_blocks", len(self.entries), "the number of entries")
        known = [*(link.name for link in chain(self.num_blocks)), HEAD]
        for entry in self.entries:
            check_known((entry.what,), known)
        for name in known[:-1]:
            if name not in self._options:
                raise InputError(f"link {name} is missing from the table of formats; add it in one of them")
        for name, options in self._options.items():
            if len({entry.format for entry in options}) < len(options):
                raise InputError(f"a format of {name} is given twice in the table of formats; leave one")

    @cached_property
    def _options(self) -> dict[str, tuple[FormatEntry, ...]]:
        found: dict[str, list[FormatEntry]] = {}
        for entry in self.entries:
            found.setdefault(entry.what, []).append(entry)
        return {name: tuple(options) for name, options in found.items()}

    @property
    def formats(self) -> tuple[str, ...]:
        """Names of all that pay anywhere, in the table's order."""
        return tuple(dict.fromkeys(entry.format for entry in self.entries))

    @property
    def has_head(self) -> bool:
        """Whether the head is packed in one of the formats."""
        return HEAD in self._options

    def options(self, what: str) -> tuple[FormatEntry, ...]:
        """Those of a link, or of the head. Raises InputError for one that the table does not have."""
        check_known((what,), tuple(self._options))
        return self._options[what]

    def entry(self, what: str, form: str) -> FormatEntry:
        """A link, or the head, in a format. Raises InputError where it is not offered."""
        for entry in self.options(what):
            if entry.format == form:
                return entry
        offered = ", ".join(entry.format for entry in self.options(what))
        raise InputError(f"format {form!r} of {what} is not one of {offered}; take one of them")

    def finest(self, what: str) -> FormatEntry:
        """The one whose weights are nearest to the original's."""
        return min(self.options(what), key=lambda entry: (entry.error, -entry.bytes))

    def time_of(self, formats: Mapping[str, str]) -> float:
        """Predicted microseconds of a model that keeps these links, and a head, in these formats."""
        times = [self.entry(name, form).time_us for name, form in formats.items()]
        return math.fsum([self.fixed_us, *times])

    def bytes_of(self, formats: Mapping[str, str]) -> int:
        """Bytes of its program."""
        return self.fixed_bytes + sum(self.entry(name, form).bytes for name, form in formats.items())

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON objects."""
        rows = {name: [asdict(row) for row in getattr(self, name)] for name in ("entries", "wholes")}
        return {"version": VERSION, **asdict(self), **rows}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "FormatTable":
        """The inverse of `to_dict`. Raises InputError for any key, type, word or version that does not belong."""
        types: dict[str, type] = {one.name: str for one in fields(cls)}
        types |= {"version": int, "num_blocks": int, "tokens": int, "fixed_bytes": int, "shape": dict}
        types |= {"entries": list, "wholes": list, "total_us": float, "fixed_us": float}
        check_keys(data, types, "the table of formats")
        check_version(data, "the table of formats")
        row_types: dict[str, type] = {one.name: float for one in fields(FormatEntry)}
        row_types |= {"what": str, "format": str, "bytes": int, "measured": bool}
        for index, row in enumerate(data["entries"]):
            check_keys(row, row_types, f"entries[{index}]")
        for index, row in enumerate(data["wholes"]):
            check_keys(row, {"format": str, "time_us": float, "bytes": int}, f"wholes[{index}]")
        rest = {key: value for key, value in data.items() if key not in ("version", "entries", "wholes")}
        entries, wholes = (FormatEntry(**row) for row in data["entries"]), (Whole(**row) for row in data["wholes"])
        return cls(**rest, entries=tuple(entries), wholes=tuple(wholes))

    def save(self, path: str | Path) -> None:
        """Write the table as JSON, one entry a line."""
        write(path, self.to_dict())

    @classmethod
    def load(cls, path: str | Path) -> "FormatTable":
        """Read a table. Raises InputError, which names the file, for whatever `from_dict` refuses."""
        return read(path, "table of formats", cls.from_dict)
