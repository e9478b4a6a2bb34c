from __future__ import annotations

import sys
from collections import Counter

import pytest

from chinchilla_lm.data.layouts import looks_like_path, split_of
from chinchilla_lm.data.load import load_dataset
from chinchilla_lm.errors import InputError

CONLL = "A B-X\n\nB O\n"


def csv(*texts, label="x"):
    return "text,label\n" + "".join(f"{text},{label}\n" for text in texts)


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("eng.train", "train"),
        ("eng.testa", "dev"),
        ("eng.testb", "test"),
        ("wiki.valid.tokens", "dev"),
        ("val_stockemo.csv", "dev"),
        ("test_public.json", "test"),
        ("dev_few_all.json", "dev"),
        ("train-00000-of-00001.jsonl", "train"),
        ("contest.csv", None),
        ("train_test.csv", None),
    ],
)
def test_split_words(name, split):
    assert split_of(name) == split


def test_a_folder_with_all_splits_is_taken_as_it_is(write, tmp_path):
    for name in ("eng.train", "eng.testa", "eng.testb"):
        write(name, CONLL)
    write("README.txt", "no data")
    data = load_dataset(str(tmp_path), "token-classification")
    assert list(data.splits) == ["train", "dev", "test"]
    assert data.labels == ("O", "B-X", "I-X")
    assert data.name == tmp_path.name
    assert data.notes == [
        f"2 texts stand in both {a} and {b}" for a, b in (("train", "dev"), ("train", "test"), ("dev", "test"))
    ]
    with pytest.raises(InputError, match=r"split 'extra' is not in .*train, dev, test"):
        data.records("extra")


def test_missing_dev_is_made_of_train_and_test_stays(write, tmp_path):
    write("train.csv", csv(*(f"t{i}" for i in range(200)), "t7"))
    write("test.csv", csv("t3", "new"))
    write("categories.json", "[]")
    data = load_dataset(tmp_path, "text-classification")
    assert [r.text for r in data.splits["test"]] == ["t3", "new"]
    assert len(data.splits["train"]) + len(data.splits["dev"]) == 201
    assert not {r.text for r in data.splits["train"]} & {r.text for r in data.splits["dev"]}
    assert data.notes[0] == f"left aside in {tmp_path.name}: categories.json"
    assert "dev made from train by hash" in data.notes[1]
    assert data.notes[2].startswith("1 texts stand in both")


def test_one_file_is_split_unless_its_name_says_which(write):
    whole = load_dataset(write("sales.csv", csv(*(f"t{i}" for i in range(100)))), "text-classification")
    assert sum(map(len, whole.splits.values())) == 100
    assert list(load_dataset(write("test.csv", csv("a")), "text-classification").splits) == ["test"]
    lone = load_dataset(write("test.csv", csv("a")), "text-classification", split_by="time")
    assert lone.notes == ["split by time was asked for, but nothing is left to split: test came as files"]


def test_splits_by_name(write, tmp_path):
    write("one.csv", csv("a", "b"))
    write("two.csv", csv("c"))
    data = load_dataset(tmp_path, "text-classification", splits={"test": "one.csv", "dev": str(tmp_path / "two.csv")})
    assert {split: len(part) for split, part in data.splits.items()} == {"dev": 1, "test": 2}
    with pytest.raises(InputError, match="split 'eval' is not one of train, dev, test"):
        load_dataset(tmp_path, "text-classification", splits={"eval": "one.csv"})
    with pytest.raises(InputError, match=r"none.csv is not a file"):
        load_dataset(tmp_path, "text-classification", splits={"test": "none.csv"})


def test_folders_that_are_not_clear(write, tmp_path):
    with pytest.raises(InputError, match="holds no file that looks like data"):
        load_dataset(tmp_path, "text-classification")
    write("a.csv", csv("a"))
    write("b.csv", csv("b"))
    with pytest.raises(InputError, match=r"2 files and none is named train, dev or test \(a.csv, b.csv\)"):
        load_dataset(tmp_path, "text-classification")
    write("test_a.csv", csv("a"))
    write("test_b.csv", csv("b"))
    with pytest.raises(InputError, match=r"test_a.csv and test_b.csv could each be the test split"):
        load_dataset(tmp_path, "text-classification")


