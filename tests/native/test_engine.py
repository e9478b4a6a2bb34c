"""The engine against the torch model, and through it against transformers: every family, head and way to read."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from chinchilla_lm.errors import InputError
from chinchilla_lm.models import checkpoint as checkpoints
from chinchilla_lm.models.batch import Batch
from chinchilla_lm.models.transformer import NormFate, Transformer
from chinchilla_lm.runtime.compile import compile_model
from chinchilla_lm.runtime.native import NativeModel, engine_module
from chinchilla_lm.runtime.program import write_program
from chinchilla_lm.shorten.surgery import without
from tests.models.tiny import CASES, DECODERS, ENCODERS, VOCAB, saved

pytestmark = pytest.mark.skipif(engine_module() is None, reason="the engine is not built")

HEADS = ["token-classification", "text-classification", "ranking", "embedding"]
LENGTHS = (24, 1, 7, 13, 3)


def load(tmp_path: Path, name: str, kind: str = "language-modeling") -> Transformer:
    model = checkpoints.load(saved(tmp_path, name, kind)[1], task=kind).model
    return model.eval().requires_grad_(False)


def texts(lengths: tuple[int, ...] = LENGTHS) -> list[np.ndarray]:
    random = np.random.default_rng(7)
    return [random.integers(7, VOCAB, length).astype(np.int32) for length in lengths]


@torch.no_grad()
def torch_rows(model: Transformer, sequences: list[np.ndarray]) -> np.ndarray:
    """Outputs of one sequence after the other, their rows stacked."""
    found: list[Tensor] = [model(Batch(torch.tensor(one.astype(np.int64))[None]))[0] for one in sequences]
    return torch.cat([one if one.dim() == 2 else one[None] for one in found]).numpy()


def assert_near(got: np.ndarray, expected: np.ndarray, tolerance: float = 1e-4) -> None:
    assert got.shape == expected.shape
    assert np.isfinite(got).all()
    assert np.abs(got - expected).max() < tolerance
    assert expected.std() > 0.01


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_every_family_gives_what_torch_gives(tmp_path: Path, name: str, threads: int):
    model = load(tmp_path, name)
    native = NativeModel(compile_model(model, "f32"), threads)
    assert_near(native.run(texts(), everywhere=True), torch_rows(model, texts()))
    for one in texts():
        assert_near(native.run([one], everywhere=True), torch_rows(model, [one]))


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("name", ["llama-gqa", "gpt2", "bert", "roberta", "distilbert", "gemma3"])
def test_every_head(tmp_path: Path, name: str, kind: str):
    if (name, kind) == ("gemma3", "token-classification"):
        pytest.skip("transformers has no such class")
    model = load(tmp_path, name, kind)
    native = NativeModel(compile_model(model, "f32"), 2)
    assert_near(native.run(texts(), everywhere=True), torch_rows(model, texts()))
    first = native.run(texts()[:1], everywhere=True)
    assert np.abs(first - torch_rows(model, texts()[:1])).max() < 1e-4


@pytest.mark.parametrize("name", DECODERS)
def test_reading_in_pieces_is_reading_at_once(tmp_path: Path, name: str):
    model = load(tmp_path, name)
    native = NativeModel(compile_model(model, "f32"), 2)
    one, other = texts((24, 17))
    caches = [native.cache(24), native.cache(30)]
    got_one, got_other = [], []
    for start, stop in [(0, 5), (5, 6), (6, 15), (15, 16), (16, 17)]:
        rows = native.run([one[start:stop], other[start:stop]], caches, everywhere=True)
        got_one.append(rows[: stop - start])
        got_other.append(rows[stop - start :])
    got_one.append(native.run([one[17:]], caches[:1], everywhere=True))
    assert [cache.length for cache in caches] == [24, 17]
    assert_near(np.concatenate(got_one), torch_rows(model, [one]))
    assert_near(np.concatenate(got_other), torch_rows(model, [other]))
    caches[1].rewind(9)
    assert_near(native.run([other[9:]], caches[1:]), torch_rows(model, [other])[-1:])


@pytest.mark.parametrize("cache", ["bf16", "int8"])
@pytest.mark.parametrize("name", ["llama-gqa", "gpt2", "gemma3"])
def test_a_cache_of_few_bits_read_in_pieces(tmp_path: Path, name: str, cache: str):
    """Weights are exact, so what differs is the cache's rounding; how a text was cut must not show."""
    model = load(tmp_path, name)
    program = compile_model(model, "f32")
    program.header["cache"] = cache
    native = NativeModel(program, 2)
    one, other = texts((40, 18))
    at_once = native.run([one], everywhere=True)
    exact = torch_rows(model, [one])
    assert 0 < np.sqrt(np.mean((at_once - exact) ** 2)) < 0.02 * exact.std()
    caches = [native.cache(40), native.cache(50)]
    native.run([one[:31], other], caches)
    caches[0].rewind(3)
    got = []
    for start, stop in [(3, 6), (6, 7), (7, 12), (12, 13), (13, 14), (14, 35)]:
        got.append(native.run([one[start:stop]], caches[:1], everywhere=True))
    for position in range(35, 40):
        got.append(native.run([one[position : position + 1], other[-1:]], caches)[:1])
    assert_near(np.concatenate(got), at_once[3:], 0.02 * float(exact.std()))


