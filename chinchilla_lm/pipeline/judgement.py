"""The result held against the original: on the test data, and on the guard's where there are any.

Preserving is not adapting. Training on text of the test's kind makes any model better at that text, so a model that
lost links and learnt the test's kind can stand level with an original that did not. Where the answers of the data take
part in recovery, the result is therefore held against a control: the original, trained on the same data by the same
schedule. And it has to hold the margin on guard data, of another kind, against the original as it was: a model that
forgot all else fails there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from chinchilla_lm.console import Console
from chinchilla_lm.evaluate.agreement import Agreement
from chinchilla_lm.evaluate.certificate import Certificate, certify
from chinchilla_lm.evaluate.judge import Judge
from chinchilla_lm.evaluate.judged import Judged
from chinchilla_lm.evaluate.tables import metric_among
from chinchilla_lm.pipeline.job import Served
from chinchilla_lm.results import ComparisonResult

ORIGINAL, CONTROL, RESULT = "original", "control", "recovered"
PACKED = "packed"  # the result of a job with formats


@dataclass(frozen=True, slots=True)
class Comparison:
    """The result against one model on one set of data. `agreement` is None where there are no answers to compare."""

    data: str
    against: str
    documents: int
    certificate: Certificate
    agreement: Agreement | None
    higher_is_better: bool

    def to_dict(self) -> ComparisonResult:
        return {
            "data": self.data,
            "against": self.against,
            **self.certificate.to_dict(),
            "higher_is_better": self.higher_is_better,
            "verdict": self.certificate.verdict,
            "agreement": None if self.agreement is None else self.agreement.to_dict(),
        }


@dataclass(frozen=True, slots=True)
class Judgement:
    """What every model did on the test data, and the comparisons, that of the certificate first."""

    judged: dict[str, Judged]
    comparisons: list[Comparison] = field(default_factory=list)

    @property
    def certificate(self) -> Certificate:
        """The comparison on the test data."""
        return self.comparisons[0].certificate

    @property
    def passed(self) -> bool:
        """Whether the margin is held in every comparison."""
        return all(comparison.certificate.passed for comparison in self.comparisons)


def judge_models(
    served: Mapping[str, Served],
    test: Judge,
    guard: Judge | None,
    metric: str | None,
    margin: float,
    console: Console,
    result: str = RESULT,
) -> Judgement:
    """Run all models through the test data, and the original and the result through the guard's.

    served: ORIGINAL first, `result` last, CONTROL where there is one. metric: without it, the task's own.
    Raises InputError for a metric that the task does not have.
    """
    judged: dict[str, Judged] = {}
    with console.progress(len(served) + (2 if guard else 0), "evaluate", "models") as progress:
        for name, model in served.items():
            judged[name] = test(model)
            progress.advance(1, name)
        base = CONTROL if CONTROL in served else ORIGINAL
        found = [compare("test", test, served, judged, base, metric, margin, result)]
        if guard is not None:
            guarded = {}
            for name in (ORIGINAL, result):
                guarded[name] = guard(served[name])
                progress.advance(1, f"{name}, guard")
            found.append(compare("guard", guard, served, guarded, ORIGINAL, metric, margin, result))
    return Judgement(judged, found)


def compare(
    data: str,
    judge: Judge,
    served: Mapping[str, Served],
    judged: Mapping[str, Judged],
    base: str,
    metric: str | None,
    margin: float,
    result: str,
) -> Comparison:
    """The result against `base`. Raises InputError for a metric that the task does not have."""
    before, after = judged[base], judged[result]
    sums = before.measurement.sums
    name = metric_among(sums, metric)
    agreement = judge.compare(served[base], served[result], before, after)
    identical = agreement is not None and agreement.kl.value == 0 and agreement.same.value == 1
    measured = after.measurement.sums[name]
    certificate = certify(sums[name], measured, margin, before.measurement.n, identical=identical)
    return Comparison(data, base, measured.documents, certificate, agreement, sums[name].higher_is_better)
