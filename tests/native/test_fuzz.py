"""Damaged programs and senseless calls: an error each time, never a crash, and never an answer of another shape.

CHINCHILLA_FUZZ=N tries N times as many cases. Each case runs in this process: under `sanitize.sh` a read outside a
buffer ends it, and the case that was being tried is named on standard error.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import random
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chinchilla_lm.errors import InputError
from chinchilla_lm.models import checkpoint as checkpoints
from chinchilla_lm.runtime.engine.compile import compile_model
from chinchilla_lm.runtime.engine.native import NativeModel, engine_module
from chinchilla_lm.runtime.engine.packed import PROGRAM
from chinchilla_lm.runtime.engine.program import MAGIC, START, Program, read_program, write_program
from chinchilla_lm.runtime.loading import load
from chinchilla_lm.runtime.packing import write_packed
from tests.models.tiny import VOCAB, saved

pytestmark = pytest.mark.skipif(engine_module() is None, reason="the engine is not built")

# Products of two of them leave 32 bits, or 64, or come back to a small number.
LARGE = [2**13, 2**16, 2**16 + 1, 2**20, 2**26 + 1, 2**27 + 1, 2**28 - 1, 2**28]
SIZES = (
    *("heads", "kv_heads", "head_dim", "outputs", "inputs", "rows", "size"),
    *("window", "group", "bits", "dims", "kept", "position_offset", "positions"),
    *("key_heads", "value_heads", "key_dim", "value_dim", "kernel", "switch"),
)
CASES = 150 * int(os.environ.get("CHINCHILLA_FUZZ", "1"))
VALUES: list[Any] = [
    *(
        0,
        1,
        -1,
        2,
        3,
        15,
        16,
        17,
        63,
        64,
        65,
        4096,
        *LARGE,
        2**31 - 1,
        -(2**31),
        2**31,
        2**32,
        2**63 - 1,
        -(2**63),
        2**64,
        10**30,
    ),
    *(
        0.5,
        -1.5,
        float("nan"),
        float("inf"),
        True,
        False,
        None,
        "",
        "f32",
        "int4",
        "attention",
        "norm",
        "é\0",
        [],
        {},
        [1],
    ),
]


ODDITIES = ["gemma2", "olmo2", "phi3-longrope", "qwen3_5", "electra", "mpnet", "modernbert", "deberta-v2"]


FORMATS_OF = {
    "llama-gqa": "int4",
    "qwen2": "codebook-2x64,*.second=sparse-50,head=codebook-4x256,1.mlp=sparse-75-codebook,0.attn=int3",
}


@pytest.fixture(scope="module", params=["llama-gqa", "qwen2", "bert", "gemma3", *ODDITIES])
def program(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Program:
    kind = "token-classification" if request.param == "bert" else "language-modeling"
    folder = tmp_path_factory.mktemp("fuzz")
    model = checkpoints.load(saved(folder, request.param, kind)[1], task=kind).model
    return compile_model(model, FORMATS_OF.get(request.param, "int8"))


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where every value of nested lists and dictionaries stands."""
    inside: list[tuple[Any, Any]] = []
    if isinstance(value, dict):
        inside = list(value.items())
    elif isinstance(value, list):
        inside = list(enumerate(value))
    return [path, *(one for key, part in inside for one in places(part, (*path, key)))]


def changed(header: dict[str, Any], drawn: random.Random) -> dict[str, Any]:
    """One to three values replaced, moved by one, or left out."""
    header = copy.deepcopy(header)
    for _ in range(drawn.randint(1, 3)):
        path = drawn.choice(places(header)[1:] or [("hidden",)])
        part: Any = header
        for key in path[:-1]:
            part = part[key]
        key = path[-1]
        how = drawn.random()
        if how < 0.15:
            del part[key]
        elif how < 0.4 and isinstance(part[key], int):
            part[key] += drawn.choice([-64, -16, -1, 1, 16, 64])
        elif how < 0.5 and isinstance(part, list):
            part.append(copy.deepcopy(part[key]))
        else:
            part[key] = copy.deepcopy(drawn.choice(VALUES))
    return header


