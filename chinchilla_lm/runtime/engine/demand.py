"""What a packed program must read and compute at the least, from its header alone: no weight is unpacked for it.

The counterpart of `runtime.measuring.roofline`, which counts a model in torch; both count the same work.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

from chinchilla_lm.models.config import HeadKind
from chinchilla_lm.pack.formats import format_of
from chinchilla_lm.pack.panels import LANES, round_up
from chinchilla_lm.runtime.card import Card
from chinchilla_lm.runtime.engine.program import Program

Part = dict[str, Any]

# Texts of a pass whose best words are looked for with a screen; of more the whole head is computed (native/pass.h).
SCREENED_ROWS = 8

# Bytes of a number; an int8 cache also has a float32 scale for each key and each value of a head.
_NUMBER_BYTES = {"f32": 4, "bf16": 2, "int8": 1}
_SCALE_BYTES = {"f32": 0, "bf16": 0, "int8": 4}


class Demand(Protocol):
    """What a model is for, how large it is, and what its work takes.

    positions, vocabulary: in tokens. parameters: a shared one counted once. bytes: of the weights as they are run.
    """

    kind: HeadKind
    causal: bool
    positions: int
    vocabulary: int
    parameters: int
    bytes: int

    def pass_flops(self, rows: int, tokens: int) -> float:
        """See roofline.pass_flops."""

    def decode_bytes(self, rows: int, seen: float) -> float:
        """See roofline.decode_bytes."""


class ProgramDemand:
    """That of a program: bytes as packed, a matrix's padding included, which is read with it."""

    def __init__(self, program: Program, card: Card) -> None:
        self._header = program.header
        self.kind, self.causal = card.kind, card.causal
        self.positions, self.vocabulary = card.max_positions, card.vocabulary
        self.bytes = int(program.data.size)
        self.parameters = count_parameters(program.header)

    def pass_flops(self, rows: int, tokens: int) -> float:
        """See roofline.pass_flops."""
        operations = [one for one in self._header["operations"] if one["kind"] != "norm"]
        per_token = sum(2 * size for one in operations for size in _weights(one))
        per_token += 2 * _size_of(self._header["embedding"]["project"])
        attention = sum(
            4 * one["heads"] * one["head_dim"] * pairs(tokens, one["window"], self.causal)
            for one in operations
            if one["kind"] == "attention"
        )
        memories = sum(8 * memory_size(one) * tokens for one in operations if one["kind"] == "delta")
        everywhere = self.kind == "token-classification" or (self.kind == "language-modeling" and not self.causal)
        head = sum(2 * size for size in _head_weights(self._header)) * (tokens if everywhere else 1)
        return float(rows * (per_token * tokens + attention + memories + head))

    def decode_bytes(self, rows: int, seen: float) -> float:
        """See roofline.decode_bytes."""
        tables = list(_tables(self._header))
        looked_up = rows * sum(one["size"] * _NUMBER_BYTES[one["format"]] for one in tables)
        cached = 0.0
        form = self._header["cache"]
        for one in self._header["operations"]:
            if one["kind"] == "attention":
                positions = min(seen, one["window"] or seen)
                entry = one["head_dim"] * _NUMBER_BYTES[form] + _SCALE_BYTES[form]
                cached += 2 * rows * positions * one["kv_heads"] * entry
            elif one["kind"] == "delta":
                cached += 2 * rows * 4 * memory_size(one)
        return self.bytes - looked_up_bytes(self._header) + looked_up + cached - self._passed_over(rows)

    def _passed_over(self, rows: int) -> int:
        """Bytes that a greedy step of so many texts can leave unread: of a screen, or of the matrix that it is for."""
        part = self._header["head"]["output"]
        if self._header["head"].get("screen") is None:
            return 0
        if rows > SCREENED_ROWS:
            return screen_bytes(self._header)
        panels = -(-part["outputs"] // LANES)
        return (panels - min(rows, panels)) * (matrix_bytes(part) // panels)


def matrix_bytes(part: Part) -> int:
    """Bytes of a packed matrix."""
    form = format_of(part)
    return form.bytes(part["outputs"], part["inputs"])


def screen_bytes(header: Part) -> int:
    """Bytes of the screen of a program's decoder; 0 where there is none."""
    screen = header["head"].get("screen")
    if screen is None:
        return 0
    vectors = 4 * (round_up(screen["lead"]["outputs"], LANES) + 2 * round_up(screen["axes"]["inputs"], LANES))
    return vectors + sum(matrix_bytes(screen[name]) for name in ("axes", "lead", "rest") if screen[name] is not None)


def looked_up_bytes(header: Part) -> int:
    """Bytes of embedding tables, of which a step of decoding reads one row. A table that is the decoder too is none."""
    return sum(one["rows"] * one["size"] * _NUMBER_BYTES[one["format"]] for one in _tables(header))


def count_parameters(header: Part) -> int:
    """Weights, biases and norms, without what pads them."""
    operations = sum(parameters_of(one, header["hidden"]) for one in header["operations"])
    return embedding_parameters(header) + head_parameters(header) + norm_parameters(header) + operations


def embedding_parameters(header: Part) -> int:
    """Those of the embedding; a table that is the decoder too counts as the head's."""
    embedding, relative, distances = header["embedding"], header["relative"], header["distances"]
    total = sum(_size_of_table(one) for one in _tables(header))
    total += _norm(embedding["norm"], embedding["size"]) + _size_of(embedding["project"]) + _bias(embedding["project"])
    total += 0 if relative is None else relative["heads"] * relative["buckets"]
    if distances is not None:
        total += _size_of_table(distances["embeddings"]) + _norm(distances["norm"], header["hidden"])
    return total


def norm_parameters(header: Part) -> int:
    """Those of the norm behind the last link; 0 where there is none."""
    return _norm(header["head"]["norm"], header["hidden"])


def head_parameters(header: Part) -> int:
    """Those of the head, without the norm before it."""
    head = header["head"]
    inner = header["hidden"] if head["dense"] is None else int(head["dense"]["outputs"])
    total = sum(_head_weights(header)) + sum(_bias(head[name]) for name in ("dense", "output"))
    return total + _norm(head["transform"], inner)


def parameters_of(one: Part, hidden: int) -> int:
    """Those of an operation: a link, or what is left of a dropped one, its norm."""
    total = _norm(one["norm"], hidden)
    if one["kind"] == "norm":
        return total
    total += sum(_weights(one)) + _norm(one["after"], hidden) + _bias(one["second"])
    total += _first_outputs(one) if one["first"]["bias"] is not None else 0
    if one["kind"] == "delta":
        features = 2 * one["key_heads"] * one["key_dim"] + one["value_heads"] * one["value_dim"]
        total += features * one["kernel"] + 2 * one["value_heads"] + _norm(one["head_norm"], one["value_dim"])
    if one["kind"] == "attention":
        total += sum(_size_of(one[name]) + _bias(one[name]) for name in ("key_matrix", "query_matrix"))
        queries, keys = (one["heads"], one["kv_heads"]) if one["whole_norms"] else (1, 1)
        total += _norm(one["query_norm"], queries * one["head_dim"]) + _norm(one["key_norm"], keys * one["head_dim"])
    return total


def memory_size(part: Part) -> int:
    """Numbers that an operation with the gated delta rule remembers; each is read and written at every token, and takes
    part in four products: of what is known, forgotten, written and asked for."""
    return int(part["value_heads"] * part["key_dim"] * part["value_dim"])


def pairs(tokens: int, window: int, causal: bool) -> int:
    """Pairs of positions, query and key, that one attention link compares. window: 0 for all."""
    window = min(window or tokens, tokens)
    behind = window * tokens - window * (window - 1) // 2  # position t sees min(t + 1, window), itself included
    return behind if causal else 2 * behind - tokens


def _tables(header: Part) -> Iterator[Part]:
    for name in ("tokens", "positions", "segments"):
        if header["embedding"][name] is not None:
            yield header["embedding"][name]


def _weights(operation: Part) -> tuple[int, int]:
    """Weights of an operation's two matrices."""
    second = operation["second"]
    return _first_outputs(operation) * operation["first"]["inputs"], second["outputs"] * second["inputs"]


def _first_outputs(operation: Part) -> int:
    """Gate and up are padded to whole panels each; what comes out of them says how many there are."""
    gated = operation["kind"] == "mlp" and operation["gated"]
    return int(2 * operation["second"]["inputs"] if gated else operation["first"]["outputs"])


def _head_weights(header: Part) -> Iterator[int]:
    for name in ("dense", "output"):
        yield _size_of(header["head"][name])


def _size_of_table(part: Part) -> int:
    return int(part["rows"] * part["size"])


def _size_of(part: Part | None) -> int:
    return 0 if part is None else int(part["outputs"] * part["inputs"])


def _bias(part: Part | None) -> int:
    return int(part["outputs"]) if part is not None and part["bias"] is not None else 0


def _norm(part: Part | None, size: int) -> int:
    return 0 if part is None else size * sum(part[key] is not None for key in ("weight", "bias"))
