from __future__ import annotations

import hashlib
import random
from collections import Counter

import pytest

from chinchilla_lm.data.load import load_dataset
from chinchilla_lm.data.records import Labelled, Tagged, Text
from chinchilla_lm.data.splits import disjoint, document_hashes, make_splits, shared_passages
from chinchilla_lm.errors import InputError


def labelled(i, text=None, document=None, time=None):
    return Labelled(f"r{i}", document or f"r{i}", time, text or f"text {i}", None, "x")


def test_document_hash_is_that_of_the_whole_document_white_space_made_single():
    records = [Text("a", "d", "one  two\n"), Text("b", "e", "x"), Text("c", "d", "three")]
    whole = hashlib.sha256(b"one two\nthree").hexdigest()
    assert document_hashes(records) == [whole, hashlib.sha256(b"x").hexdigest(), whole]


def test_disjoint_removes_whole_documents_and_no_single_sentence():
    test = [Tagged("t1", "t", ("Same", "line"), ("O", "O")), Tagged("t2", "t", ("Other",), ("O",))]
    same_document = [Tagged("a1", "a", ("Same", "line"), ("O", "O")), Tagged("a2", "a", ("Other",), ("O",))]
    same_line = [Tagged("b1", "b", ("Same", "line"), ("O", "O")), Tagged("b2", "b", ("New",), ("O",))]
    assert disjoint(same_document + same_line, test) == (same_line, 2)


def test_hash_split_does_not_depend_on_order_or_on_other_records():
    records = [labelled(i) for i in range(400)]
    made, skipped = make_splits(records, ("dev", "test"), "hash", seed=3)
    assert skipped == []
    assert sorted(r.id for split in made.values() for r in split) == sorted(r.id for r in records)
    assert 20 <= len(made["test"]) <= 60
    assert 20 <= len(made["dev"]) <= 60
    shuffled = random.Random(0).sample(records, 300)
    again, _ = make_splits(shuffled, ("dev", "test"), "hash", seed=3)
    home = {r.id: split for split, part in made.items() for r in part}
    assert all(home[r.id] == split for split, part in again.items() for r in part)
    other, _ = make_splits(records, ("dev", "test"), "hash", seed=4)
    assert other["test"] != made["test"]


def test_copies_of_a_text_and_records_of_a_document_stay_together():
    # Chains: a document shares a text with the next document, five documents a chain.
    records = [labelled(i, text=f"{(i + 1) // 2} {i // 10}", document=f"d{i // 2}") for i in range(1000)]
    made, _ = make_splits(records, ("dev", "test"), "hash")
    assert all(made.values())
    for key in ("text", "document"):
        home: dict[str, str] = {}
        for split, part in made.items():
            for record in part:
                assert home.setdefault(getattr(record, key), split) == split


def test_sentences_of_one_document_stay_together_though_short_lines_repeat():
    records = [
        Tagged(f"{d}.{s}", f"d{d}", ("Reuters",) if s == 0 else (str(d),), ("O",)) for d in range(60) for s in (0, 1)
    ]
    made, _ = make_splits(records, ("dev", "test"), "hash")
    assert all(count == 2 for part in made.values() for count in Counter(r.document for r in part).values())
    assert min(map(len, made.values())) >= 2


def test_small_data_gets_one_document_a_split_and_too_small_data_an_error():
    for seed in range(30):
        made, _ = make_splits([labelled(i) for i in range(4)], ("dev", "test"), "hash", seed)
        assert min(map(len, made.values())) >= 1
    with pytest.raises(InputError, match="2 different documents cannot be split"):
        make_splits([labelled(0), labelled(1), labelled(2, text="text 1")], ("dev", "test"), "hash")


def test_time_split_has_the_latest_in_test_and_nothing_of_them_before():
    days = [f"2020-{1 + i // 28:02}-{1 + i % 28:02}" for i in range(100)]
    records = [labelled(i, time=day) for i, day in enumerate(days)]
    records += [labelled(100, text="text 99", time="2019-01-01")]  # an old copy of the last text
    random.Random(1).shuffle(records)
    made, _ = make_splits(records, ("dev", "test"), "time")
    assert [len(made[split]) for split in ("train", "dev", "test")] == [81, 10, 10]
    assert "r100" in {r.id for r in made["test"]}
    first_test = min(r.time for r in made["test"] if r.id != "r100")
    assert (
        max(r.time for r in made["train"])
        < min(r.time for r in made["dev"])
        <= max(r.time for r in made["dev"])
        < first_test
    )


def test_time_split_does_not_cut_one_day_and_leaves_out_the_undated():
    records = [
        labelled(i, time="2020-01-01" if i < 150 else "2020-01-02" if i < 180 else "2020-01-03") for i in range(199)
    ]
    records.append(labelled(199))
    made, skipped = make_splits(records, ("dev", "test"), "time")
    assert {split: {r.time for r in part} for split, part in made.items()} == {
        "train": {"2020-01-01"},
        "dev": {"2020-01-02"},
        "test": {"2020-01-03"},
    }
    assert [item.where for item in skipped] == ["r199"]


