"""Labels across splits: hidden ones, one class in two spellings, classes too few to learn."""

from __future__ import annotations

import json
import sys
import types

import pytest

from chinchilla_lm.data.labels import require_classes
from chinchilla_lm.data.load import load_dataset
from chinchilla_lm.errors import InputError

TASK = "text-classification"


def table(split, labels, count=30):
    return "text,label\n" + "".join(f"{split} {i},{labels[i % len(labels)]}\n" for i in range(count))


def load(write, tmp_path, task=TASK, suffix=".csv", **texts):
    for name, text in texts.items():
        write(f"{name}{suffix}", text)
    return load_dataset(tmp_path, task)


@pytest.mark.parametrize("mark", ["-1", "-1.0", "-100", "?", "", "unknown", "nan"])
def test_a_test_split_of_hidden_labels_is_left_aside(write, tmp_path, mark):
    data = load(write, tmp_path, train=table("a", "01"), dev=table("b", "01"), test=table("c", [mark]))
    assert data.labels == ("0", "1")
    assert (len(data.splits["train"]) + len(data.splits["test"]), len(data.splits["dev"])) == (30, 30)
    assert all(record.text.startswith("a ") for record in data.splits["test"])
    assert data.notes[0].startswith("test is left aside, since it has no labels: ")
    with pytest.raises(InputError, match=r"test\.csv"):
        load_dataset(tmp_path, TASK, splits={"train": "train.csv", "test": "test.csv"})


@pytest.mark.parametrize("spelling", ["-1", "-1.0"])
def test_minus_one_is_a_class_where_train_has_it(write, tmp_path, spelling):
    data = load(write, tmp_path, train=table("a", ["-1", "0", "1"]), test=table("c", [spelling]))
    assert len(data.splits["test"]) == 30
    assert data.labels == ("-1", "0", "1")


def test_a_kaggle_folder(write, tmp_path):
    write("sample_submission.csv", "id,target\n1,0\n")
    train = "id,text,topic,target\n" + "".join(f"{i},t {i},T{i % 3},{i % 2}\n" for i in range(40))
    test = "id,text,topic\n" + "".join(f"{i},u {i},T{i % 3}\n" for i in range(40))
    write("train.csv", train)
    write("test.csv", test)
    data = load_dataset(tmp_path, TASK, label_column="target")
    assert sum(map(len, data.splits.values())) == 40
    why = "column 'target' is not in test.csv; name one of id, text, topic by --label-column"
    assert data.notes[0] == f"test is left aside, since it has no labels: {why}"
    # The label is found by itself now, and `topic` of test must not stand in for it.
    write("train.csv", train.replace("target", "label"))
    assert load_dataset(tmp_path, TASK).labels == ("0", "1")
    (tmp_path / "train.csv").unlink()
    with pytest.raises(InputError, match="--label-column"):
        load_dataset(tmp_path, TASK, label_column="target")


def test_tagged_test_data_without_tags(write, tmp_path):
    train = "".join(f"w{i} B-X\nv O\n\n" for i in range(30))
    for test in ("w\nv\n", "w _\nv _\n", "w ?\nv ?\n"):
        data = load(write, tmp_path, "token-classification", ".conll", train=train, test=test)
        assert data.labels == ("O", "B-X", "I-X")
        assert sum(map(len, data.splits.values())) == 30
    rows = [{"tokens": [f"w{i}"], "ner_tags": ["B-X"]} for i in range(30)]
    write("j/train.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    for hidden in ("[null]", "[-1]"):
        write("j/test.jsonl", f'{{"tokens": ["a"], "ner_tags": {hidden}}}\n')
        assert sum(map(len, load_dataset(tmp_path / "j", "token-classification").splits.values())) == 30


def test_a_test_split_of_nothing_but_o_is_said(write, tmp_path):
    train = "".join(f"w{i} B-X\nv O\n\n" for i in range(30))
    data = load(write, tmp_path, "token-classification", ".conll", train=train, test="w O\nv O\n")
    assert "every tag of test is O: nothing to find, or its tags are kept secret" in data.notes


def test_hub_splits_with_hidden_labels(monkeypatch):
    features = {"sentence": types.SimpleNamespace(), "label": types.SimpleNamespace(names=["neg", "pos"])}

    class Split(list):
        def __init__(self, items):
            super().__init__(items)
            self.features = features

    def rows(count, label=None):
        return Split({"sentence": f"s {i}", "label": i % 2 if label is None else label} for i in range(count))

    hub = types.ModuleType("datasets")
    hub.__dict__["load_dataset"] = lambda path, config: {
        "train": rows(60), "validation": rows(20), "test": rows(20, -1), "unsupervised": rows(9, -1)
    }  # fmt: skip
    monkeypatch.setitem(sys.modules, "datasets", hub)
    data = load_dataset("owner/name:sst2", TASK)
    assert (len(data.splits["dev"]), data.labels) == (20, ("neg", "pos"))
    assert any(note.startswith("test is left aside, since it has no labels") for note in data.notes)
    with pytest.raises(InputError, match="none of 20 records has a label"):
        load_dataset("owner/name:sst2", TASK, splits={"train": "train", "dev": "validation", "test": "test"})


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        ([0, 1, 0.0, 1.0, "0", "1", " 0", "1.0", "0.00", "+1"], ("0", "1")),
        ([0.5, "0.50", 2, "2."], ("0.5", "2")),
        ([0, 1, "0.000e+00", "1.00000000E+00", 30, "3.0e+01"], ("0", "1", "30")),
        (["1e3", "1000"], ("1e3", "1000")),
        ([True, "true", False, "False"], ("False", "True")),
        (["007", "7.5"], ("7.5", "007")),
    ],
)
def test_one_number_in_several_spellings_is_one_label(write, values, labels):
    rows = "".join(json.dumps({"text": f"t {i}", "label": value}) + "\n" for i, value in enumerate(values * 5))
    data = load_dataset(write("test.jsonl", rows), TASK)
    assert sorted(data.labels) == sorted(labels)
    assert {record.label for record in data.splits["test"]} == set(labels)


