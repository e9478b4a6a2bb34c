"""The largest output by a screen, against that of the whole head: the same to the bit, whatever weights and states are.

Programs here have no links: an embedding, whose rows are the states, and a head.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chinchilla_lm.errors import InputError
from chinchilla_lm.pack.formats import FORMATS
from chinchilla_lm.pack.screen import LEAD, LEAD_FORMAT, REST_FORMAT, screen
from chinchilla_lm.runtime.engine.compile import compile_model
from chinchilla_lm.runtime.engine.demand import SCREENED_ROWS, screen_bytes
from chinchilla_lm.runtime.engine.native import NativeModel, engine_module
from chinchilla_lm.runtime.engine.program import Parts, Program, read_program, write_program
from chinchilla_lm.runtime.engine.screening import moments, with_screen
from tests.native.examples import load
from tests.native.test_fuzz import CASES as CASES_OF_HEADERS
from tests.native.test_fuzz import changed, enlarged, try_out

ENGINE = engine_module()
SETS = [] if ENGINE is None else ENGINE.kernel_names()
pytestmark = pytest.mark.skipif(ENGINE is None, reason="the engine is not built")

Case = Callable[[np.random.Generator], tuple[np.ndarray, np.ndarray]]


def bare(states_RK: np.ndarray, weights_VK: np.ndarray, form: str, bias: Any = None, scale: float = 1.0) -> Program:
    """A model that gives W x for the token whose state x is."""
    parts, packed = Parts(), FORMATS[form]
    (rows, size), outputs = states_RK.shape, len(weights_VK)
    table = np.ascontiguousarray(states_RK, np.float32).reshape(-1).view(np.uint8)
    tokens = {"format": "f32", "rows": rows, "size": size, "offset": parts.add(table.size, partial(fill, table))}
    weights = np.ascontiguousarray(weights_VK, np.float32)
    output = {
        "format": packed.kind,
        "outputs": outputs,
        "inputs": size,
        "offset": parts.add(packed.bytes(outputs, size), partial(packed.pack_into, weights)),
        "bias": None if bias is None else parts.vector(bias),
        **packed.options,
    }
    embedding = dict.fromkeys(("positions", "segments", "norm", "project"))
    embedding |= {"tokens": tokens, "position_offset": 0, "scale": 1.0, "size": size}
    head = dict.fromkeys(("norm", "dense", "transform"))
    head |= {"pooling": "none", "normalize": False, "activation": "relu", "output": output}
    head |= {"scale": scale, "softcap": 0.0}
    sizes = {"hidden": size, "vocabulary": rows, "max_positions": 4 * rows}
    header = {"format": form, "causal": True, "cache": "f32", "relative": None, "distances": None, "ropes": []}
    header |= {**sizes, "embedding": embedding, "operations": [], "head": head}
    return Program(header, parts.made())


def fill(data: np.ndarray, room: np.ndarray) -> None:
    room[:] = data


def made(laid: Any) -> Program:
    """In memory, on 64 bytes."""
    parts, data = Parts(), np.concatenate(list(laid.blocks()))
    parts.add(data.size, partial(fill, data))
    return Program(laid.header, parts.made())


def screened(program: Program, states_RK: np.ndarray) -> Program:
    finite = np.asarray(states_RK[np.isfinite(states_RK).all(1)], np.float64)
    return made(with_screen(program, finite.T @ finite))


def assert_same(program: Program, states: int, threads: int, rows: int = 1) -> tuple[int, int, int, int]:
    """`rows` states at a time, each a sequence of its own."""
    model = NativeModel(program, threads)
    model.take_screened()
    for first in range(0, states, rows):
        ids = [np.array([token], np.int32) for token in range(first, min(first + rows, states))]
        caches = [model.cache(1) for _ in ids]
        with np.errstate(invalid="ignore"):
            logits = model.run(ids, [model.cache(1) for _ in ids])
        tokens, values = model.best(ids, caches)
        assert tokens.tolist() == logits.argmax(1).tolist()
        assert np.array_equal(values, logits[np.arange(len(ids)), tokens], equal_nan=True)
        assert [cache.length for cache in caches] == [1] * len(ids)
    return model.take_screened()


def gaussian(drawn: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    return drawn.standard_normal((6, 160)), drawn.standard_normal((333, 160))


def decaying(drawn: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """States along few axes, as a trained model's are; rows with much in common."""
    axes = np.linalg.qr(drawn.standard_normal((256, 256)))[0] * np.exp(-np.arange(256) / 20)[:, None]
    return drawn.standard_normal((6, 256)) @ axes * 40, drawn.standard_normal((2000, 256)) * 0.1 + 0.2


