"""Tagging metrics against scikit-learn, seqeval, and a conlleval written here from the rules of the Perl script."""

import re
import warnings
from collections import Counter

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from seqeval.metrics import classification_report as seqeval_report
from seqeval.metrics import f1_score as seqeval_f1
from sklearn.metrics import classification_report, f1_score

from chinchilla_lm.errors import InputError
from chinchilla_lm.evaluate.sums import bootstrap
from chinchilla_lm.evaluate.tagging import entities, measure_tags

BIO = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC", "B-WORK-OF-ART", "I-WORK-OF-ART"]
BIOES = [*BIO, "E-PER", "S-PER", "E-LOC", "S-LOC"]


@st.composite
def corpora(draw, tags=tuple(BIO)):
    """Gold and predicted tags, legal or not, and the document of each sentence."""
    lengths = draw(st.lists(st.integers(0, 8), min_size=1, max_size=8).filter(any))
    sentence = [st.lists(st.sampled_from(tags), min_size=n, max_size=n) for n in lengths]
    gold, predicted = ([draw(s) for s in sentence] for _ in range(2))
    return gold, predicted, draw(st.lists(st.sampled_from("abc"), min_size=len(lengths), max_size=len(lengths)))


def split(name):
    tag, _, type_ = name.partition("-")
    return tag, type_


def conlleval(gold, predicted):
    """Streams over words as the Perl script does; counts of (correct, predicted, gold) by type. BIO tags only."""

    def ends(old, old_type, tag, type_):
        return (old in "BI" and tag in "BO") or (old != "O" and old_type != type_)

    def starts(old, old_type, tag, type_):
        return tag == "B" or (old == "O" and tag == "I") or (tag != "O" and old_type != type_)

    correct: Counter[str] = Counter()
    found: Counter[str] = Counter()
    wanted: Counter[str] = Counter()
    last_gold = last_given = ("O", "")
    inside = False
    stream = [pair for g, p in zip(gold, predicted, strict=True) for pair in [*zip(g, p, strict=True), ("O", "O")]]
    for gold_name, given_name in stream:
        now_gold, now_given = split(gold_name), split(given_name)
        gold_ends, given_ends = ends(*last_gold, *now_gold), ends(*last_given, *now_given)
        gold_starts, given_starts = starts(*last_gold, *now_gold), starts(*last_given, *now_given)
        if inside:
            if gold_ends and given_ends and last_gold[1] == last_given[1]:
                correct[last_gold[1]] += 1
                inside = False
            elif gold_ends != given_ends or now_gold[1] != now_given[1]:
                inside = False
        if gold_starts and given_starts and now_gold[1] == now_given[1]:
            inside = True
        wanted[now_gold[1]] += gold_starts
        found[now_given[1]] += given_starts
        last_gold, last_given = now_gold, now_given
    return {t: (correct[t], found[t], wanted[t]) for t in sorted(set(+found) | set(+wanted))}


def scores(correct, found, wanted):
    precision, recall = correct / found if found else 0.0, correct / wanted if wanted else 0.0
    return precision, recall, 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def assume_one_right(gold, predicted):
    """Where nothing at all is right, scikit-learn 1.9 prints supports as "1.0": its counts turn into floats."""
    assume(any(g == p for pair in zip(gold, predicted, strict=True) for g, p in zip(*pair, strict=True)))


def sklearn_tokens(gold, predicted):
    flat = [[tag for tags in side for tag in tags] for side in (gold, predicted)]
    return classification_report(*flat, digits=4, zero_division=0)


@settings(max_examples=100, deadline=None)
@given(corpora(tags=(*BIO, "Ünïcode", "a-label-that-is-rather-longer-than-weighted-avg")))
def test_token_table_is_that_of_sklearn(corpus):
    gold, predicted, _ = corpus
    assume_one_right(gold, predicted)
    lines = measure_tags(*corpus).tables["tokens"].text().split("\n")
    micro = next(i for i, line in enumerate(lines) if line.strip().startswith("micro avg"))
    assert lines[micro - 1].strip().startswith("accuracy")
    assert lines[micro].split()[-2:] == lines[micro - 1].split()[-2:]
    del lines[micro]
    assert lines == sklearn_tokens(gold, predicted).split("\n")


@settings(max_examples=200, deadline=None)
@given(corpora())
def test_entities_are_those_of_conlleval(corpus):
    gold, predicted, _ = corpus
    expected = conlleval(gold, predicted)
    measured = measure_tags(*corpus)
    rows = {row["label"]: row for row in measured.tables["entities"].rows}
    assert [row["label"] for row in measured.tables["entities"].classes] == list(expected)
    for type_, counts in expected.items():
        assert (rows[type_]["precision"], rows[type_]["recall"], rows[type_]["f1"]) == pytest.approx(scores(*counts))
        assert rows[type_]["support"] == counts[2]
    overall = scores(*np.sum([[0, 0, 0], *expected.values()], axis=0))
    assert (rows["micro avg"]["precision"], rows["micro avg"]["recall"], rows["micro avg"]["f1"]) == pytest.approx(
        overall
    )
    assert measured.sums["entity_f1"].value == pytest.approx(overall[2])
    mean = np.mean([scores(*counts)[2] for counts in expected.values()]) if expected else 0.0
    assert rows["macro avg"]["f1"] == pytest.approx(mean)


def figureless(text):
    """The layout alone: seqeval computes F1 from rounded precision and recall, and a tie may end in another digit."""
    return re.sub(r"\d", "0", text)


