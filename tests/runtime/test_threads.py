"""Python threads that share a session get what one alone gets."""

from __future__ import annotations

import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from chinchilla_lm.runtime.engine.native import engine_module
from chinchilla_lm.runtime.loading import load
from chinchilla_lm.runtime.packing import write_packed
from chinchilla_lm.runtime.session import Session

NEEDS_ENGINE = pytest.mark.skipif(engine_module() is None, reason="the engine is not built")
LONG = "the quick brown fox met Angela Merkel in Munich , where the lazy dog slept . " * 9
CALLS: dict[str, tuple[str, str, list[Callable[[Session], Any]]]] = {
    "classify": (
        "bert",
        "text-classification",
        [lambda s: s.classify([LONG, "good"]), lambda s: s.classify(["is it"])],
    ),
    "pairs": ("llama-gqa", "text-classification", [lambda s: s.classify([(LONG, LONG)]), lambda s: s.classify(["a"])]),
    "entities": (
        "bert",
        "token-classification",
        [lambda s: s.entities([LONG, "Siemens"]), lambda s: s.entities(["x y"])],
    ),
    "embed": ("bert", "embedding", [lambda s: s.embed([LONG]).tolist(), lambda s: s.embed(["good", "bad"]).tolist()]),
    "score": ("bert", "ranking", [lambda s: s.score([("is it", LONG)]), lambda s: s.score([("a", "b")])]),
    "generate": (
        "llama-gqa",
        "language-modeling",
        [
            lambda s: s.generate("Once upon", 9),
            lambda s: s.generate("good", 6, chat=True, temperature=1.0, seed=3),
            lambda s: s.generate(["is it", "naïve"], 5),
            lambda s: s.logits([5, 9, 200]).tolist(),
        ],
    ),
}


@pytest.fixture(autouse=True)
def busy() -> Iterator[None]:
    """Threads take turns as often as can be: what happens once in hours on a server happens at once."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # texts are cut, and it is said so
        yield
    sys.setswitchinterval(before)


@pytest.mark.parametrize("packed", [False, True], ids=["unpacked", "packed"])
@pytest.mark.parametrize("backend", [pytest.param("native", marks=NEEDS_ENGINE), "torch"])
@pytest.mark.parametrize("name", CALLS)
def test_four_threads_get_what_one_gets(
    model_folder: Any, tmp_path: Path, name: str, backend: str, packed: bool
) -> None:
    model, kind, calls = CALLS[name]
    folder = model_folder(model, kind)
    if packed:
        write_packed(folder, "f32", tmp_path / "packed")
        folder = tmp_path / "packed"
    dtype = "auto" if packed and backend == "native" else "float32"
    alone = [str(call(load(folder, backend, dtype=dtype, threads=1))) for call in calls]
    session = load(folder, backend, dtype=dtype, threads=1)  # its tokenizer is read by whoever comes first
    share(session, calls, alone, turns=12)


@NEEDS_ENGINE
def test_ten_thousand_calls(model_folder: Any, tmp_path: Path) -> None:
    write_packed(model_folder("bert", "text-classification"), "int8", tmp_path / "packed")
    session = load(tmp_path / "packed", "native", threads=2)
    cut = "the quick brown fox met Angela Merkel " * 8
    calls: list[Callable[[Session], Any]] = [lambda s: s.classify([cut]), lambda s: s.classify(["is it", "good"])]
    share(session, calls, [str(call(session)) for call in calls], turns=2500)


def share(session: Session, calls: list[Callable[[Session], Any]], alone: list[str], turns: int) -> None:
    """Four threads make `turns` calls each; each gives what it gave alone."""
    start, wrong = threading.Barrier(4), list[str]()

    def work(first: int) -> None:
        start.wait()
        for turn in range(turns):
            which = (first + turn) % len(calls)
            try:
                found = str(calls[which](session))
            except Exception as error:  # a thread's exception is seen by nobody else
                found = repr(error)
            if found != alone[which]:
                wrong.append(found)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
