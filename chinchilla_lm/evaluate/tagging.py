"""Token and entity metrics of a tagger.

Tokens: every word is one decision, `O` included; accuracy, macro and weighted F1 as scikit-learn computes them.

Entities: an entity counts as found only if type, first word and last word are all right. What an entity is in a
sequence that breaks the rules (an `I-` after `O`, or after another type) is decided as the CoNLL-2000 script
`conlleval` decides it: such a tag starts an entity. `E-` and `S-` tags (BIOES) end one, as in seqeval's default mode.
A tag that has no such prefix (a part of speech, say) marks no entity; then there are token metrics only.
"""

import re
from collections.abc import Iterable, Sequence
from itertools import chain

import numpy as np

from chinchilla_lm.errors import InputError
from chinchilla_lm.evaluate.sums import Floats, Sums, document_rows
from chinchilla_lm.evaluate.tables import GOLD, PREDICTED, TP, Measurement, class_counts, class_table, f1_sums

Entity = tuple[str, int, int]
"""Type, first word, last word (inclusive)."""

ENTITY_TAG = re.compile(r"O|[BIES](-.*)?")

UNTYPED = "_"
"""The type of a bare `B` or `I`, as seqeval prints it."""


def measure_tags(
    gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]], documents: Sequence[str]
) -> Measurement:
    """Metrics of one tagger: tags [sentences][words], documents [sentences] (the id of the text a sentence is from).

    Sums `entity_f1` (only where the tags mark entities), `token_micro` (the accuracy), `token_macro`, `token_weighted`;
    tables "entities" and "tokens". Raises InputError where the shapes differ or there is no word.
    """
    _check_shapes(gold, predicted, documents)
    rows, number = document_rows(documents)
    word_rows = np.repeat(rows, [len(tags) for tags in gold])
    labels, counts = class_counts(word_rows, number, list(chain(*gold)), list(chain(*predicted)))
    sums: dict[str, Sums] = {}
    tables = {}
    if marks_entities(labels):
        types, found = entity_counts(gold, predicted, documents)
        sums["entity_f1"] = f1_sums("entity_f1", "micro", found)
        tables["entities"] = class_table(types, found, single_label=False)
    for average in ("micro", "macro", "weighted"):
        sums[f"token_{average}"] = f1_sums(f"token_{average}", average, counts)
    tables["tokens"] = class_table(labels, counts, single_label=True)
    return Measurement(len(gold), sums, tables)


def marks_entities(labels: Iterable[str]) -> bool:
    """Whether all labels are `O`, or `B`, `I`, `E`, `S` with or without a type."""
    return all(ENTITY_TAG.fullmatch(name) for name in labels)


def entities(tags: Sequence[str]) -> list[Entity]:
    """The entities of one sentence, in order, by conlleval's rules. Raises InputError for a tag that is not BIO(ES)."""
    found: list[Entity] = []
    first, previous, previous_type = 0, "O", ""
    for i, name in enumerate([*tags, "O"]):
        if not ENTITY_TAG.fullmatch(name):
            raise InputError(f"tag {name!r} is neither O nor B-, I-, E- or S-TYPE; entities need such tags; rename it")
        tag, type_ = name[0], name[2:] or UNTYPED
        boundary = tag in "BSO" or previous in "OES" or type_ != previous_type
        if boundary and previous != "O":
            found.append((previous_type, first, i - 1))
        if boundary:
            first = i
        previous, previous_type = tag, type_
    return found


def entity_counts(
    gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]], documents: Sequence[str]
) -> tuple[list[str], Floats]:
    """The entity types that occur, sorted, and their counts, float64 [documents, types, 3] (TP, PREDICTED, GOLD)."""
    rows, number = document_rows(documents)
    pairs = [(set(entities(wanted)), set(entities(given))) for wanted, given in zip(gold, predicted, strict=True)]
    types = sorted({entity[0] for wanted, given in pairs for entity in wanted | given})
    position = {type_: i for i, type_ in enumerate(types)}
    counts = np.zeros((number, len(types), 3))
    for row, (wanted, given) in zip(rows, pairs, strict=True):
        for column, group in ((TP, wanted & given), (PREDICTED, given), (GOLD, wanted)):
            for type_, _, _ in group:
                counts[row, position[type_], column] += 1
    return types, counts


def _check_shapes(gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]], documents: Sequence[str]) -> None:
    if not len(gold) == len(predicted) == len(documents):
        raise InputError(
            f"{len(gold)} gold sentences, {len(predicted)} predicted and {len(documents)} document ids; the numbers "
            "must be equal; pass one of each per sentence"
        )
    for i, (wanted, given) in enumerate(zip(gold, predicted, strict=True)):
        if len(wanted) != len(given):
            raise InputError(
                f"sentence {i} has {len(wanted)} gold and {len(given)} predicted tags; a word has one of each; "
                "predict a tag for every word"
            )
    if not any(len(tags) for tags in gold):
        raise InputError(f"0 words in {len(gold)} sentences; metrics need at least 1; pass a split that is not empty")
