"""The engine and what it shares with others: cores, threads, processes, signals and memory."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from chinchilla_lm.runtime.engine.compile import compile_model
from chinchilla_lm.runtime.engine.native import NativeModel, engine_module
from chinchilla_lm.runtime.engine.program import write_program
from tests.native.examples import assert_near, load, long_reader, texts

pytestmark = pytest.mark.skipif(engine_module() is None, reason="the engine is not built")


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


@pytest.mark.parametrize("pasts", [(600, 9, 40, 1), tuple(range(512, 545))], ids=["few", "many"])
def test_texts_with_pasts_of_their_own_are_read_together_as_alone(tmp_path: Path, pasts: tuple[int, ...]):
    model = long_reader(tmp_path)
    whole = texts(tuple(past + 1 for past in pasts))
    alone = NativeModel(compile_model(model, "f32"), 1)
    expected = [alone.run([text])[0] for text in whole]
    for threads in (2, 4):
        native = NativeModel(compile_model(model, "f32"), threads)
        caches = [native.cache(past + 1) for past in pasts]
        for text, cache in zip(whole, caches, strict=True):
            native.run([text[:-1]], [cache])
        for got, one in zip(native.run([text[-1:] for text in whole], caches), expected, strict=True):
            assert_near(got, one)


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
from chinchilla_lm.runtime.engine.native import NativeModel
from chinchilla_lm.runtime.engine.program import read_program

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
