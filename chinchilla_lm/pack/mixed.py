"""Which format each matrix of a model has: one for all, and others for those that are named.

    int4                          all in int4
    int4,head=int8                the decoder, and the embedding that it shares, in 8 bits
    int8-row,*.second=int8        all that writes into the stream with a scale for each group of inputs
    int4,0.*=int8,5.mlp=bf16      a whole block, or one link

A matrix is named by its link and its place: `3.attn.first` makes queries, keys and values, `3.attn.second` the output,
`3.mlp.first` gate and up, `3.mlp.second` down; and `head`. A link stands for both of its matrices, `*` for any text. Of
several that name a matrix the last one counts.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

from chinchilla_lm.errors import InputError
from chinchilla_lm.pack.formats import FORMATS, Format, format_named
from chinchilla_lm.plan import Plan


@dataclass(frozen=True, slots=True)
class Mixed:
    """default: of all matrices that no pattern of `others` names."""

    default: Format
    others: tuple[tuple[str, Format], ...] = ()

    def of(self, matrix: str) -> Format:
        """The format of a matrix."""
        named = [form for pattern, form in self.others if _names(pattern, matrix)]
        return named[-1] if named else self.default

    def all(self) -> list[Format]:
        """Those that are named, each once."""
        return list(dict.fromkeys([self.default, *(form for _, form in self.others)]))

    def check(self, matrices: Iterable[str]) -> None:
        """Raises InputError for a pattern that names none of the model's matrices."""
        known = list(matrices)
        for pattern, _ in self.others:
            if not any(_names(pattern, one) for one in known):
                names = f"whose matrices are {known[0]} … {known[-1]}" if known else "which has none"
                raise InputError(f"{pattern!r} names no matrix of this model, {names}; correct it")

    def __str__(self) -> str:
        return ",".join([self.default.name, *(f"{pattern}={form.name}" for pattern, form in self.others)])


def mixed(text: str) -> Mixed:
    """The formats that a text asks for. Raises InputError for an unknown format, or one that has no name before it."""
    first, *rest = (part.strip() for part in text.split(","))
    others: list[tuple[str, Format]] = []
    for part in rest:
        pattern, equals, name = part.partition("=")
        if not equals or not pattern:
            raise InputError(f"{part!r} in format {text!r} is not MATRIX=FORMAT, such as head=int8; correct it")
        if any(pattern == earlier for earlier, _ in others):
            raise InputError(f"{pattern!r} stands twice in format {text!r}; leave one away")
        others.append((pattern, format_named(name)))
    return Mixed(format_named(first), tuple(others))


def mixed_of(plan: Plan) -> Mixed | None:
    """The formats of a plan; None for one that has none. Raises InputError for a format that is not in the table."""
    for what, name in [*plan.formats.items(), *([] if plan.head is None else [("head", plan.head)])]:
        if name not in FORMATS:
            raise InputError(f"format {name!r} of {what} in the plan is not one of {', '.join(FORMATS)}; correct it")
    return None if plan.format is None else mixed(plan.format)


def _names(pattern: str, matrix: str) -> bool:
    return fnmatchcase(matrix, pattern) or fnmatchcase(matrix.rpartition(".")[0], pattern)
