"""Choices and plans: what becomes of every link of a model.

A plan is a small JSON that a person may edit, so reading it is strict: what is misspelt, doubled, missing or of another
version is refused by name.

Post-norm models (BERT) have a norm *behind* each residual sum, and dropping a link leaves open whether its norm stays.
When both links of a block are dropped, both norms are lost, so that the block is truly absent from an export.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from chinchilla_lm.errors import InputError
from chinchilla_lm.plan.links import Link, Norm, chain, pair
from chinchilla_lm.plan.strict import (
    VERSION,
    check_at_most,
    check_chain,
    check_keys,
    check_known,
    check_one_of,
    check_version,
    read,
    write,
)

Action = Literal["keep", "drop"]


@dataclass(frozen=True)
class Choice:
    """What becomes of one link; `norm` only for a dropped link of a post-norm model.

    Raises:
        InputError: the link, the action or the norm is not one of its words, or a kept link names a norm.
    """

    link: str
    action: Action
    norm: Norm | None = None

    def __post_init__(self) -> None:
        Link.parse(self.link)
        check_one_of(self.action, f"action of {self.link}", get_args(Action))
        if self.norm is not None:
            check_one_of(self.norm, f"norm of {self.link}", get_args(Norm))
        if self.action == "keep" and self.norm is not None:
            raise InputError(f"norm {self.norm!r} of {self.link} stands on a kept link; remove it or drop the link")

    def to_dict(self) -> dict[str, str]:
        row = {"link": self.link, "action": self.action}
        return row if self.norm is None else {**row, "norm": self.norm}


@dataclass(frozen=True)
class Plan:
    """The path chosen through the chain: one choice per link, in chain order, and where it came from.

    `method` is the name of the search, or `manual`; `origin` is plain JSON: budget, predicted time, cost, trace.

    Raises:
        InputError: a link is unknown, doubled, missing or out of order; only some dropped links name a norm; or a
            block is dropped whole while a norm of it is kept.
    """

    num_blocks: int
    choices: tuple[Choice, ...]
    method: str = "manual"
    origin: dict[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        check_at_most(self.num_blocks, "num_blocks", len(self.choices), "the number of choices")
        links = [link.name for link in chain(self.num_blocks)]
        check_chain([choice.link for choice in self.choices], links, "the plan")
        norms = self.norms
        bare = [name for name in self.dropped if name not in norms]
        if bare and norms:
            other = next(iter(norms))
            raise InputError(f"norm is missing of {bare[0]} but given of {other}; say keep or lose of both, or nothing")
        for block in self.dropped_blocks:
            for name in pair(block):
                if norms.get(name) == "keep":
                    raise InputError(f"norm 'keep' of {name}, whose block is dropped whole; set 'lose' for both links")

    @property
    def kept(self) -> tuple[str, ...]:
        """Names of the links that stay, in chain order."""
        return tuple(choice.link for choice in self.choices if choice.action == "keep")

    @property
    def dropped(self) -> tuple[str, ...]:
        """Names of the links that go, in chain order."""
        return tuple(choice.link for choice in self.choices if choice.action == "drop")

    @property
    def dropped_blocks(self) -> tuple[int, ...]:
        """Blocks of which both links go."""
        gone = set(self.dropped)
        return tuple(block for block in range(self.num_blocks) if gone.issuperset(pair(block)))

    @property
    def norms(self) -> dict[str, Norm]:
        """What becomes of the norm of each dropped link; empty for a pre-norm model."""
        return {choice.link: choice.norm for choice in self.choices if choice.norm is not None}

    @classmethod
    def full(cls, num_blocks: int, method: str = "manual", origin: Mapping[str, Any] | None = None) -> "Plan":
        """The plan that drops nothing."""
        return cls.from_dropped(num_blocks, (), method=method, origin=origin)

    @classmethod
    def from_dropped(
        cls,
        num_blocks: int,
        dropped: Collection[str],
        norms: Mapping[str, Norm] | None = None,
        method: str = "manual",
        origin: Mapping[str, Any] | None = None,
    ) -> "Plan":
        """The plan that drops the links named in `dropped`, in any order.

        `norms` is None for a pre-norm model. For a post-norm model it says of each link what becomes of its norm when
        the link is dropped (what it says of kept links has no effect); a block dropped whole loses both norms anyhow.

        Raises:
            InputError: an unknown or doubled link, or a dropped link of which `norms` says nothing.
        """
        links = chain(num_blocks)
        check_known(dropped, [link.name for link in links])
        choices = []
        for link in links:
            if link.name not in dropped:
                choices.append(Choice(link.name, "keep"))
            elif norms is None:
                choices.append(Choice(link.name, "drop"))
            elif set(dropped).issuperset(pair(link.block)):
                choices.append(Choice(link.name, "drop", "lose"))
            elif link.name in norms:
                choices.append(Choice(link.name, "drop", norms[link.name]))
            else:
                raise InputError(f"dropped link {link.name} is not in norms; say there keep or lose")
        return cls(num_blocks, tuple(choices), method, dict(origin or {}))

    def strip(self) -> str:
        """A drawing in one line, two characters a block: A and M for a kept attention and MLP, · for a dropped one."""
        letters = {"attn": "A", "mlp": "M"}
        gone = set(self.dropped)
        return "".join("·" if link.name in gone else letters[link.kind] for link in chain(self.num_blocks))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON objects; `origin` is not copied."""
        rows = [choice.to_dict() for choice in self.choices]
        head = {"version": VERSION, "num_blocks": self.num_blocks, "method": self.method}
        return {**head, "choices": rows, "origin": self.origin}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Plan":
        """The inverse of `to_dict`. Raises InputError for any key, type, word or version that does not belong."""
        types = {"version": int, "num_blocks": int, "method": str, "choices": list, "origin": dict}
        check_keys(data, types, "the plan")
        check_version(data, "the plan")
        choices = []
        for index, row in enumerate(data["choices"]):
            check_keys(row, {"link": str, "action": str}, f"choices[{index}]", optional={"norm": str})
            choices.append(Choice(row["link"], row["action"], row.get("norm")))
        return cls(data["num_blocks"], tuple(choices), data["method"], data["origin"])

    def save(self, path: str | Path) -> None:
        """Write the plan as JSON, one choice a line. Raises InputError where the origin is not plain, finite JSON."""
        write(path, self.to_dict())

    @classmethod
    def load(cls, path: str | Path) -> "Plan":
        """Read a plan. Raises InputError, which names the file, for whatever `from_dict` refuses."""
        return read(path, "plan", cls.from_dict)