@pytest.mark.parametrize("form", ["bf16", "int8", "int4"])
@pytest.mark.parametrize("name", ["llama-gqa", "gpt2", "bert", "gemma3"])
def test_low_bits_are_near_their_torch_twin(tmp_path: Path, name: str, form: str):
    """The twin has the same rounded weights; activations are rounded in the engine alone."""
    model = load(tmp_path, name)
    got = NativeModel(compile_model(model, form), 2).run(texts(), everywhere=True)
    exact = torch_rows(model, texts())
    limit = {"bf16": 0.03, "int8": 0.06, "int4": 0.5}[form] * exact.std()
    assert np.sqrt(np.mean((got - exact) ** 2)) < limit


@pytest.mark.parametrize("name", ["llama-gqa", "bert"])
def test_dropped_links_are_absent(tmp_path: Path, name: str):
    model = load(tmp_path, name)
    fates: dict[str, NormFate] = {"0.mlp": "lose", "1.attn": "lose", "2.mlp": "keep" if name == "bert" else "lose"}
    short = without(model, fates, share=True)
    program = compile_model(short, "f32")
    names = [operation["name"] for operation in program.header["operations"]]
    assert names == ["0.attn", "1.mlp", "2.attn"] + (["2.mlp"] if name == "bert" else [])
    native = NativeModel(program, 2)
    assert_near(native.run(texts(), everywhere=True), torch_rows(short, texts()))
    if name == "llama-gqa":
        assert native.cache(10).bytes < NativeModel(compile_model(model, "f32"), 2).cache(10).bytes


@pytest.mark.parametrize("name", ENCODERS[:1])
@torch.no_grad()
def test_segments(tmp_path: Path, name: str):
    model = load(tmp_path, name)
    one = texts((9,))[0]
    kinds = np.array([0] * 4 + [1] * 5, np.int32)
    ids, segments = (torch.tensor(part.astype(np.int64))[None] for part in (one, kinds))
    expected = model(Batch(ids, segments=segments))[0]
    native = NativeModel(compile_model(model, "f32"), 2)
    assert_near(native.run([one], segments=[kinds], everywhere=True), expected.numpy())
    with pytest.raises(InputError, match="segment 2"):
        native.run([one], segments=[kinds + 1])