def test_time_split_refuses_what_has_too_few_times():
    with pytest.raises(InputError, match="20 of 20 records have no readable time"):
        make_splits([labelled(i) for i in range(20)], ("test",), "time")
    with pytest.raises(InputError, match="too few different times"):
        make_splits([labelled(i, time="2020-01-01") for i in range(20)], ("test",), "time")


def running(name, pieces):
    return [Text(f"{name}#{i}", f"{name}#{i}", f"{name} piece {i}", follows=i > 0) for i in range(pieces)]


def test_running_text_is_cut_into_contiguous_stretches_with_a_gap():
    records = running("novel", 100)
    made, skipped = make_splits(records, ("dev", "test"), "hash")
    assert skipped == []
    numbers = {split: [int(record.id.partition("#")[2]) for record in part] for split, part in made.items()}
    assert numbers == {"train": list(range(78)), "dev": list(range(79, 89)), "test": list(range(90, 100))}
    assert [record.follows for record in made["test"]] == [False] + [True] * 9
    only_test, _ = make_splits(records, ("test",), "hash")
    assert [len(only_test[split]) for split in ("train", "test")] == [89, 10]


def test_several_files_of_running_text_are_cut_each_and_short_ones_train():
    records = running("a", 40) + running("b", 20) + running("c", 3)
    made, _ = make_splits(records, ("dev", "test"), "hash")
    assert Counter(record.id[0] for record in made["test"]) == {"a": 4, "b": 2}
    assert sum(record.id[0] == "c" for record in made["train"]) == 3


def test_pieces_of_short_runs_stay_together():
    records = [record for i in range(60) for record in running(f"file{i}", 3)]
    made, _ = make_splits(records, ("dev", "test"), "hash")
    homes = {record.id.partition("#")[0]: split for split, part in made.items() for record in part}
    assert all(homes[r.id.partition("#")[0]] == split for split, part in made.items() for r in part)
    assert set(homes.values()) == {"train", "dev", "test"}


@pytest.mark.parametrize("pieces", [1, 2, 3, 4, 5, 6, 10])
def test_running_text_gets_all_splits_or_one_line_that_says_how_long_it_must_be(pieces: int, tmp_path):
    paragraph = "Word after word of a text that marks no documents. " * 40  # 2,040 characters: a piece of its own
    file = tmp_path / "novel.txt"
    file.write_text("\n\n".join(f"{number} {paragraph}" for number in range(pieces)))
    dataset = load_dataset(file, "language-modeling")
    if pieces >= 5:
        first = {split: int(dataset.records(split)[0].text.split()[0]) for split in ("train", "dev", "test")}
        assert first == {"train": 0, "dev": pieces - 3, "test": pieces - 1}
        assert sum(map(len, dataset.splits.values())) == pieces - 2, "a piece is left out between two splits"
        return
    with pytest.raises(InputError) as caught:
        dataset.records("test")
    message = str(caught.value)
    assert "\n" not in message
    told = ("'test'", "'novel'", f"the longest here has {pieces} ", "5 pieces", "10,000", "--train, --dev and --test")
    for part in told:
        assert part in message


def test_what_has_a_dev_file_needs_a_shorter_text():
    made, _ = make_splits(running("novel", 3), ("test",), "hash")
    assert [len(made[split]) for split in ("train", "test")] == [1, 1]
    with pytest.raises(InputError, match=r"running text of 3 pieces.*longest here has 2 .*--train and --test"):
        make_splits(running("novel", 2), ("test",), "hash")


def test_too_few_of_other_records_are_told_nothing_of_running_text():
    with pytest.raises(InputError) as caught:
        make_splits([labelled(0), labelled(1)], ("dev", "test"), "hash")
    assert str(caught.value) == (
        "2 different documents cannot be split, 3 are needed for train, dev and test; "
        "name files by --train, --dev and --test"
    )


def test_passages_are_the_same_however_they_are_cut_into_records():
    lines = [f"line {i} of a text that is long enough to be a passage of its own" for i in range(20)]
    whole, cut = [Text("a", "a", "\n".join(lines))], [Text(f"b{i}", f"b{i}", line) for i, line in enumerate(lines)]
    assert shared_passages(cut, whole) == shared_passages(whole, cut) == 1.0
    other = [Text("c", "c", "\n".join(["short", *(line[::-1] for line in lines)]))]
    assert shared_passages(other, whole) == 0.0
    assert shared_passages([Text("d", "d", "short")], whole) == 0.0
    assert shared_passages([Text("e", "e", "\n".join([*lines[:5], *(line[::-1] for line in lines[5:])]))], cut) == 0.25
