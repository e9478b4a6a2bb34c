"""Who goes where: train, dev and test without a shared document; and which documents two sets share.

A made split never depends on the order of the file. A document goes by the hash of its content (with the seed), so that
it is on the same side again when others are added, and two copies of a text are always on one side.

Running text that marks no documents is the exception: its pieces continue each other, so it is cut into contiguous
stretches, train first and test last, with a piece left out between two of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, Literal, TypeVar

from chinchilla_lm.data.records import Record, Skipped, Tagged, Text, record_text, text_hash
from chinchilla_lm.data.text import PIECE_CHARACTERS
from chinchilla_lm.errors import InputError

R = TypeVar("R", bound=Record)
SplitBy = Literal["hash", "group", "time"]
SHARE = 0.1  # of the documents go to test and as many to dev, the usual 80/10/10
LEAST_PASSAGE = 40  # characters of a line; shorter ones stand everywhere
UNDATED = 0.05  # at most this share of records may lack a time where the split goes by time


class TooFewDocuments(InputError):
    """There are fewer different documents, or pieces of running text, than splits have to be made of."""


def document_hashes(records: Sequence[Record]) -> list[str]:
    """For each record the SHA-256 of its whole document: the record texts in order, one a line."""
    texts: dict[str, list[str]] = {}
    for record in records:
        texts.setdefault(record.document, []).append(record_text(record))
    hashes = {document: text_hash("\n".join(lines)) for document, lines in texts.items()}
    return [hashes[record.document] for record in records]


def disjoint(records: Sequence[R], test_records: Sequence[Record]) -> tuple[list[R], int]:
    """The records whose document is not, word for word, a document of the test data; and how many were removed."""
    forbidden = set(document_hashes(test_records))
    hashes = document_hashes(records)
    kept = [record for record, digest in zip(records, hashes, strict=True) if digest not in forbidden]
    return kept, len(records) - len(kept)


def shared_texts(records: Iterable[Record], others: Iterable[Record]) -> int:
    """How many distinct texts stand on both sides."""
    return len({record_text(record) for record in records} & {record_text(record) for record in others})


def shared_passages(records: Sequence[Record], others: Sequence[Record]) -> float:
    """The share of the records' passages that stand in `others` too, however both are cut into records: lines of a
    text, sentences with tags, whole short texts. 0 where no record has one of LEAST_PASSAGE characters."""
    passages = [passage for record in records for passage in _passages(record)]
    known = {passage for record in others for passage in _passages(record)}
    return sum(passage in known for passage in passages) / max(1, len(passages))


def _passages(record: Record) -> list[str]:
    lines = record.text.split("\n") if isinstance(record, Text) else [record_text(record)]
    single_spaced = [" ".join(line.split()) for line in lines]
    return [line for line in single_spaced if len(line) >= LEAST_PASSAGE]


def make_splits(
    records: Sequence[R], missing: Sequence[str], by: SplitBy, seed: int = 0
) -> tuple[dict[str, list[R]], list[Skipped]]:
    """Train and the `missing` of dev and test, out of `records`, each in file order; and the records that had no place.

    Records stay together when they share their document, or their text (for sentences with tags, which repeat short
    lines everywhere: when their whole documents are equal). By "time" the latest become test, and copies of a text go
    with the latest of them, so that train holds nothing of test. Data of which most is running text in long runs go by
    stretches in place of hashes; what lies between two stretches is in neither.

    Raises:
        TooFewDocuments: fewer different documents than splits, and no running text that is long enough.
        InputError: too many records without a time, or too few different times.
    """
    if by == "hash" and is_running(records, len(missing)):
        return _by_stretch(_runs(records), missing), []
    units = _units(records)
    skipped: list[Skipped] = []
    if by == "time":
        places, skipped = _by_time(records, units, missing)
    else:
        _require_enough(records, len(set(units)), missing, by)
        places = _by_hash(units, missing, seed)
    made: dict[str, list[R]] = {split: [] for split in ("train", *missing)}
    for record, unit in zip(records, units, strict=True):
        if unit in places:
            made[places[unit]].append(record)
    return made, skipped


def is_running(records: Sequence[Record], missing: int) -> bool:
    """Whether at least half of the records are pieces of running text in runs that `missing` splits can be cut from."""
    runs = _runs(records)
    return 2 * sum(len(run) for run in runs if len(run) >= _shortest_run(missing)) >= len(records) > 0


def _shortest_run(missing: int) -> int:
    """A piece for each split, and one between each two."""
    return 2 * missing + 1


def _runs(records: Sequence[R]) -> list[list[R]]:
    """The records in runs, of which each goes on where the one before it ends; most kinds of record are alone."""
    runs: list[list[R]] = []
    for record in records:
        if runs and isinstance(record, Text) and record.follows:
            runs[-1].append(record)
        else:
            runs.append([record])
    return runs


def _require_enough(records: Sequence[Record], documents: int, missing: Sequence[str], by: SplitBy) -> None:
    """Raises TooFewDocuments where there are fewer different documents than splits. Text may be one that marks none."""
    if documents > len(missing):
        return
    need = f"{len(missing) + 1} are needed for {_listed(['train', *missing])}"
    remedy = f"name files by {_listed(['--train', *(f'--{split}' for split in missing)])}"
    if by != "hash" or not all(isinstance(record, Text) for record in records):
        raise TooFewDocuments(f"{documents} different documents cannot be split, {need}; {remedy}")
    pieces, shortest = max(map(len, _runs(records)), default=0), _shortest_run(len(missing))
    raise TooFewDocuments(
        f"{documents} different documents cannot be split, {need}, or running text of {shortest} pieces, for one is "
        f"left out between two splits, and the longest here has {pieces} (a piece is whole paragraphs of "
        f"{PIECE_CHARACTERS:,} characters or more, so about {shortest * PIECE_CHARACTERS:,} are needed); "
        f"pass a longer text, or {remedy}"
    )


def _listed(words: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _by_stretch(runs: Sequence[list[Any]], missing: Sequence[str]) -> dict[str, list[Any]]:
    """Of each run that is long enough, the last SHARE to test, the next to dev, the rest to train, with a piece between
    them that is in none; shorter runs go to train."""
    made: dict[str, list[Any]] = {split: [] for split in ("train", *missing)}
    for run in runs:
        end = len(run)
        if end >= _shortest_run(len(missing)):
            for split in ("test", "dev"):
                if split in missing:
                    begin = end - max(1, int(SHARE * len(run)))
                    made[split] += _stretch(run[begin:end])
                    end = begin - 1
        made["train"] += run[:end]
    return made


def _stretch(records: Sequence[Text]) -> list[Text]:
    """Pieces in a row whose first follows nothing, for what was before it is elsewhere."""
    return [replace(records[0], follows=False), *records[1:]]


def _units(records: Sequence[Record]) -> list[str]:
    """For each record the name of what must stay together: the least content hash of all that its document, or the run
    of text that it is a piece of, touches."""
    documents = document_hashes(records)
    content = [
        documents[i] if isinstance(record, Tagged) else text_hash(" ".join(record.text.split()))
        for i, record in enumerate(records)
    ]
    parent: dict[str, str] = {}

    def root(node: str) -> str:
        while parent.setdefault(node, node) != node:
            parent[node] = node = parent[parent[node]]
        return node

    for record, digest in zip(records, content, strict=True):
        # A hash has 64 hexadecimal digits, a document's name is told apart by its prefix.
        parent[root(f"document {record.document}")] = root(digest)
    for before, digest, record in zip(content, content[1:], records[1:], strict=False):
        if isinstance(record, Text) and record.follows:
            parent[root(before)] = root(digest)
    least: dict[str, str] = {}
    for digest in content:
        top = root(digest)
        least[top] = min(least.get(top, digest), digest)
    return [least[root(digest)] for digest in content]


def _by_hash(units: Sequence[str], missing: Sequence[str], seed: int) -> dict[str, str]:
    """Unit to split. Below SHARE on the unit interval is test, below twice SHARE dev; each gets at least one unit."""
    position = {unit: int(text_hash(f"{seed}:{unit}")[:16], 16) / 2**64 for unit in units}
    order = sorted(position, key=lambda unit: position[unit])
    places = dict.fromkeys(order, "train")
    next_unit = 0
    waiting = len(missing)  # splits, train among them, that come after this one and need a unit each
    for low, split in ((0.0, "test"), (SHARE, "dev")):
        if split not in missing:
            continue
        inside = [unit for unit in order[next_unit:] if low <= position[unit] < low + SHARE]
        chosen = (inside or order[next_unit:][:1])[: len(order) - next_unit - waiting]
        places.update(dict.fromkeys(chosen, split))
        next_unit = order.index(chosen[-1]) + 1
        waiting -= 1
    return places


def _by_time(
    records: Sequence[Record], units: Sequence[str], missing: Sequence[str]
) -> tuple[dict[str, str], list[Skipped]]:
    """Unit to split, the latest SHARE of the records to test, the next to dev; a tie goes to the later side."""
    times = [getattr(record, "time", None) for record in records]
    latest: dict[str, str] = {}
    for unit, time in zip(units, times, strict=True):
        if time is not None:
            latest[unit] = max(latest.get(unit, time), time)
    skipped = [
        Skipped(r.id, "no time to split by") for r, unit in zip(records, units, strict=True) if unit not in latest
    ]
    if len(skipped) > UNDATED * len(records):
        raise InputError(
            f"{len(skipped)} of {len(records)} records have no readable time, more than {UNDATED:.0%}; "
            "name the right column by --time-column, or split by hash"
        )
    moments = sorted((latest[unit] for unit in units if unit in latest), reverse=True)
    places = dict.fromkeys(latest, "train")
    taken = 0
    bound: str | None = None
    for split in ("test", "dev"):
        if split not in missing:
            continue
        later = bound
        bound = moments[min(taken + max(1, int(SHARE * len(moments))), len(moments)) - 1]
        inside = [unit for unit, time in latest.items() if time >= bound and (later is None or time < later)]
        taken = sum(time >= bound for time in moments)
        places.update(dict.fromkeys(inside, split))
        if not inside or taken == len(moments):
            raise InputError(f"the {len(moments)} dated records have too few different times to split; split by hash")
    return places, skipped
