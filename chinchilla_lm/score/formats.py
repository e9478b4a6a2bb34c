"""The table of formats: of every link, and a head, which formats pay on this machine, and what each of them costs.

A format is offered where its kernel pays: where one with more bits is as fast, the coarser one is of no use, unless
bytes are short. What is offered has its cost measured, by true replacement of the weights, from the coarsest down. What
a format costs grows with the squared relative error of its weights (the linearity theorem of HIGGS, Malinovskii et al.,
arXiv 2411.17525), which need not be measured on text. So the cost of a format whose error is close to that of one just
measured, or so small that a thousand positions tell little of it, is taken by the ratio of the errors; the entry says
so, and every plan that is chosen is measured as a whole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from chinchilla_lm.console import Console
from chinchilla_lm.plan import HEAD, FormatEntry, FormatTable, Whole
from chinchilla_lm.runtime.measuring.formats import PAYS
from chinchilla_lm.score.ledger import Cost
from chinchilla_lm.score.measure import Measure
from chinchilla_lm.score.table import Circumstances

# An error as small as that of 7 bits in groups of 64: below, a cost is small beside its own interval (assumption).
FINE = 1e-3
# Errors within this factor of each other are as good as the same for a ratio to hold (assumption).
NEAR = 2.0


@dataclass(frozen=True, slots=True)
class FormatTimes:
    """A whole model in one format: microseconds of each link and of all else, and bytes of each link and the head, and
    of all else."""

    link_us: Mapping[str, float]
    fixed_us: float
    bytes: Mapping[str, int]
    fixed_bytes: int

    @property
    def total_us(self) -> float:
        """Of a pass, or a request."""
        return self.fixed_us + sum(self.link_us.values())

    @property
    def total_bytes(self) -> int:
        """Of its program."""
        return self.fixed_bytes + sum(self.bytes.values())

    def time(self, what: str) -> float:
        """Of a link, or of the head with all else that is no link."""
        return self.fixed_us if what == HEAD else self.link_us[what]


def paying(times: Mapping[str, FormatTimes], *, memory: bool) -> dict[str, list[str]]:
    """The formats that pay on each link and on a head, in the order of `times`; of a link, at least one does.

    memory: whether bytes are short too, so that a format pays that is smaller.
    """
    some = next(iter(times.values()))
    offered: dict[str, list[str]] = {}
    for what in some.bytes:

        def pays(form: str, what: str = what) -> bool:
            mine = times[form]
            larger = [one for one in times.values() if one.bytes[what] > mine.bytes[what]]
            return memory or all(mine.time(what) < PAYS * one.time(what) for one in larger)

        offered[what] = [form for form in times if pays(form)]
    return offered


def score_formats(
    measure: Measure,
    times: Mapping[str, FormatTimes],
    offered: Mapping[str, Sequence[str]],
    total_us: float,
    circumstances: Circumstances,
    console: Console,
) -> FormatTable:
    """Measure what each offered format costs. total_us: of the model as it is served without packing."""
    entries: list[FormatEntry] = []
    with console.progress(len(offered), "formats", "links") as progress:
        for what, forms in offered.items():
            errors = {form: measure.rounded.error(what, form) for form in forms}
            costs = _costs(measure, what, errors)
            for form in forms:
                cost, measured = costs[form]
                mine = times[form]
                figures = (cost.value, cost.low, cost.high, mine.time(what), mine.bytes[what], errors[form], measured)
                entries.append(FormatEntry(what, form, *figures))
            progress.advance(1, f"{what} " + ", ".join(f"{form} {costs[form][0].value:.2g}" for form in forms[:3]))
    # No link's: what is not the head's either, and, without a head, the median, for it hardly depends on the format.
    between = sorted(one.fixed_us for one in times.values())[len(times) // 2]
    return FormatTable(
        metric="kl" if measure.loss == "kl" else "task_loss",
        unit="nats/position",
        num_blocks=measure.model.config.num_blocks,
        entries=tuple(entries),
        wholes=tuple(
            Whole(form, one.total_us, one.fixed_bytes + sum(one.bytes.values())) for form, one in times.items()
        ),
        total_us=total_us,
        fixed_us=0.0 if HEAD in offered else between,
        fixed_bytes=max(one.fixed_bytes for one in times.values()),
        shape=circumstances.shape,
        tokens=measure.tokens,
        model_sha256=circumstances.model_sha256,
        documents_sha256=circumstances.documents_sha256,
    )


def _costs(measure: Measure, what: str, errors: Mapping[str, float]) -> dict[str, tuple[Cost, bool]]:
    """Of each format its cost, and whether that was measured."""
    found: dict[str, tuple[Cost, bool]] = {}
    last: str | None = None
    for form in sorted(errors, key=lambda form: -errors[form]):
        error = errors[form]
        if error == 0:
            found[form] = Cost(0.0, 0.0, 0.0), True
        elif last is not None and measure.loss == "kl" and (error < FINE or NEAR * error > errors[last]):
            ratio, cost = error / errors[last], found[last][0]
            found[form] = Cost(ratio * cost.value, ratio * cost.low, ratio * cost.high), False
        else:
            found[form] = measure.cost(frozenset(), formats={what: form}), True
            last = form
    return found
