"""A model's quality on a split, alone or paired against another model."""

from __future__ import annotations

from chinchilla_lm.console import Console
from chinchilla_lm.data.windows import check_spelling
from chinchilla_lm.errors import InputError
from chinchilla_lm.evaluate.certificate import certify
from chinchilla_lm.evaluate.judge import Judge, Judged
from chinchilla_lm.evaluate.language import margin_words, on_same_text, read_by_both
from chinchilla_lm.evaluate.predictions import write_predictions
from chinchilla_lm.evaluate.tables import metric_among
from chinchilla_lm.pipeline.held import certificate_of
from chinchilla_lm.pipeline.issuing import Issuing, issuing
from chinchilla_lm.pipeline.job import Job, Served
from chinchilla_lm.pipeline.judgement import ORIGINAL, Comparison
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
    metric_among(job.task.metrics, recipe.metric)
    held = certificate_of(job.source, console)
    for line in [] if held is None else held.lines():
        console.say(line)
    issuer = None if against is None else _issuer(job, against, split, console)
    judge = job.judge(split)
    original = None if against is None else _Original(job, judge, against, split)
    served = job.served()
    judged = judge(served)
    result: EvaluateResult = {
        "task": recipe.task,
        "split": split,
        "n": judged.measurement.n,
        "metrics": job.show(judged, split),
        "tables": {name: table.rows for name, table in judged.measurement.tables.items()},
    }
    if predictions is not None:
        console.say(f"{write_predictions(predictions, judged.predictions):,} predictions in {predictions}")
    if original is not None:
        comparison = original.compare(served, judged)
        certificate, agreement = comparison.certificate, comparison.agreement
        if agreement is not None:
            console.show(agreement.words())
        result["agreement"] = None if agreement is None else agreement.to_dict()
        console.show(("PASSED: " if certificate.passed else "FAILED: ") + certificate.verdict)
        result["certificate"] = certificate.to_dict()
        result["issued"] = None if issuer is None else _issued(issuer, comparison, original, console)
    return result


class _Original:
    """The model to compare with, as it reads the split; what can be refused is, before any model runs."""

    def __init__(self, job: Job, judge: Judge, model: str, split: str) -> None:
        self.changed, self.changed_judge, self.split = job, judge, split
        self.job = Job(_same_windows(job), job.console, model=model, only_served=True)
        if job.task.whole_passes and self.job.window != job.window:
            raise InputError(
                f"{model} takes {self.job.window} tokens, less than the windows of {job.window}; "
                f"pass --max-tokens {self.job.window}"
            )
        self.judge = self.job.judge(split)
        self.same_tokens = judge.same_windows(self.judge)
        self.metric = self._metric()
        if job.task.whole_passes and not self.same_tokens:
            read_by_both(self.judge.finished(), judge.finished())
            for one in (job, self.job):
                check_spelling(judge.split.records, one.card.tokenizer, one.source)

    def _metric(self) -> str | None:
        """What was asked for, if anything; where the two do not read the same tokens, one that does not count them."""
        asked, task = self.job.recipe.metric, self.job.task
        counting = asked or next(iter(task.metrics))
        if self.same_tokens or counting not in task.per_token:
            return asked
        shared = task.per_token[counting]
        if asked is not None:
            raise InputError(
                f"{asked} counts tokens, and {self.changed.source} and {self.job.source} have different ones; "
                f"pass --metric {shared}"
            )
        self.job.console.say(
            f"the models have different tokens, so {shared} is compared in place of {counting}, and the margin is in "
            "percent of that"
        )
        return shared

    def _same_answers(self) -> bool:
        """Whether both models choose among the same labels or tokens."""
        models = (self.job, self.changed)
        labels, sizes = ({job.labels for job in models}, {job.card.vocabulary for job in models})
        return len(labels) == 1 and (len(sizes) == 1 or not self.job.task.whole_passes)

    def compare(self, served: Served, judged: Judged) -> Comparison:
        """The changed model, which gave `judged`, held against this one."""
        job, served_original = self.job, self.job.served()
        before = self.judge(served_original)
        name = metric_among(before.measurement.sums, self.metric)
        original, changed = before.measurement.sums[name], judged.measurement.sums[name]
        if job.task.whole_passes and not self.same_tokens:
            original, changed = on_same_text(original, changed)
        if name in job.task.per_token.values():
            job.console.show(margin_words(before.measurement.sums["perplexity"].value, job.recipe.margin))
        agreement = None
        if self.same_tokens and self._same_answers():
            agreement = self.changed_judge.compare(served_original, served, before, judged)
        identical = agreement is not None and agreement.kl.value == 0 and agreement.same.value == 1
        n = judged.measurement.n
        certificate = certify(original, changed, job.recipe.margin, n, identical=identical)
        higher_is_better = original.higher_is_better
        return Comparison(self.split, ORIGINAL, original.documents, certificate, agreement, higher_is_better)


def _issuer(job: Job, against: str, split: str, console: Console) -> Issuing | None:
    """What will issue the certificate; None, with a line that says why, where there will be none."""
    try:
        return issuing(job, against, split)
    except InputError as error:
        console.say(f"no certificate will be issued: {error}")
        return None


def _issued(issuer: Issuing, comparison: Comparison, original: _Original, console: Console) -> str | None:
    """The path of the certificate; None, with a warning, where there can be none after all."""
    try:
        path = str(issuer.issue(comparison, original.changed, original.job))
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
