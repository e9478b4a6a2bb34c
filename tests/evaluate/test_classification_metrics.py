"""Classification metrics against scikit-learn."""

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, classification_report, f1_score

from chinchilla_lm.errors import InputError
from chinchilla_lm.evaluate.classification import measure_labels

LABEL = st.sampled_from(["business", "sport", "world", "a very long label, longer than the averages"])


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(LABEL, LABEL, st.sampled_from("abc")), min_size=1, max_size=30))
def test_metrics_and_table_are_those_of_sklearn(triples):
    gold, predicted, documents = (list(column) for column in zip(*triples, strict=True))
    measured = measure_labels(gold, predicted, documents)
    assert measured.n == len(gold)
    assert measured.sums["accuracy"].value == pytest.approx(accuracy_score(gold, predicted))
    for average in ("macro", "weighted"):
        expected = f1_score(gold, predicted, average=average, zero_division=0)
        assert measured.sums[f"{average}_f1"].value == pytest.approx(expected)
    lines = measured.tables["classes"].text().split("\n")
    without_micro = [line for line in lines if not line.strip().startswith("micro avg")]
    assert len(without_micro) == len(lines) - 1
    # Where nothing at all is right, scikit-learn 1.9 prints supports as "1.0": its counts turn into floats.
    assume(any(g == p for g, p in zip(gold, predicted, strict=True)))
    assert without_micro == classification_report(gold, predicted, digits=4, zero_division=0).split("\n")


def test_accuracy_row_has_no_precision_and_recall():
    averages = measure_labels(["a", "b"], ["a", "a"], ["1", "2"]).tables["classes"].averages
    assert [row["label"] for row in averages] == ["accuracy", "micro avg", "macro avg", "weighted avg"]
    assert averages[0] == {"label": "accuracy", "precision": None, "recall": None, "f1": 0.5, "support": 2}
    assert averages[1]["precision"] == 0.5


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match="2 gold labels, 1 predicted"):
        measure_labels(["a", "b"], ["a"], ["1", "2"])
    with pytest.raises(InputError, match="0 texts"):
        measure_labels([], [], [])