def enlarged(header: dict[str, Any], drawn: random.Random) -> dict[str, Any]:
    """Two to four sizes of one part are large at once."""
    header = copy.deepcopy(header)
    parts = [part for path in places(header) if isinstance(part := at(header, path), dict) and sizes_in(part)]
    part = drawn.choice(parts)
    names = sizes_in(part)
    for key in drawn.sample(names, min(len(names), drawn.randint(2, 4))):
        part[key] = drawn.choice(LARGE)
    if drawn.random() < 0.5 and part.get("rope") is not None:
        part["rope"] = None  # which would else hold the size of a head
    return header


def sizes_in(part: dict[str, Any]) -> list[str]:
    return [key for key in SIZES if isinstance(part.get(key), int)]


def at(value: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        value = value[key]
    return value


def assert_exact(header: dict[str, Any]) -> None:
    """What the engine took must fit together in numbers of any length too, before it is run."""
    for part in header["operations"]:
        if part["kind"] == "attention":
            heads, kv_heads, size = part["heads"], part["kv_heads"], part["head_dim"]
            assert part["second"]["inputs"] == heads * size
            assert part["first"]["outputs"] == ((2 if part["gated_heads"] else 1) * heads + 2 * kv_heads) * size
        elif part["kind"] == "delta":
            keys, values = part["key_heads"] * part["key_dim"], part["value_heads"] * part["value_dim"]
            assert part["value_heads"] % part["key_heads"] == 0
            assert part["second"]["inputs"] == values
            assert part["first"]["outputs"] == 2 * (keys + values + part["value_heads"])
        elif part["kind"] == "mlp":
            inner = part["second"]["inputs"]
            assert part["first"]["outputs"] == (2 * -(-inner // 16) * 16 if part["gated"] else inner)


def try_out(program: Program, seed: object) -> bool:
    """Run a few tokens through a program; whether the engine took it."""
    print(f"seed {seed}", file=sys.stderr)
    try:
        model = NativeModel(program, 2)
    except (InputError, MemoryError):
        return False
    assert_exact(program.header)
    try:
        ids = np.array([1, 2, 3, 4, 5], np.int32)
        out = model.run([ids, ids[:2]], everywhere=True)
        tokens = model.best([ids, ids[:2]])[0].tolist() if program.header["causal"] else list[int]()
    except (InputError, MemoryError):
        return False
    assert out.ndim == 2
    assert all(0 <= token < out.shape[1] for token in tokens)
    return True


def test_changed_headers(program: Program):
    taken = 0
    for seed in range(CASES):
        header = changed(program.header, random.Random(seed))
        sizes = [header.get(key) for key in ("hidden", "vocabulary", "max_positions")]
        if any(isinstance(one, int) and one > 1 << 20 for one in sizes):
            continue  # would be refused, or only take memory
        taken += try_out(Program(header, program.data), seed)
    assert taken < CASES


def test_several_large_sizes_at_once(program: Program):
    for seed in range(CASES):
        try_out(Program(enlarged(program.header, random.Random(seed)), program.data), seed)


def test_sizes_whose_products_come_back_to_small_numbers(program: Program):
    """32 · (2^27 + 1) = 2^32 + 32: with 32 bits, large heads look like the small ones whose weights are there."""
    header = copy.deepcopy(program.header)
    part = next(one for one in header["operations"] if one["kind"] == "attention")
    inputs, large = part["second"]["inputs"], 2**32 + part["second"]["inputs"]
    heads = next(heads for heads in range(2 * inputs, 1 << 20, 2) if large % heads == 0)
    part |= {"heads": heads, "kv_heads": heads // 2, "head_dim": large // heads}
    part |= {"rope": None, "query_norm": None, "key_norm": None}
    part["first"]["outputs"] = 2 * inputs
    assert ((part["heads"] + 2 * part["kv_heads"]) * part["head_dim"] - part["first"]["outputs"]) % 2**32 == 0
    with pytest.raises(InputError, match=r"(qkv|out): is \d+ × \d+, not|heads have \d+ features"):
        NativeModel(Program(header, program.data), 2)


def test_weights_of_random_bytes(program: Program):
    for seed in range(max(3, CASES // 50)):
        drawn = np.random.default_rng(seed)
        size = program.data.size + 64
        room = drawn.integers(0, 256, size, dtype=np.uint8)
        start = -room.ctypes.data % 64
        assert try_out(Program(program.header, room[start : start + program.data.size]), seed)


def test_less_data_than_the_header_says(program: Program):
    for seed, cut in enumerate((64, 128, program.data.size // 128 * 64, program.data.size)):
        assert not try_out(Program(program.header, program.data[: program.data.size - cut]), seed)


@pytest.fixture(scope="module", params=[("llama-gqa", "language-modeling"), ("bert", "token-classification")])
def packed(request: pytest.FixtureRequest, model_folder: Callable[..., Path], tmp_path_factory: Any) -> Path:
    folder: Path = tmp_path_factory.mktemp("fuzz") / "packed"
    write_packed(model_folder(*request.param), "int8", folder)
    return folder


def damaged(header: dict[str, Any], drawn: random.Random) -> dict[str, Any]:
    """Changes that are mostly in what the card says, and in what it says again."""
    if drawn.random() < 0.3:
        return changed(header, drawn)
    header = copy.deepcopy(header)
    parts = [header["card"], header["card"], header["head"], header["embedding"], header, header["operations"][0]]
    for _ in range(drawn.randint(1, 2)):
        part = drawn.choice(parts)
        key = drawn.choice(list(part))
        value = part[key]
        if drawn.random() < 0.3 and type(value) is int:
            part[key] = value + drawn.choice([-1, 1, 16])
        elif drawn.random() < 0.3 and isinstance(value, list):
            part[key] = drawn.choice([value[:-1], value + value[:1], value[::-1]])
        else:
            part[key] = drawn.choice([*VALUES, "none", "mean", "last", "language-modeling", "embedding", 10**9])
    return header


def answer(folder: Path, backend: str) -> bool:
    """Whether a model can be loaded; if so its answers have the right shape."""
    try:
        session = load(folder, backend, dtype="float32" if backend == "torch" else "auto", threads=1)
        if session.card.kind == "language-modeling":
            assert session.logits([1, 2, 3]).shape == (3, session.card.vocabulary)
            session.generate("Once upon", 3, ignore_eos=True)
        elif session.card.kind == "token-classification":
            session.entities(["Angela Merkel met Siemens."])
    except (InputError, MemoryError):
        return False
    return True


def test_headers_and_cards_that_lie(packed: Path, tmp_path: Path):
    whole = read_program(packed / PROGRAM)
    clean = {key: value for key, value in whole.header.items() if key not in ("bytes", "sha256", "version")}
    assert all(answer(packed, backend) for backend in ("native", "torch"))
    folder = shutil.copytree(packed, tmp_path / "lies")
    for seed in range(CASES):
        header = damaged(clean, random.Random(seed))
        print(f"seed {seed}", file=sys.stderr)
        write_program(Program(header, whole.data), folder / PROGRAM)
        for backend in ("native", "torch"):
            answer(folder, backend)


# Of config.json, torch sessions give some to the tokenizer of transformers, which has errors of its own.
@pytest.mark.parametrize(("name", "backends"), [("config.json", ["native"]), ("chinchilla.json", ["native", "torch"])])
def test_other_files_that_lie(packed: Path, tmp_path: Path, name: str, backends: list[str]):
    folder = shutil.copytree(packed, tmp_path / "lies")
    file = folder / name
    whole = (
        json.loads(file.read_text()) if file.exists() else {"version": 1, "window": {"max_tokens": 8}, "tags": "BIO"}
    )
    for seed in range(CASES // 3):
        print(f"seed {seed}", file=sys.stderr)
        file.write_text(json.dumps(changed(whole, random.Random(seed))))
        for backend in backends:
            answer(folder, backend)


def test_damaged_files(program: Program, tmp_path: Path):
    whole = tmp_path / "whole.bin"
    write_program(program, whole)
    original = whole.read_bytes()
    file = tmp_path / "damaged.bin"
    for seed in range(CASES):
        drawn = random.Random(seed)
        data = bytearray(original)
        how = drawn.random()
        if how < 0.3:
            data = data[: drawn.randrange(len(data))]
        elif how < 0.6:
            for _ in range(drawn.randint(1, 8)):
                data[drawn.randrange(len(data))] ^= 1 << drawn.randrange(8)
        elif how < 0.8:
            begin = drawn.randrange(START + 64)
            data[begin : begin + 8] = drawn.randbytes(8)
        else:
            data = bytearray(drawn.randbytes(drawn.randrange(2 * START)))
        file.write_bytes(data)
        if bytes(data) == original:
            continue
        try:
            found = read_program(file)
        except InputError:
            continue
        start = len(original) - program.data.size  # only what is between header and data is not under a hash
        length = int.from_bytes(original[8:16], "little")
        assert data[: START + length] == original[: START + length], seed
        assert data[start:] == original[start:], seed
        del found


@pytest.mark.parametrize("text", [b"", b"[" * 100_000, b"{}", b"[]", b"null", b'{"version": 1}', b"\xff\xfe", b"1e999"])
def test_headers_that_match_their_hash(text: bytes, tmp_path: Path):
    file = tmp_path / "program.bin"
    head = MAGIC + len(text).to_bytes(8, "little") + hashlib.sha256(text).digest() + text
    file.write_bytes(head + bytes(-len(head) % 4096))
    with pytest.raises(InputError):
        read_program(file)


def test_senseless_calls(program: Program):
    model, other = NativeModel(program, 2), NativeModel(program, 1)
    most = program.header["max_positions"]
    drawn = random.Random(0)
    engine: Any = model._engine
    caches = [model.cache(8), other.cache(8)] if program.header["causal"] else []
    for _ in range(CASES):
        ids = [
            drawn.choice([0, 1, VOCAB - 1, VOCAB, -1, 2**31 - 1, 5]) for _ in range(drawn.choice([0, 1, 3, most + 1]))
        ]
        counts = [drawn.choice([0, 1, 2, len(ids), -1]) for _ in range(drawn.randint(0, 3))]
        given = [drawn.choice(caches) for _ in counts] if caches and drawn.random() < 0.5 else []
        segments = np.array([drawn.choice([0, 1, 2, -1]) for _ in ids], np.int32) if drawn.random() < 0.3 else None
        before = [cache.length for cache in caches]
        try:
            out = engine.run(np.array(ids, np.int32), counts, given, segments, drawn.random() < 0.5)
        except (ValueError, TypeError):
            assert [cache.length for cache in caches] == before
            continue
        assert sum(counts) == len(ids)
        assert all(0 <= one < VOCAB for one in ids)
        assert np.isfinite(out).all()
    for cache in caches:
        with pytest.raises(ValueError):
            cache.rewind(cache.length + 1)
        with pytest.raises(ValueError):
            cache.rewind(-1)
    for size in (0, -1):
        with pytest.raises(ValueError):
            model.cache(size)
    json.dumps(program.header)


def test_threads_cost_little_each(program: Program):
    for threads in (0, -1, 1025, 10**6):
        with pytest.raises(InputError, match="threads"):
            NativeModel(program, threads)
    model = NativeModel(program, 64)
    model.run([np.array([1, 2, 3], np.int32)], everywhere=True)
    assert model.workspace_bytes < 64 << 20