@settings(max_examples=200, deadline=None)
@given(corpora(tags=tuple(BIOES)))
def test_entities_are_those_of_seqeval(corpus):
    gold, predicted, _ = corpus
    measured = measure_tags(*corpus)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert measured.sums["entity_f1"].value == pytest.approx(seqeval_f1(gold, predicted))
        if measured.tables["entities"].classes:
            text = measured.tables["entities"].text()
            assert figureless(text) == figureless(seqeval_report(gold, predicted, digits=4, zero_division=0))
            expected = seqeval_report(gold, predicted, output_dict=True, zero_division=0)
            for row in measured.tables["entities"].rows:
                assert [row["precision"], row["recall"], row["f1"], row["support"]] == pytest.approx(
                    [expected[row["label"]][key] for key in ("precision", "recall", "f1-score", "support")]
                )


@settings(max_examples=100, deadline=None)
@given(corpora())
def test_token_sums_are_the_averages_of_sklearn(corpus):
    gold, predicted, _ = corpus
    flat = [[tag for tags in side for tag in tags] for side in (gold, predicted)]
    measured = measure_tags(*corpus)
    for average in ("micro", "macro", "weighted"):
        expected = f1_score(*flat, average=average, zero_division=0)
        assert measured.sums[f"token_{average}"].value == pytest.approx(expected)
        row = next(r for r in measured.tables["tokens"].rows if r["label"] == f"{average} avg")
        assert row["f1"] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        (["B-PER", "I-PER", "O"], [("PER", 0, 1)]),
        (["O", "I-PER", "I-PER"], [("PER", 1, 2)]),
        (["B-PER", "I-LOC", "I-LOC"], [("PER", 0, 0), ("LOC", 1, 2)]),
        (["B-PER", "B-PER"], [("PER", 0, 0), ("PER", 1, 1)]),
        (["S-PER", "B-LOC", "E-LOC", "I-LOC"], [("PER", 0, 0), ("LOC", 1, 2), ("LOC", 3, 3)]),
        (["B", "I", "O"], [("_", 0, 1)]),
        ([], []),
    ],
)
def test_entities_of_a_sentence(tags, expected):
    assert entities(tags) == expected


def test_resampled_metrics_are_sklearns_on_the_drawn_documents():
    """A statistic of summed rows equals the metric computed afresh on the documents drawn, absent labels included."""
    rng = np.random.default_rng(0)
    gold = [[str(rng.choice(BIO[:3])) for _ in range(6)] for _ in range(5)] + [["B-LOC", "I-LOC"]]
    predicted = [[tag if rng.random() < 0.7 else "O" for tag in tags] for tags in gold]
    measured = measure_tags(gold, predicted, list("aabbcd"))
    weights = np.array([2.0, 0.0, 1.0, 0.0])
    drawn = [0, 1, 0, 1, 4]
    flat = [[tag for i in drawn for tag in side[i]] for side in (gold, predicted)]
    for average in ("micro", "macro", "weighted"):
        metric = measured.sums[f"token_{average}"]
        assert metric.documents == 4
        value = metric.statistic(weights @ metric.per_document)
        assert value == pytest.approx(f1_score(*flat, average=average, zero_division=0))
    f1 = measured.sums["entity_f1"]
    expected = seqeval_f1([gold[i] for i in drawn], [predicted[i] for i in drawn])
    assert f1.statistic(weights @ f1.per_document) == pytest.approx(expected)


def test_faultless_tagger_has_an_interval_of_one_point():
    gold = [["B-PER", "O"], ["O", "O"], ["B-LOC", "I-LOC"], ["O", "O"]]
    measured = measure_tags(gold, gold, list("abcd"))
    macro = bootstrap(measured.sums["token_macro"])
    assert (macro.value, macro.low, macro.high) == (1.0, 1.0, 1.0)


def test_main_metric_comes_first_and_all_have_intervals():
    rng = np.random.default_rng(5)
    gold = [[str(rng.choice(BIO)) for _ in range(12)] for _ in range(40)]
    predicted = [[tag if rng.random() < 0.8 else str(rng.choice(BIO)) for tag in tags] for tags in gold]
    estimates = measure_tags(gold, predicted, [str(i // 2) for i in range(40)]).estimates()
    assert list(estimates) == ["entity_f1", "token_micro", "token_macro", "token_weighted"]
    for estimate in estimates.values():
        assert 0 < estimate.low < estimate.value < estimate.high < 1


def test_parts_of_speech_mark_no_entities():
    measured = measure_tags([["NOUN", "VERB"]], [["NOUN", "NOUN"]], ["a"])
    assert list(measured.sums) == ["token_micro", "token_macro", "token_weighted"]
    assert list(measured.tables) == ["tokens"]
    with pytest.raises(InputError, match="tag 'NOUN' is neither O nor"):
        entities(["NOUN"])


def test_rows_are_plain_json_numbers():
    row = measure_tags([["B-PER", "O"]], [["B-PER", "B-PER"]], ["a"]).tables["tokens"].rows[0]
    assert row == {"label": "B-PER", "precision": 0.5, "recall": 1.0, "f1": pytest.approx(2 / 3), "support": 1}
    assert type(row["f1"]) is float
    assert type(row["support"]) is int


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match="2 gold sentences, 1 predicted and 2 document ids"):
        measure_tags([["O"], ["O"]], [["O"]], ["a", "b"])
    with pytest.raises(InputError, match="sentence 1 has 2 gold and 1 predicted tags"):
        measure_tags([["O"], ["O", "O"]], [["O"], ["O"]], ["a", "b"])
    with pytest.raises(InputError, match="0 words in 1 sentences"):
        measure_tags([[]], [[]], ["a"])