def test_what_does_not_fit_is_refused(tmp_path: Path):
    model = load(tmp_path, "llama-gqa")
    native = NativeModel(compile_model(model, "f32"), 2)
    cache = native.cache(4)
    for sequences, caches, said in [
        ([np.array([VOCAB], np.int32)], [], "token id 97 is not in 0 … 96"),
        ([np.array([-1], np.int32)], [], "token id -1"),
        ([np.array([], np.int32)], [], "no tokens"),
        ([np.full(65, 8, np.int32)], [], "65 positions do not fit the model of 64"),
        ([np.full(5, 8, np.int32)], [cache], "5 positions do not fit the cache of 4"),
        ([np.full(1, 8, np.int32)] * 2, [cache], "each sequence needs a cache"),
        ([np.full(1, 8, np.int32)] * 2, [cache, cache], "share one cache"),
    ]:
        with pytest.raises(InputError, match=said):
            native.run(sequences, caches)
    assert cache.length == 0
    other = NativeModel(compile_model(model, "f32"), 1)
    with pytest.raises(InputError, match="another model"):
        other.run([np.full(1, 8, np.int32)], [cache])


def long_reader(tmp_path: Path) -> Transformer:
    _, folder = saved(tmp_path, "llama-gqa")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 1024}), encoding="utf-8")
    return checkpoints.load(folder, task="language-modeling").model.eval()


@pytest.mark.parametrize("form", ["f32", "int8"])
def test_programs_that_take_the_cores_change_nothing(tmp_path: Path, form: str):
    """A team that loses its cores goes on with fewer members; the sums stay cut where they were."""
    program = compile_model(long_reader(tmp_path), form)
    (text,) = texts((400,))

    def read(native: NativeModel) -> np.ndarray:
        cache = native.cache(400)
        native.run([text[:300]], [cache])
        return np.concatenate([native.run([text[at : at + 1]], [cache]) for at in range(300, 400)])

    alone = read(NativeModel(program, 3))
    with ThreadPoolExecutor(4) as pool:
        for rows in pool.map(read, [NativeModel(program, 3) for _ in range(4)]):
            assert np.array_equal(rows, alone)


def test_a_long_past_shared_among_threads_gives_the_same(tmp_path: Path):
    model = long_reader(tmp_path)
    (text,) = texts((700,))
    expected = NativeModel(compile_model(model, "f32"), 1).run([text], everywhere=True)
    for threads in (2, 3, 5):
        native = NativeModel(compile_model(model, "f32"), threads)
        cache = native.cache(704)
        native.run([text[:128]], [cache])
        for position in range(128, 700):
            got = native.run([text[position : position + 1]], [cache])[0]
            if position % 37 == 0 or position > 690:
                assert_near(got, expected[position])


@torch.no_grad()
def test_a_long_text_is_read_in_passes(tmp_path: Path):
    model = long_reader(tmp_path)
    native = NativeModel(compile_model(model, "f32"), 2)
    first, second, third = texts((700, 30, 600))
    for everywhere in (True, False):
        caches = [native.cache(702), native.cache(40), native.cache(600)]
        got = native.run([first[:3]], caches[:1], everywhere=everywhere)
        rest = native.run([first[3:], second, third], caches, everywhere=everywhere)
        assert [cache.length for cache in caches] == [700, 30, 600]
        expected = [torch_rows(model, [one]) for one in (first, second, third)]
        if everywhere:
            assert_near(np.concatenate((got, rest)), np.concatenate(expected))
        else:
            assert_near(rest, np.stack([rows[-1] for rows in expected]))
        assert_near(native.run([first[-1:]], caches[:1]), native.run([np.append(first, first[-1])]))


def test_reading_much_takes_little_more_memory_than_reading_some(tmp_path: Path):
    native = NativeModel(compile_model(long_reader(tmp_path), "f32"), 2)
    (text,) = texts((1024,))
    cache = native.cache(1024)
    native.run([text[:512]], [cache])
    some = native.workspace_bytes
    native.run([text[512:]], [cache])
    cache.rewind(0)
    native.run([text], [cache])
    assert native.workspace_bytes < 1.3 * some


def test_ctrl_c_ends_a_long_text_and_leaves_the_cache_as_it_was(tmp_path: Path):
    native = NativeModel(compile_model(long_reader(tmp_path), "f32"), 2)
    (text,) = texts((1000,))
    cache = native.cache(1024)
    native.run([text[:5]], [cache])

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    def read_on() -> None:
        while True:
            native.run([text[5:]], [cache])
            cache.rewind(5)

    before = signal.signal(signal.SIGALRM, interrupted)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.001)
        with pytest.raises(KeyboardInterrupt):
            read_on()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert cache.length in (5, 1000)
    cache.rewind(5)
    assert_near(native.run([text[5:20]], [cache]), native.run([text[:20]]))


