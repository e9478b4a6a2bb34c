"""Choices and plans: what becomes of every link of a model.

A plan is a small JSON that a person may edit, so reading it is strict: what is misspelt, doubled, missing or of another
version is refused by name.

Post-norm models (BERT) have a norm *behind* each residual sum, and dropping a link leaves open whether its norm stays.
When both links of a block are dropped, both norms are lost, so that the block is truly absent from an export.

A plan may also say in which format each link is packed that stays, and the head of a language model: of all or of none.
Such a plan has version 2 of the layout; one without formats is written as version 1, which earlier releases read.
"""

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

from chinchilla_lm.errors import InputError
from chinchilla_lm.plan.links import Link, Norm, chain, pair
from chinchilla_lm.plan.strict import (
    VERSION,
    check_at_most,
    check_chain,
    check_format,
    check_keys,
    check_known,
    check_one_of,
    check_version,
    read,
    write,
)

Action = Literal["keep", "drop"]
WITH_FORMATS = 2  # version of a plan that says how its links are packed


@dataclass(frozen=True)
class Choice:
    """What becomes of one link; `norm` only for a dropped link of a post-norm model, `format` only for a kept one.

    Raises:
        InputError: the link, the action, the norm or the format is not one of its words, a kept link names a norm, or a
            dropped one a format.
    """

    link: str
    action: Action
    norm: Norm | None = None
    format: str | None = None

    def __post_init__(self) -> None:
        Link.parse(self.link)
        check_one_of(self.action, f"action of {self.link}", get_args(Action))
        if self.norm is not None:
            check_one_of(self.norm, f"norm of {self.link}", get_args(Norm))
        if self.action == "keep" and self.norm is not None:
            raise InputError(f"norm {self.norm!r} of {self.link} stands on a kept link; remove it or drop the link")
        if self.format is not None:
            check_format(self.format, f"format of {self.link}")
            if self.action == "drop":
                raise InputError(f"format {self.format!r} of {self.link} is on a dropped link; remove it or keep it")

    def to_dict(self) -> dict[str, str]:
        row = {"link": self.link, "action": self.action, "norm": self.norm, "format": self.format}
        return {key: value for key, value in row.items() if value is not None}


@dataclass(frozen=True)
class Plan:
    """The path chosen through the chain: one choice per link, in chain order, and where it came from.

    `method` is the name of the search, or `manual`; `origin` is plain JSON: budget, predicted time, cost, trace.
    `head` is the format of a language model's decoder, where the plan has formats.

    Raises:
        InputError: a link is unknown, doubled, missing or out of order; only some dropped links name a norm, or only
            some kept ones a format; or a block is dropped whole while a norm of it is kept.
    """

    num_blocks: int
    choices: tuple[Choice, ...]
    method: str = "manual"
    origin: dict[str, Any] = field(default_factory=dict, hash=False)
    head: str | None = None

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
        self._check_formats()

    def _check_formats(self) -> None:
        if self.head is not None:
            check_format(self.head, "head")
        bare = [choice.link for choice in self.choices if choice.action == "keep" and choice.format is None]
        if bare and self.packed:
            other = "the head" if self.head is not None else next(iter(self.formats))
            raise InputError(f"format is missing of {bare[0]} but given of {other}; give one of both, or of none")

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

    @property
    def formats(self) -> dict[str, str]:
        """How each link that stays is packed, in chain order; empty for a plan without formats."""
        return {choice.link: choice.format for choice in self.choices if choice.format is not None}

    @property
    def packed(self) -> bool:
        """Whether the plan says how the model is packed."""
        return self.head is not None or bool(self.formats)

    @property
    def format(self) -> str | None:
        """How a packed model's format is written (`pack.mixed`): that of most links first, then the others by name."""
        if not self.packed:
            return None
        found = Counter(self.formats.values())
        most = found.most_common(1)[0][0] if found else str(self.head)
        others = [f"{name}={form}" for name, form in self.formats.items() if form != most]
        return ",".join([most, *others, *([] if self.head in (None, most) else [f"head={self.head}"])])

    def packed_as(self, formats: Mapping[str, str], head: str | None = None) -> "Plan":
        """The same plan with a format for every link that it keeps (what is said of dropped ones has no effect), and
        for a head. Raises InputError where one of a kept link is missing."""
        choices = tuple(
            replace(choice, format=formats.get(choice.link)) if choice.action == "keep" else choice
            for choice in self.choices
        )
        return replace(self, choices=choices, head=head)

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
        top: dict[str, Any] = {"version": VERSION, "num_blocks": self.num_blocks, "method": self.method}
        if self.packed:
            top |= {"version": WITH_FORMATS, "head": self.head}
        return {**top, "choices": rows, "origin": self.origin}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Plan":
        """The inverse of `to_dict`. Raises InputError for any key, type, word or version that does not belong."""
        types = {"version": int, "num_blocks": int, "method": str, "choices": list, "origin": dict}
        check_keys(data, types, "the plan", optional={"head": str})
        check_version(data, "the plan", (VERSION, WITH_FORMATS))
        choices = []
        for index, row in enumerate(data["choices"]):
            optional = {"norm": str, "format": str}
            check_keys(row, {"link": str, "action": str}, f"choices[{index}]", optional=optional)
            choices.append(Choice(row["link"], row["action"], row.get("norm"), row.get("format")))
        plan = cls(data["num_blocks"], tuple(choices), data["method"], data["origin"], data.get("head"))
        if plan.packed != (data["version"] == WITH_FORMATS):
            rule = f"with formats has version {WITH_FORMATS}, one without {VERSION}"
            raise InputError(f"version {data['version']} of the plan: one {rule}; correct it")
        return plan

    def save(self, path: str | Path) -> None:
        """Write the plan as JSON, one choice a line. Raises InputError where the origin is not plain, finite JSON."""
        write(path, self.to_dict())

    @classmethod
    def load(cls, path: str | Path) -> "Plan":
        """Read a plan. Raises InputError, which names the file, for whatever `from_dict` refuses."""
        return read(path, "plan", cls.from_dict)
