"""What `chinchilla evaluate` finds."""

from typing import NotRequired, TypedDict

from chinchilla_lm.results.figures import AgreementFound, Interval, Verdict


class ClassRow(TypedDict):
    """A row of a table; precision and recall are None in the `accuracy` row, where they would say the same again."""

    label: str
    precision: float | None
    recall: float | None
    f1: float
    support: int


class EvaluateResult(TypedDict):
    """A model's quality: `chinchilla evaluate --json`.

    n: sentences, texts or windows of the split. certificate, agreement and issued: where there was a model to compare
    with; agreement is None where the two do not read the same tokens, or do not choose among the same (labels in
    another order, vocabularies of another size), or a number is no answer to agree on; issued is the path of the
    certificate that was written, None where none was.
    """

    task: str
    split: str
    n: int
    metrics: dict[str, Interval]
    tables: dict[str, list[ClassRow]]
    certificate: NotRequired[Verdict]
    agreement: NotRequired[AgreementFound | None]
    issued: NotRequired[str | None]