def test_many_threads_at_one_session(tmp_path: Path):
    native = NativeModel(compile_model(long_reader(tmp_path), "int8"), 2)
    some = texts((40, 3, 17, 600))
    expected = [native.run([one], [native.cache(1024)]) for one in some]

    def read(index: int) -> np.ndarray:
        cache = native.cache(1024)
        got = native.run([some[index % 4]], [cache])
        assert cache.length == len(some[index % 4])
        native.take_seconds()
        return got

    with ThreadPoolExecutor(6) as pool:
        for index, got in enumerate(pool.map(read, range(24))):
            assert np.array_equal(got, expected[index % 4])


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_session_goes_on_behind_a_fork(tmp_path: Path):
    native = NativeModel(compile_model(load(tmp_path, "llama-gqa"), "f32"), 3)
    expected = native.run(texts())
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        os._exit(0 if np.array_equal(native.run(texts()), expected) else 3)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert np.array_equal(native.run(texts()), expected)


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_child_of_a_session_at_work_has_a_session(tmp_path: Path):
    native = NativeModel(compile_model(long_reader(tmp_path), "f32"), 3)
    expected = native.run(texts())
    (text,) = texts((1000,))
    done = threading.Event()

    def read_on() -> None:
        while not done.is_set():
            native.run([text], [native.cache(1024)])

    reader = threading.Thread(target=read_on)
    reader.start()
    codes = []
    try:
        for _ in range(5):
            child = os.fork()
            if child == 0:
                signal.alarm(20)
                os._exit(0 if np.array_equal(native.run(texts()), expected) else 3)
            codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    finally:
        done.set()
        reader.join()
    assert codes == [0] * 5


def test_a_signal_handler_cannot_use_the_session_that_it_interrupts(tmp_path: Path):
    native = NativeModel(compile_model(long_reader(tmp_path), "f32"), 2)
    (text,) = texts((1000,))
    cache = native.cache(1024)
    said: list[str] = []

    def ask(*_: object) -> None:
        try:
            said.append(f"length {cache.length}")
        except RuntimeError as error:
            said.append(str(error))

    before = signal.signal(signal.SIGALRM, ask)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
        for _ in range(30):
            native.run([text], [cache])
            cache.rewind(0)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert any("signal handler" in one for one in said)


LIMITED = """
import resource
import sys

import numpy as np

from chinchilla_lm.errors import InputError
from chinchilla_lm.runtime.native import NativeModel
from chinchilla_lm.runtime.program import read_program

def limit(kilobytes):
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + kilobytes * 1024, resource.RLIM_INFINITY))

def unlimited():
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

program = read_program(sys.argv[1])
limit(800_000)
try:
    NativeModel(program, 1000)
except InputError as error:
    print(error)
unlimited()
few = [np.arange(8, dtype=np.int32)]
for kilobytes in range(0, 4000, 250):
    native = NativeModel(program, 3)
    expected = native.run(few)
    for many in ([np.full(1000, 8, np.int32)], [np.full(60, 8, np.int32)] * 20):
        limit(kilobytes)
        try:
            native.run(many, everywhere=True)
        except MemoryError:
            print("memory")
        finally:
            unlimited()
        assert np.array_equal(native.run(few), expected)
print("end")
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits memory as Linux does")
def test_what_the_system_does_not_give_is_an_error(tmp_path: Path):
    write_program(compile_model(long_reader(tmp_path), "f32"), tmp_path / "program.bin")
    ran = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path / "program.bin")],
        capture_output=True,
        text=True,
        timeout=100,
        # What was freed, or another thread has in hand, is not there to be had.
        env=os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"},
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    said = ran.stdout.splitlines()
    assert said[0].startswith("threads 1000")
    assert said[1:-1].count("memory") == len(said) - 2
    assert 4 < len(said) - 2 < 32
    assert said[-1] == "end"
