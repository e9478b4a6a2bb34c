"""Links: the residual sublayers of a model, and their names.

A model with L blocks is a chain of 2L links, `0.attn`, `0.mlp`, `1.attn` … A link is named for good by the block it
came from, so removed links leave gaps in the names; only an export renumbers.
"""

import re
from dataclasses import dataclass
from typing import Literal, cast, get_args

from chinchilla_lm.errors import InputError
from chinchilla_lm.plan.strict import check_one_of, check_whole

Kind = Literal["attn", "mlp"]
Norm = Literal["keep", "lose"]

_NAME = re.compile(r"(0|[1-9][0-9]*)\.(attn|mlp)")


@dataclass(frozen=True, order=True)
class Link:
    """One residual sublayer. Links sort in chain order.

    Raises:
        InputError: the block is not a whole number from 0, or the kind is neither `attn` nor `mlp`.
    """

    block: int
    kind: Kind

    def __post_init__(self) -> None:
        check_whole(self.block, "block", 0)
        check_one_of(self.kind, "kind", get_args(Kind))

    @property
    def name(self) -> str:
        """Such as `12.attn`."""
        return f"{self.block}.{self.kind}"

    @property
    def position(self) -> int:
        """Index in the chain, 0 … 2L-1."""
        return 2 * self.block + (self.kind == "mlp")

    @classmethod
    def parse(cls, name: str) -> "Link":
        """The link called `name`. Raises InputError for any other form than BLOCK.attn and BLOCK.mlp."""
        found = _NAME.fullmatch(name) if isinstance(name, str) else None
        if found is None:
            raise InputError(f"link {name!r} is not BLOCK.attn or BLOCK.mlp; write it like 12.attn")
        return cls(int(found[1]), cast(Kind, found[2]))


def chain(num_blocks: int) -> tuple[Link, ...]:
    """All 2L links of a model with `num_blocks` blocks, first to last. Raises InputError below one block."""
    check_whole(num_blocks, "num_blocks", 1)
    return tuple(Link(block, kind) for block in range(num_blocks) for kind in get_args(Kind))


def pair(block: int) -> tuple[str, str]:
    """The names of the two links of a block."""
    return f"{block}.attn", f"{block}.mlp"