def test_raw_is_taken_before_tokens(write, tmp_path):
    write("wiki.test.raw", "raw")
    write("wiki.test.tokens", "tokens")
    data = load_dataset(tmp_path, "language-modeling")
    assert [r.text for r in data.splits["test"]] == ["raw"]
    assert data.notes == [f"left aside in {tmp_path.name}: wiki.test.tokens"]


def test_a_group_column_keeps_groups_together(write):
    path = write("a.csv", "text,label,customer\n" + "".join(f"t{i},x,c{i // 4}\n" for i in range(200)))
    data = load_dataset(path, "text-classification", group_column="customer")
    for part in data.splits.values():
        assert set(Counter(r.document for r in part).values()) == {4}
    with pytest.raises(InputError, match="names no groups"):
        load_dataset(path, "text-classification", split_by="group")


def test_a_time_column_puts_the_latest_into_test(write):
    rows = "".join(f"t{i},x,2020-{1 + i // 28:02}-{1 + i % 28:02},c{i}\n" for i in range(200))
    path = write("a.csv", "text,label,day,customer\n" + rows)
    data = load_dataset(path, "text-classification", time_column="day", group_column="customer")
    assert "made from train by time" in data.notes[0]
    assert max(r.time for r in data.splits["train"]) < min(r.time for r in data.splits["dev"])
    assert max(r.time for r in data.splits["dev"]) < min(r.time for r in data.splits["test"])
    by_group = load_dataset(path, "text-classification", time_column="day", group_column="customer", split_by="group")
    assert max(r.time for r in by_group.splits["train"]) > min(r.time for r in by_group.splits["test"])


def test_options_that_would_be_ignored_are_refused(write):
    with pytest.raises(InputError, match="time_column 'date' has no use in token-classification"):
        load_dataset(write("a.conll", CONLL), "token-classification", time_column="date")
    with pytest.raises(InputError, match=r"a.conll names no columns"):
        load_dataset(write("a.conll", CONLL), "token-classification", text_column="word")
    with pytest.raises(InputError, match="task 'ner' is not one of"):
        load_dataset(write("a.conll", CONLL), "ner")


def test_one_bad_record_in_a_hundred_passes_and_two_do_not(write):
    rows = [f"t{i},x" for i in range(99)]
    data = load_dataset(write("test.csv", "text,label\n" + "\n".join([*rows, "bad,"])), "text-classification")
    assert [(item.where, item.why) for item in data.skipped] == [("test.csv:101", "no label in 'label'")]
    with pytest.raises(InputError, match=r"2 of 100 records .* more than 1% \(test.csv:100: no label"):
        load_dataset(write("test.csv", "text,label\n" + "\n".join([*rows[:98], "bad,", "bad,"])), "text-classification")


@pytest.mark.parametrize("source", ["./none", "/none/here", "none.csv", "a/b/c", "none/", "some text"])
def test_what_looks_like_a_path_is_never_looked_up(source):
    with pytest.raises(InputError, match="is not there"):
        load_dataset(source, "text-classification")


@pytest.mark.parametrize("source", ["imdb", "owner/name", "owner/name:config", "conll2003", "a.b/c-d_e"])
def test_hub_names(source):
    assert not looks_like_path(source)


def test_hub_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match=r"pip install 'chinchilla-lm\[hub\]'"):
        load_dataset("owner/name", "text-classification")


