"""Kept copies stay within their bounds, can be turned off, and are written by processes that come and go."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from chinchilla_lm.errors import InputError
from chinchilla_lm.runtime import loading
from chinchilla_lm.runtime.engine import keeping, kept
from chinchilla_lm.runtime.engine.kept import Place
from chinchilla_lm.runtime.engine.native import engine_module
from chinchilla_lm.runtime.engine.packed import PROGRAM
from tests.runtime.small_gguf import loaded, write_model

pytestmark = pytest.mark.skipif(engine_module() is None, reason="the engine is not built")


def test_the_copy_not_used_for_the_longest_time_goes_first(
    copies: Path, made: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    paths = [write_model(tmp_path / f"{number}.gguf", number) for number in range(3)]
    loaded(paths[0])
    [oldest] = copies.iterdir()
    loaded(paths[1])
    [middle] = set(copies.iterdir()) - {oldest}
    size = sum(one.stat().st_size for one in oldest.iterdir())
    monkeypatch.setattr(keeping, "MOST", size * 5 // 2)
    os.utime(oldest, (100, 100))
    os.utime(middle, (200, 200))
    loaded(paths[0])  # used just now
    loaded(paths[2])
    assert len(made) == 3
    assert oldest.exists()
    assert not middle.exists()
    assert len(list(copies.iterdir())) == 2


@pytest.mark.parametrize("why", ["bound", "disk"])
def test_a_copy_without_room_is_not_made_and_none_is_lost(
    why: str, copies: Path, made: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    loaded(write_model(tmp_path / "small.gguf"))
    before = set(copies.iterdir())
    if why == "bound":
        monkeypatch.setattr(keeping, "MOST", 1000)
    else:
        usage = shutil.disk_usage(tmp_path)._replace(free=1000)
        size = sum(one.stat().st_size for folder in before for one in folder.iterdir())
        assert (1000 + 2 * size) // 2 < 2 * size
        monkeypatch.setattr(keeping.shutil, "disk_usage", lambda path: usage)
        monkeypatch.setattr(kept.Program, "size", property(lambda self: size))
    assert loaded(write_model(tmp_path / "other.gguf", 1)).generate("the", 3, ignore_eos=True)
    assert set(copies.iterdir()) == before


def test_what_a_killed_process_left_is_removed_when_it_is_old(copies: Path, monkeypatch: pytest.MonkeyPatch):
    copies.mkdir(parents=True)
    old, young = (copies / f".{letter * 64}.building-host-1-x" for letter in "ab")
    for one in (old, young):
        one.mkdir()
        (one / PROGRAM).write_bytes(bytes(1000))
    os.utime(old, (100, 100))
    monkeypatch.setattr(keeping, "MOST", 1500)
    keeping.make_room(copies, 400)
    assert [one.name for one in copies.iterdir()] == [young.name]
    with pytest.raises(InputError, match="600 bytes are more than the 1500"):
        keeping.make_room(copies, 600)


def test_turned_off_it_neither_reads_nor_writes(copies: Path, made: list[str], tmp_path: Path, monkeypatch: Any):
    path = write_model(tmp_path / "model.gguf")
    monkeypatch.setenv("CHINCHILLA_KEEP", "0")
    loaded(path)
    assert not copies.exists()
    monkeypatch.setenv("CHINCHILLA_KEEP", "1")
    loaded(path)
    monkeypatch.setenv("CHINCHILLA_KEEP", "0")
    loaded(path)
    assert len(made) == 3
    monkeypatch.setenv("CHINCHILLA_KEEP", "perhaps")
    with pytest.raises(InputError, match="CHINCHILLA_KEEP=perhaps is not 0 or 1; set one of them"):
        loaded(path)


@pytest.mark.parametrize("where", ["a file in the way", "no home", "a full disk"])
def test_without_a_cache_nothing_is_kept_or_said(
    where: str, copies: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any, recwarn: Any
):
    if where == "a file in the way":
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    elif where == "no home":
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.delenv("HOME", raising=False)
        monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    else:

        def full(*_: Any) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(kept, "write_program", full)
    path = write_model(tmp_path / "model.gguf")
    for _ in range(2):
        assert len(loaded(path).generate("the", 3, ignore_eos=True)) > 0
    assert list(copies.parent.glob("programs/*")) == list(copies.parent.glob("programs/.*")) == []
    assert capfd.readouterr() == ("", "")
    assert [str(one.message) for one in recwarn if "chinchilla" in one.filename] == []


ENDING = """
import os, signal, sys, threading
from chinchilla_lm.runtime.engine import keeping
keeping.PAUSE = 1000.0  # the end of the process does not wait for it
signal.signal(signal.SIGINT, signal.default_int_handler)  # a test run in the background ignores Ctrl-C

def write(stop):
    how = sys.argv[1]
    if how == 'interrupted':
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.wait(60)
        stop = threading.Event()
        stop.wait(0.3)  # time that cleaning up takes
    print('cleaned up' if how == 'interrupted' else 'written', flush=True)
    raise keeping.Stopped

keeping.Writer(write).start()
if sys.argv[1] == 'forked' and not os.fork():
    sys.exit()
"""


@pytest.mark.parametrize(
    ("how", "said"), [("left alone", "written"), ("interrupted", "cleaned up"), ("forked", "written")]
)
def test_the_process_waits_at_its_end(how: str, said: str):
    if how == "forked" and not hasattr(os, "fork"):
        pytest.skip("nothing forks here")
    done = subprocess.run([sys.executable, "-c", ENDING, how], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, said + "\n", "")


def test_writing_that_is_stopped_leaves_nothing(copies: Path, tmp_path: Path):
    path = write_model(tmp_path / "model.gguf")
    place, stop = Place.of(path, "f32", None), threading.Event()
    assert place is not None
    program, card = loading.compile_file(path, "f32")
    stop.set()
    with pytest.raises(keeping.Stopped):
        place.write(program, card, stop)
    assert list(copies.iterdir()) == []
    stop.clear()
    place.write(program, card, stop)
    assert list(copies.iterdir()) == [place.folder]


SCRIPT = """
import sys
from chinchilla_lm.runtime import loading
from chinchilla_lm.runtime.engine import kept
loading.WORTH, kept.time.time_ns = 0.0, lambda: 2**62  # the file is as young as the test
session = loading.load(sys.argv[1], threads=1)
print(session.logits([5, 200, 17]).tobytes().hex())
print(session.generate('the', 5, ignore_eos=True).encode().hex())
if sys.argv[2:]:
    assert not {'torch', 'transformers'} & set(sys.modules), 'torch was imported'
    assert session.runner.model.program.path is not None
"""


def test_processes_at_once_and_one_after_them(copies: Path, tmp_path: Path):
    """Each waits at its end until its copy is written; the next needs no torch."""
    path = write_model(tmp_path / "model.gguf")
    start = [sys.executable, "-c", SCRIPT, str(path)]
    both = [subprocess.Popen(start, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [one.communicate(timeout=120) for one in both]
    assert [one.returncode for one in both] == [0, 0], said
    assert len(list(copies.iterdir())) == 1
    third = subprocess.run([*start, "x"], capture_output=True, text=True, timeout=60)
    assert third.returncode == 0, third.stderr
    assert [one for one, _ in said] == [third.stdout] * 2
    assert third.stderr == said[0][1] == said[1][1] == ""
