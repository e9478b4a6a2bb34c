"""Ten thousand calls from several Python threads at one engine; `sanitize.sh` runs them under ThreadSanitizer too."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from chinchilla_lm.runtime.engine.compile import compile_model
from chinchilla_lm.runtime.engine.native import NativeModel, engine_module
from tests.native.examples import load, texts

pytestmark = pytest.mark.skipif(engine_module() is None, reason="the engine is not built")
CALLS, THREADS = 10_000, 4


@pytest.mark.parametrize("members", [1, 2])
def test_ten_thousand_calls_of_four_threads(tmp_path: Path, members: int):
    """Passes over one text and several, with caches and without, and all that is asked of an engine meanwhile."""
    native = NativeModel(compile_model(load(tmp_path, "llama-gqa"), "int8"), members)
    some = texts((1, 3, 9, 5))
    alone = [native.run([one]) for one in some]
    together = native.run(some)
    left = iter(range(CALLS))
    wrong: list[object] = []

    def read(number: int) -> bool:
        one = some[number % 4]
        if number % 5 == 0:
            return np.array_equal(native.run(some), together)
        if number % 5 == 1:
            cache = native.cache(16)
            native.run([one], [cache])
            cache.rewind(len(one) - 1)
            return np.array_equal(native.run([one[-1:]], [cache]), alone[number % 4]) and cache.length == len(one)
        if number % 5 == 2:
            native.rest()
            return native.take_seconds()[1] >= 0 and native.workspace_bytes > 0
        return np.array_equal(native.run([one]), alone[number % 4])

    def work() -> None:
        for number in left:
            try:
                if not read(number):
                    wrong.append(number)
            except Exception as error:  # a thread's exception is seen by nobody else
                wrong.append(error)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        threads = [threading.Thread(target=work) for _ in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    assert not wrong