def test_hub_data_with_class_names(monkeypatch):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {
            "tokens": datasets.List(datasets.Value("string")),
            "ner_tags": datasets.List(datasets.ClassLabel(names=["O", "B-X"])),
        }
    )
    tagged = datasets.Dataset.from_dict({"tokens": [["a", "b"]], "ner_tags": [[1, 0]]}, features)
    classes = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])})
    rated = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, classes)
    asked = []

    def fake(path, config):
        asked.append((path, config))
        return (
            {"train": tagged, "validation": tagged, "test": tagged}
            if path == "ner"
            else {"test": rated, "other": rated}
        )

    monkeypatch.setattr(datasets, "load_dataset", fake)
    data = load_dataset("ner", "token-classification")
    assert data.splits["dev"][0].tags == ("B-X", "O")
    data = load_dataset("owner/name:small", "text-classification")
    assert [r.label for r in data.splits["test"]] == ["pos", "neg"]
    assert data.notes == ["left aside in owner/name:small: other"]
    assert asked == [("ner", None), ("owner/name", "small")]
    with pytest.raises(InputError, match="split 'nope' is not in 'ner', which has train, validation, test"):
        load_dataset("ner", "token-classification", splits={"test": "nope"})


def test_hub_that_cannot_be_reached(monkeypatch):
    datasets = pytest.importorskip("datasets")

    def unreachable(path, config):
        raise ConnectionError(f"Couldn't reach {path}\nmore")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(
        InputError, match=r"'nope' is no file here, and the hub gives none \(Couldn't reach nope\); pass"
    ):
        load_dataset("nope", "text-classification")


ALL = "train+dev+test"


@pytest.mark.parametrize(
    ("folder", "options", "sizes", "skipped", "labels"),
    [
        ("banking77", {}, {"train+dev": 10003, "test": 3080}, 0, 77),
        ("fewclue_tnews", {"label_column": "label_desc"}, {"train": 1185, "dev": 1098, "test": 2010}, 0, 15),
        (
            "stock_emotions",
            {"label_column": "senti_label", "text_column": "original"},
            {ALL: 10000, "test": 1000},
            0,
            2,
        ),
        ("bank_faq", {}, {ALL: 1773}, 5, 7),
        ("sentfin", {}, {ALL: 14371}, 13, 3),  # 10,740 headlines, one record an entity
        ("gold_news", {}, {ALL: 10570}, 0, 4),
        ("financial_phrasebank/Sentences_AllAgree.txt", {}, {ALL: 2263}, 1, 3),
        ("financial_phrasebank/Sentences_50Agree.txt", {}, {ALL: 4846}, 0, 3),
    ],
)
def test_real_sets(real, folder, options, sizes, skipped, labels):
    """`sizes`: where a split was made of train, only their sum is known."""
    data = load_dataset(real(folder), "text-classification", **options)
    for names, size in sizes.items():
        assert sum(len(data.splits[split]) for split in names.split("+")) == size
    assert (len(data.skipped), len(data.labels)) == (skipped, labels)


@pytest.mark.parametrize(("folder", "splits", "documents"), [("digitalgov", 3, 2487), ("wikitext2", 2, 120)])
def test_real_text(real, folder, splits, documents):
    data = load_dataset(real(folder), "language-modeling")
    assert (len(data.splits), sum(map(len, data.splits.values()))) == (splits, documents)
    assert not data.skipped


def test_gold_news_by_time(real):
    data = load_dataset(real("gold_news"), "text-classification", split_by="time")
    times = {split: [r.time for r in part] for split, part in data.splits.items()}
    assert max(times["train"]) < max(times["dev"]) < min(t for t in times["test"] if t >= "2019")
    assert len(data.skipped) == 165


def test_a_file_that_is_none_of_the_named_ones_is_not_passed_over(write):
    data = write("all.csv", "text,label\n" + "a,x\n" * 20)
    write("held.csv", "text,label\nb,x\n")
    with pytest.raises(InputError, match=r"all\.csv is none of the files that are named; .*--train all\.csv"):
        load_dataset(data, "text-classification", splits={"test": "held.csv"})
    both = load_dataset(data, "text-classification", splits={"train": "all.csv", "test": "held.csv", "dev": "held.csv"})
    assert {name: len(records) for name, records in both.splits.items()} == {"train": 20, "dev": 1, "test": 1}
