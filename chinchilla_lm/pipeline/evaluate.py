"""A model's quality on a split, alone or paired against another model."""

from __future__ import annotations

from chinchilla_lm.console import Console
from chinchilla_lm.errors import InputError
from chinchilla_lm.evaluate.agreement import Agreement
from chinchilla_lm.evaluate.certificate import Certificate, certify
from chinchilla_lm.evaluate.judge import Judged
from chinchilla_lm.evaluate.predictions import write_predictions
from chinchilla_lm.pipeline.held import certificate_of
from chinchilla_lm.pipeline.issuing import Issuing, issuing
from chinchilla_lm.pipeline.job import Job
from chinchilla_lm.recipe import Recipe
from chinchilla_lm.results import EvaluateResult


def evaluate(
    recipe: Recipe,
    console: Console,
    *,
    split: str = "test",
    against: str | None = None,
    predictions: str | None = None,
) -> EvaluateResult:
    """Metrics with intervals, tables, and the certificate where there is an original to compare with.

    Where a margin was chosen and the split is test, the certificate is written beside the model; `issued` is its path.
    """

    job = Job(recipe, console, only_served=True)
    held = certificate_of(job.source, console)
    for line in [] if held is None else held.lines():
        console.say(line)
    issuer = None if against is None else _issuer(job, split, console)
    judge = job.judge(split)
    ours = job.served()
    judged = judge(ours)
    result: EvaluateResult = {
        "task": recipe.task,
        "split": split,
        "n": judged.measurement.n,
        "metrics": job.show(judged, split),
        "tables": {name: table.rows for name, table in judged.measurement.tables.items()},
    }
    if predictions is not None:
        console.say(f"{write_predictions(predictions, judged.predictions):,} predictions in {predictions}")
    if against is not None:
        other = Job(_same_windows(job), console, model=against, only_served=True)
        if job.task.whole_passes and other.window != job.window:
            raise InputError(
                f"{against} takes {other.window} tokens, less than the windows of {job.window}; "
                f"pass --max-tokens {other.window}"
            )
        served, their_judge = other.served(), other.judge(split)
        original = their_judge(served)
        metric = recipe.metric or original.primary.name
        if metric not in original.measurement.sums:
            known = ", ".join(original.measurement.sums)
            raise InputError(f"metric {metric!r} is not one of {known}; pass --metric {original.primary.name}")
        agreement = None
        if other.labels == job.labels and judge.same_windows(their_judge):
            agreement = judge.compare(served, ours, original, judged)
        identical = agreement is not None and agreement.kl.value == 0 and agreement.same.value == 1
        certificate = certify(
            original.measurement.sums[metric],
            judged.measurement.sums[metric],
            recipe.margin,
            original.measurement.n,
            identical=identical,
        )
        if agreement is not None:
            console.show(agreement.words())
        result["agreement"] = None if agreement is None else agreement.to_dict()
        console.show(("PASSED: " if certificate.passed else "FAILED: ") + certificate.verdict)
        result["certificate"] = certificate.to_dict()
        result["issued"] = (
            None if issuer is None else _issued(issuer, certificate, agreement, other, judged, split, console)
        )
    return result


def _issuer(job: Job, split: str, console: Console) -> Issuing | None:
    """What will issue the certificate; None, with a line that says why, where there will be none."""
    try:
        return issuing(job, split)
    except InputError as error:
        console.say(f"no certificate will be issued: {error}")
        return None


def _issued(
    issuer: Issuing,
    certificate: Certificate,
    agreement: Agreement | None,
    original: Job,
    judged: Judged,
    split: str,
    console: Console,
) -> str | None:
    """The path of the certificate; None, with a warning, where there can be none after all."""
    try:
        path = str(issuer.issue(certificate, agreement, original, judged, split))
    except InputError as error:
        console.warn(f"no certificate is issued: {error}")
        return None
    console.show(f"certificate: {path}")
    return path


def _same_windows(job: Job) -> Recipe:
    """The recipe for the model that `job` is compared with: running text is cut into the same windows for both."""
    if not job.task.whole_passes:
        return job.recipe
    return job.recipe.model_copy(update={"max_tokens": job.window})