def outliers(drawn: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Features that are thousands of times the others, in states and in weights."""
    states, weights = drawn.standard_normal((6, 200)), drawn.standard_normal((500, 200))
    states[:, [3, 77]] *= 4000
    weights[:, [9, 110]] *= 300
    weights[::50] *= 30
    return states, weights


def ties(drawn: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Rows that are equal, or differ in the last place of one weight, in panels of their own."""
    states, weights = drawn.standard_normal((6, 128)), drawn.standard_normal((400, 128)).astype(np.float32) * 0.05
    for index, state in enumerate(states):
        row = (state / np.linalg.norm(state)).astype(np.float32)
        for place in (11 + index, 150 + index, 151 + index * 17, 399 - index):
            weights[place] = row
        weights[150 + index, index] = np.nextafter(row[index], np.float32(9))
    return states, weights


def all_alike(drawn: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    return drawn.standard_normal((4, 96)), np.tile(drawn.standard_normal(96), (200, 1))


def nothing(drawn: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    states, weights = drawn.standard_normal((4, 96)), drawn.standard_normal((200, 96))
    states[1] = 0
    weights[:150] = 0
    return states, weights


def tiny_numbers(drawn: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    return drawn.standard_normal((4, 96)) * 1e-30, drawn.standard_normal((200, 96)) * 1e-9


def large_numbers(drawn: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Sums that overflow: nothing bounds them."""
    states, weights = drawn.standard_normal((4, 96)), drawn.standard_normal((200, 96))
    states[:2] *= 1e30
    return states, weights * 1e9


def no_numbers(drawn: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    states = drawn.standard_normal((6, 96))
    states[0, 5], states[1, 90], states[2, 0], states[3] = np.nan, np.inf, -np.inf, np.nan
    return states, drawn.standard_normal((200, 96))


def few_inputs(drawn: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """All axes lead, and the last panel is not full."""
    return drawn.standard_normal((6, 37)), drawn.standard_normal((75, 37))


def few_words(drawn: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    return drawn.standard_normal((4, 80)), drawn.standard_normal((3, 80))


CASES: list[Case] = [
    gaussian,
    decaying,
    outliers,
    ties,
    all_alike,
    nothing,
    tiny_numbers,
    large_numbers,
    no_numbers,
    few_inputs,
    few_words,
]


@pytest.mark.parametrize("form", ["f32", "bf16", "int8", "int8-row"])
@pytest.mark.parametrize("isa", SETS)
def test_the_same_words(isa: str, form: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CHINCHILLA_ISA", isa)
    for seed, case in enumerate(CASES):
        states, weights = case(np.random.default_rng(seed))
        if case is large_numbers and form in ("int8", "bf16"):
            weights = np.clip(weights, -6e4, 6e4)  # scales are float16
        program = screened(bare(states, weights, form), states)
        for threads, rows in ((1, 1), (2, 1), (2, 3), (1, 6)):
            assert_same(program, len(states), threads, rows)


@pytest.mark.parametrize("isa", SETS)
def test_most_rows_and_more(isa: str, monkeypatch: pytest.MonkeyPatch):
    """AMX takes 8 rows in tiles, whose sums are others; of more rows no screen is looked at."""
    monkeypatch.setenv("CHINCHILLA_ISA", isa)
    states, weights = decaying(np.random.default_rng(3))
    states = np.tile(states, (7, 1))
    program = screened(bare(states, weights, "bf16"), states)
    assert assert_same(program, 40, 2, SCREENED_ROWS)[0] == 40
    assert assert_same(program, 40, 2, SCREENED_ROWS + 1)[0] == 40 % (SCREENED_ROWS + 1)
    assert assert_same(program, 40, 2, 40)[0] == 0


@pytest.mark.parametrize("scale", [1.0, 0.0625, 13.0])
def test_biases_and_scaled_logits(scale: float):
    """A scale may make equal what was not: the first of them counts."""
    random = np.random.default_rng(5)
    for form in ("f32", "int8-row"):
        states, weights = ties(random)
        bias = random.standard_normal(len(weights)).astype(np.float32)
        bias[[11, 150, 151, 399]] = 3.0
        program = screened(bare(states, weights, form, bias, scale), states)
        assert_same(program, len(states), 2)
        assert_same(program, len(states), 1, len(states))


def test_outputs_that_a_scale_makes_equal():
    """Two words a unit in the last place apart, the lower one in another panel and first."""
    one = np.float32(1.1754944e-38)
    weights = np.zeros((64, 16), np.float32)
    weights[40, 0], weights[3, 0] = np.nextafter(one, np.float32(1)), one
    states = np.eye(16, dtype=np.float32)[:1]
    program = screened(bare(states, weights, "f32", scale=0.001), states)
    assert assert_same(program, 1, 1)[2] >= 1
    assert NativeModel(program, 1).best([np.array([0], np.int32)])[0][0] == 3


def test_few_words_are_left():
    """Of states along few axes; and where there is no bound, all."""
    states, weights = decaying(np.random.default_rng(1))
    rows, words, panels, whole = assert_same(screened(bare(states, weights, "bf16"), states), len(states), 2)
    assert (rows, whole) == (len(states), 0)
    assert rows <= words < 0.3 * rows * len(weights)
    assert panels < 0.8 * rows * -(-len(weights) // 16)
    states, weights = no_numbers(np.random.default_rng(1))
    assert assert_same(screened(bare(states, weights, "bf16"), states), len(states), 1)[3] == 4


def test_bounds_that_are_too_small_choose_other_words():
    """That the cases are hard enough for a wrong bound to be seen."""
    random = np.random.default_rng(0)
    wrong = 0
    for _ in range(10):
        states, weights = random.standard_normal((20, 160)), random.standard_normal((333, 160)) * 0.01 + 0.1
        program = screened(bare(states, weights, "f32"), states)
        screen = program.header["head"]["screen"] | dict.fromkeys(("residual", "length", "stray"), 0.0)
        head = program.header["head"] | {"screen": screen}
        careless, plain = (
            NativeModel(Program(program.header | {"head": head}, program.data), 1),
            NativeModel(program, 1),
        )
        for token in range(len(states)):
            ids = [np.array([token], np.int32)]
            wrong += int(careless.best(ids)[0][0] != plain.best(ids)[0][0])
    assert wrong


@pytest.mark.parametrize("form", ["bf16", "int8", "int8-row", "f32"])
def test_the_bound_is_above_the_error(form: str):
    """What the screen says of each word, against the matrix in double precision."""
    for seed, case in enumerate((gaussian, decaying, outliers, ties)):
        states, weights = case(np.random.default_rng(seed))
        packed = FORMATS[form]
        exact = packed.unpack(packed.pack(weights.astype(np.float32)), *weights.shape).astype(np.float64)
        found = screen(exact.__getitem__, len(exact), states.T @ states)
        copied = [(LEAD_FORMAT, found.lead, found.lead_inputs)]
        if found.rest is not None:
            copied.append((REST_FORMAT, found.rest, weights.shape[1] - found.lead_inputs))
        copy_VJ = np.concatenate([one.unpack(data, len(weights), size) for one, data, size in copied], axis=1)
        by_axes = states @ found.axes_JK.T.astype(np.float64)
        error = np.abs(states @ (exact - found.center_K).T - by_axes @ copy_VJ.T.astype(np.float64))
        measured = np.linalg.norm(found.metric_J * by_axes, axis=1) * found.residual
        stray = found.stray * np.linalg.norm(states, axis=1)
        bound = measured[:, None] * found.sizes_V + stray[:, None]
        assert (error <= bound).all()
        assert np.median(bound / np.maximum(error, 1e-300)) < 1e3
        assert (np.linalg.norm(copy_VJ, axis=1) <= found.sizes_V * found.length).all()
        assert np.linalg.norm(exact, axis=1).max() <= found.largest


def test_a_whole_model(tmp_path: Path):
    """Texts of several lengths over caches, read together and on; and the program from its file."""
    program = compile_model(load(tmp_path, "llama-gqa"), "bf16")
    laid = with_screen(program, moments(NativeModel(program, 1)))
    write_program(laid, tmp_path / "program.bin")
    found = read_program(tmp_path / "program.bin")
    assert screen_bytes(found.header) == pytest.approx(found.size - program.size, abs=6 * 64)
    plain, quick = NativeModel(program, 2), NativeModel(found, 2)
    texts = [np.array(ids, np.int32) for ids in ([5, 9, 3], [44], [8, 8, 8, 2, 1])]
    caches, others = [[model.cache(20) for _ in texts] for model in (plain, quick)]
    for _ in range(9):
        logits = plain.run(texts, caches)
        tokens, values = quick.best(texts, others)
        assert tokens.tolist() == logits.argmax(1).tolist()
        assert values.tolist() == logits.max(1).tolist()
        texts = [np.array([token], np.int32) for token in tokens]
    assert quick.take_screened()[0] == 27
    assert np.array_equal(quick.states([texts[0]]), plain.states([texts[0]]))


def test_without_a_screen(tmp_path: Path):
    """Soft caps too; and where there is no next token there is no best one."""
    for name in ("llama-gqa", "gemma2"):
        model = NativeModel(compile_model(load(tmp_path / name, name), "f32"), 2)
        ids = [np.array([5, 9, 3], np.int32), np.array([7], np.int32)]
        logits = model.run(ids)
        tokens, values = model.best(ids)
        assert tokens.tolist() == logits.argmax(1).tolist()
        assert values.tolist() == logits.max(1).tolist()
        assert model.take_screened() == (0, 0, 0, 0)
    tagger = NativeModel(compile_model(load(tmp_path / "bert", "bert", "embedding"), "f32"), 1)
    for call in (tagger.best, tagger.states):
        with pytest.raises(InputError, match="not one for each token"):
            call([np.array([5], np.int32)])


def changes() -> list[tuple[tuple[str, ...], Any]]:
    """What makes a screen one that cannot be trusted."""
    numbers = ("residual", "length", "stray", "stretch", "largest", "bias")
    places: list[tuple[tuple[str, ...], Any]] = [
        ((name,), value) for name in numbers for value in (-1.0, np.inf, np.nan)
    ]
    places += [((name,), None) for name in ("axes", "lead", "center", "metric", "sizes", "rest", *numbers)]
    places += [((name,), 1 << 40) for name in ("center", "metric", "sizes")]
    places += [(("lead", "outputs"), 1999), (("lead", "inputs"), LEAD - 16), (("lead", "inputs"), 1 << 20)]
    places += [(("rest", "inputs"), 10), (("axes", "inputs"), 255), (("axes", "outputs"), 255), (("stretch",), 0.0)]
    places += [(("rest", "asymmetric"), True), (("lead", "offset"), -64), (("axes", "format"), "int2"), ((), [])]
    return [*places, (("lead", "bias"), 0), (("axes", "bias"), 0), (("lead",), "x"), (("rest", "group"), 7)]


@pytest.fixture(scope="module")
def sound() -> Program:
    states, weights = decaying(np.random.default_rng(2))
    return screened(bare(states, weights, "bf16"), states)


@pytest.mark.parametrize(("place", "value"), changes(), ids=str)
def test_screens_that_are_refused(sound: Program, place: tuple[str, ...], value: Any):
    header = copy.deepcopy(sound.header)
    part: Any = header["head"]
    for key in ("screen", *place)[:-1]:
        part = part[key]
    part[("screen", *place)[-1]] = value
    with pytest.raises(InputError, match="program"):
        NativeModel(Program(header, sound.data), 1)


@pytest.mark.parametrize("name", ["center", "metric", "sizes"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_numbers_that_are_refused(sound: Program, name: str, value: float):
    data = made(sound).data
    at = sound.header["head"]["screen"][name] + 4
    data[at : at + 4] = np.frombuffer(np.float32(value).tobytes(), np.uint8)
    with pytest.raises(InputError, match=r"head\.screen"):
        NativeModel(Program(sound.header, data), 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"softcap": 3.0}, "soft cap"),
        ({"scale": 1e-4}, "range"),
        ({"pooling": "mean"}, "writes text"),
        ({"output": None}, "writes text"),
    ],
)
def test_heads_that_have_no_use_for_one(change: dict[str, Any], message: str):
    program = bare(*few_inputs(np.random.default_rng(0)), "bf16")
    changed = Program(program.header | {"head": program.header["head"] | change}, program.data)
    with pytest.raises(InputError, match=message):
        with_screen(changed, np.eye(37))
    with pytest.raises(InputError, match="4 bits"):
        with_screen(bare(*few_inputs(np.random.default_rng(0)), "int4"), np.eye(37))
    with pytest.raises(InputError, match="not numbers"):
        with_screen(program, np.full((37, 37), np.nan))


def test_changed_screens(sound: Program):
    """Only what the header says of the screen; of what is taken the answers stay words."""
    screen = sound.header["head"]["screen"]
    for seed in range(CASES_OF_HEADERS):
        drawn = random.Random(seed)
        change = changed if drawn.random() < 0.7 else enlarged
        head = sound.header["head"] | {"screen": change(screen, drawn)}
        try_out(Program(sound.header | {"head": head}, sound.data), seed)


def test_weights_of_random_bytes(sound: Program):
    """All but the vectors, which are refused where they are no numbers."""
    screen = sound.header["head"]["screen"]
    for seed in range(3):
        data = made(sound).data
        data[: screen["center"]] = np.random.default_rng(seed).integers(0, 256, screen["center"], dtype=np.uint8)
        assert try_out(Program(sound.header, data), seed)