def test_spellings_are_brought_together_across_splits_and_said(write, tmp_path):
    data = load(write, tmp_path, train=table("a", "01"), dev=table("b", "01"), test=table("c", ["0.0", "1.0"]))
    assert data.labels == ("0", "1")
    assert [record.label for record in data.splits["test"][:2]] == ["0", "1"]
    assert "label 0 is also written 0.0, and read as 0" in data.notes


def test_zeros_that_one_file_lost_are_no_other_class(write, tmp_path):
    padded, plain = ["01", "02", "10"], ["1", "2", "10"]
    data = load(write, tmp_path, train=table("a", padded), dev=table("b", padded), test=table("c", plain))
    assert data.labels == ("1", "2", "10")
    assert "label 1 is also written 01, and read as 1" in data.notes
    both = load(write, tmp_path, train=table("a", ["7", "007"]), dev=table("b", ["007"]), test=table("c", ["7"]))
    assert set(both.labels) == {"7", "007"}


def test_numbers_of_one_spelling_stay_as_they_are(write):
    assert load_dataset(write("test.csv", table("a", ["4.0", "4.5"])), TASK).labels == ("4.0", "4.5")


def test_truth_values_beside_numbers_are_refused(write):
    rows = "".join(json.dumps({"text": f"t {i}", "label": v}) + "\n" for i, v in enumerate([True, False, 0, 1]))
    with pytest.raises(InputError, match="labels 0, 1, False, True mix truth values with 0 and 1"):
        load_dataset(write("test.jsonl", rows), TASK)


@pytest.mark.parametrize(
    ("labels", "note"),
    [
        (["Positive", "positive ", "neg"], "labels 'Positive' and 'positive' differ only in how they are written"),
        (["caf\u00e9", "cafe\u0301"], "differ only in how they are written, and count as 2"),
        (["7", "007"], "labels '007' and '7' differ only in how they are written"),
        (["0", "1", "nan"], "label 'nan' stands among numbers and counts as a class"),
    ],
)
def test_odd_labels_are_said(write, labels, note):
    data = load_dataset(write("test.csv", table("a", labels)), TASK)
    assert any(note in said for said in data.notes)


def test_classes_that_train_cannot_teach_are_said(write, tmp_path):
    data = load(write, tmp_path, train=table("a", "01"), dev=table("b", "01"), test=table("c", "012"))
    assert "1 labels of test do not occur in train, which cannot teach them: '2'" in data.notes


@pytest.mark.parametrize(
    ("task", "name", "text", "why"),
    [
        (TASK, "train.csv", table("a", ["pos"]), "all 30 labels of .* are 'pos'; training needs two"),
        ("token-classification", "train.conll", "a O\nb O\n\nc O\n", "all 3 tags of .* are 'O'"),
        ("token-classification", "train.conll", "a NN\nb NN\n\nc NN\n", "all 3 tags of .* are 'NN'"),
        ("ranking", "train.csv", "query,answer,label\nq,a,1\nq,b,1.0\nr,c,1\n", "all 3 relevances of .* are '1'"),
    ],
)
def test_one_class_is_nothing_to_learn(write, tmp_path, task, name, text, why):
    write(f"test{name[5:]}", text)
    write(f"dev{name[5:]}", text)
    data = load_dataset(write(name, text).parent, task)
    with pytest.raises(InputError, match=why):
        require_classes(data)


def test_two_classes_are(write):
    require_classes(load_dataset(write("a.csv", table("a", "01")), TASK))
