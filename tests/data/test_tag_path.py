from __future__ import annotations

from itertools import product

import numpy as np

from chinchilla_lm.data.tag_path import TagPath, unseen

LABELS = ["O", "B-X", "I-X", "B-Y", "I-Y"]


def is_legal(tags: tuple[str, ...]) -> bool:
    return all(
        not tag.startswith("I-") or (i > 0 and tags[i - 1] in (f"B-{tag[2:]}", tag)) for i, tag in enumerate(tags)
    )


def test_the_path_is_the_most_probable_of_all_legal_ones():
    random = np.random.default_rng(0)
    legal = [path for path in product(range(5), repeat=4) if is_legal(tuple(LABELS[i] for i in path))]
    for _ in range(200):
        table = np.log(random.dirichlet([0.3] * 5, size=4))
        best = max(legal, key=lambda path: table[range(4), path].sum())
        assert TagPath(LABELS, legal=True)(table) == list(best)


def test_where_the_best_of_each_word_is_legal_nothing_changes():
    random = np.random.default_rng(1)
    for _ in range(200):
        table = random.normal(size=(5, 5))
        best = [int(i) for i in table.argmax(1)]
        assert TagPath(LABELS, legal=False)(table) == best
        found = TagPath(LABELS, legal=True)(table)
        assert is_legal(tuple(LABELS[i] for i in found))
        assert (found == best) == is_legal(tuple(LABELS[i] for i in best))


def test_labels_without_inside_are_left_alone():
    table = np.random.default_rng(2).normal(size=(6, 3))
    assert TagPath(["NOUN", "VERB", "O"], legal=True)(table) == [int(i) for i in table.argmax(1)]


def test_no_words_and_words_that_were_never_seen():
    path = TagPath(LABELS, legal=True)
    assert path(np.zeros((0, 5))) == []
    table = unseen(3, LABELS)
    assert path(table) == [0, 0, 0]
    assert np.allclose(np.exp(table[:, 0]), 0.2)
