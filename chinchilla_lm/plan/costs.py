"""The cost table: what dropping each link, or each whole block, costs and saves. Everything in it is measured.

Units: cost in the table's `unit` (KL in nats per token, or task loss), time in microseconds per forward pass at the
table's `shape` on its `device`; where the shape has `new_tokens`, per request: the prompt read and so many tokens
written.

The search works with two sums. The *predicted time* of a shortened model is `fixed_us`, all that is not a link, plus
the times of the links it keeps. Its *additive cost* is the sum over what it drops, where a block that was measured as a
whole costs that joint measurement: links of one block cancel each other, and the sum would be wrong in both directions.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

from chinchilla_lm.errors import InputError
from chinchilla_lm.plan.choices import Plan
from chinchilla_lm.plan.links import Link, Norm, chain, pair
from chinchilla_lm.plan.strict import (
    VERSION,
    check_at_most,
    check_chain,
    check_finite,
    check_keys,
    check_known,
    check_one_of,
    check_version,
    check_whole,
    read,
    write,
)


@dataclass(frozen=True)
class CostEntry:
    """The measured effect of dropping one link, or the two links of one block together.

    Args:
        links: one link name, or both of a block in chain order.
        cost: true change of the metric when dropped, in the table's unit.
        low, high: 95 % interval of `cost` over calibration windows.
        time_us: time saved, microseconds per forward pass or request; at least 0.
        norm: what became of the norm in a post-norm model when this was measured; None in a pre-norm model.
        cosine: 1 - cosine similarity of input and output, for the ShortGPT baseline alone; None if not measured.

    Raises:
        InputError: a number is not finite or out of its range, or the links are not one link or one block.
    """

    links: tuple[str, ...]
    cost: float
    low: float
    high: float
    time_us: float
    norm: Norm | None = None
    cosine: float | None = None

    def __post_init__(self) -> None:
        blocks = [Link.parse(name).block for name in self.links]
        if len(blocks) != 1 and (not blocks or self.links != pair(blocks[0])):
            raise InputError(f"links {list(self.links)} are not one link or one block; write 3.attn or 3.attn, 3.mlp")
        for name in ("cost", "low", "high"):
            check_finite(getattr(self, name), f"{name} of {self.what}")
        check_finite(self.time_us, f"time_us of {self.what}", least=0)
        if self.cosine is not None:
            check_finite(self.cosine, f"cosine of {self.what}")
        if self.low > self.high:
            raise InputError(f"low {self.low} of {self.what} is above high {self.high}; exchange them")
        if self.norm is not None:
            check_one_of(self.norm, f"norm of {self.what}", get_args(Norm))

    @property
    def what(self) -> str:
        """For people: `3.attn` or `block 3`."""
        return self.links[0] if len(self.links) == 1 else f"block {Link.parse(self.links[0]).block}"


@dataclass(frozen=True)
class CostTable:
    """Cost and time of every link on one device at one shape. Each link has exactly one entry; a block may have one.

    Args:
        metric, unit: what cost is, such as `kl` in `nats/token`.
        total_us: the whole model: `fixed_us` and every link's time, each the median of its own clock.
        fixed_us: all that is not a link: embedding, final norm, head, overhead.
        shape: {"batch", "tokens"} of the timed pass; of a timed request {"batch", "tokens", "new_tokens"}.
        tokens: calibration tokens behind each cost.
        model_sha256, documents_sha256: what was scored, and on what.
        post_norm: norms stand behind the residual sums, so that every entry says what becomes of its norm.
        backend: what the times are of, `native` or `torch`.

    Raises:
        InputError: a link without an entry or with two, a norm that does not fit `post_norm`, or a bad number.
    """

    metric: str
    unit: str
    num_blocks: int
    entries: tuple[CostEntry, ...]
    total_us: float
    fixed_us: float
    shape: dict[str, int] = field(hash=False)
    device: str
    dtype: str
    tokens: int
    model_sha256: str
    documents_sha256: str
    post_norm: bool = False
    backend: str = "torch"

    def __post_init__(self) -> None:
        check_finite(self.total_us, "total_us", least=0)
        check_finite(self.fixed_us, "fixed_us", least=0)
        check_keys(self.shape, {"batch": int, "tokens": int}, "shape", optional={"new_tokens": int})
        for name, value in self.shape.items():
            check_whole(value, name, 1)
        check_whole(self.tokens, "tokens", 0)
        check_at_most(self.num_blocks, "num_blocks", len(self.entries), "the number of entries")
        singles = [entry.links[0] for entry in self.entries if len(entry.links) == 1]
        check_chain(sorted(singles, key=Link.parse), self.links, "the cost table")
        firsts = [entry.links[0] for entry in self.entries if len(entry.links) == 2]
        for first in firsts:
            check_known((first,), self.links)
            if firsts.count(first) > 1:
                raise InputError(f"block {Link.parse(first).block} has two entries in the cost table; leave one")
        for entry in self.entries:
            self._check_norm(entry)

    def _check_norm(self, entry: CostEntry) -> None:
        if not self.post_norm and entry.norm is not None:
            raise InputError(f"norm {entry.norm!r} of {entry.what} in a pre-norm table; remove it or set post_norm")
        if self.post_norm and entry.norm is None:
            raise InputError(f"norm None of {entry.what} in a post-norm table; say keep or lose")
        if entry.norm == "keep" and len(entry.links) == 2:
            raise InputError(f"norm 'keep' of {entry.what}, but a block dropped whole loses its norms; score it so")

    @cached_property
    def links(self) -> tuple[str, ...]:
        """Names of all links, in chain order."""
        return tuple(link.name for link in chain(self.num_blocks))

    @cached_property
    def _singles(self) -> dict[str, CostEntry]:
        return {entry.links[0]: entry for entry in self.entries if len(entry.links) == 1}

    @cached_property
    def _blocks(self) -> dict[int, CostEntry]:
        return {Link.parse(entry.links[0]).block: entry for entry in self.entries if len(entry.links) == 2}

    @property
    def norms(self) -> dict[str, Norm] | None:
        """What becomes of each link's norm when it is dropped, for `Plan.from_dropped`; None for a pre-norm model."""
        return {name: entry.norm for name, entry in self._singles.items() if entry.norm} if self.post_norm else None

    def entry(self, link: str) -> CostEntry:
        """The entry of one link. Raises InputError for a link the model does not have."""
        check_known((link,), self.links)
        return self._singles[link]

    def cost(self, link: str) -> float:
        """Cost of dropping this link alone from the whole model."""
        return self.entry(link).cost

    def time(self, link: str) -> float:
        """Microseconds saved by dropping this link."""
        return self.entry(link).time_us

    def block(self, block: int) -> CostEntry | None:
        """The entry of a whole block, None where it was not measured. Raises InputError for a block there is not."""
        check_known(pair(block), self.links)
        return self._blocks.get(block)

    def cost_of(self, dropped: Collection[str]) -> float:
        """Additive cost of dropping these links, a whole block at its joint entry; exactly 0.0 for none."""
        check_known(dropped, self.links)
        costs = []
        for block in range(self.num_blocks):
            gone = [name for name in pair(block) if name in dropped]
            joint = self._blocks.get(block) if len(gone) == 2 else None
            costs += [joint.cost] if joint else [self._singles[name].cost for name in gone]
        return math.fsum(costs)

    def predict_us(self, dropped: Collection[str]) -> float:
        """Predicted microseconds without these links: `fixed_us` plus what is kept, rounded once."""
        check_known(dropped, self.links)
        return math.fsum([self.fixed_us, *(self._singles[name].time_us for name in self.links if name not in dropped)])

    def plan_us(self, plan: Plan) -> float:
        """Predicted microseconds of a plan."""
        return self.predict_us(plan.dropped)

    def plan_cost(self, plan: Plan) -> float:
        """Additive cost of a plan."""
        return self.cost_of(plan.dropped)

    def steps(self, plan: Plan) -> tuple[float, int]:
        """The least time that a link takes which the plan drops, 0 where none takes any, and how many it drops."""
        times = [saved for name in plan.dropped if (saved := self.time(name)) > 0]
        return min(times, default=0.0), len(plan.dropped)

    def fastest(self) -> Plan:
        """The plan that drops every link."""
        return Plan.from_dropped(self.num_blocks, self.links, norms=self.norms)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON objects."""
        entries = [{**asdict(entry), "links": list(entry.links)} for entry in self.entries]
        return {"version": VERSION, **asdict(self), "entries": entries}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "CostTable":
        """The inverse of `to_dict`. Raises InputError for any key, type, word or version that does not belong."""
        types: dict[str, type] = {one.name: str for one in fields(cls)}
        types |= {"version": int, "num_blocks": int, "tokens": int, "post_norm": bool, "entries": list, "shape": dict}
        types |= {"total_us": float, "fixed_us": float}
        optional = {"backend": types.pop("backend")}  # tables of the first release have none
        check_keys(data, types, "the cost table", optional=optional)
        check_version(data, "the cost table")
        numbers: dict[str, type] = {"cost": float, "low": float, "high": float, "time_us": float}
        entries = []
        for index, row in enumerate(data["entries"]):
            where = f"entries[{index}]"
            check_keys(row, {"links": list, **numbers}, where, optional={"norm": str, "cosine": float})
            entries.append(CostEntry(**{**row, "links": tuple(row["links"])}))
        rest = {key: value for key, value in data.items() if key not in ("version", "entries")}
        return cls(**rest, entries=tuple(entries))

    def save(self, path: str | Path) -> None:
        """Write the table as JSON, one entry a line."""
        write(path, self.to_dict())

    @classmethod
    def load(cls, path: str | Path) -> "CostTable":
        """Read a cost table. Raises InputError, which names the file, for whatever `from_dict` refuses."""
        return read(path, "cost table", cls.from_dict)
