"""A program is read whole once, and again when its file is another."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chinchilla_lm.errors import InputError
from chinchilla_lm.runtime.engine import program as programs
from chinchilla_lm.runtime.engine import verified
from chinchilla_lm.runtime.engine.packed import PROGRAM
from chinchilla_lm.runtime.engine.program import read_program
from chinchilla_lm.runtime.packing import write_packed


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "chinchilla" / "verified"


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is later than the files' times by an hour, whatever they are."""
    monkeypatch.setattr(programs.time, "time_ns", lambda: 2**62)


@pytest.fixture
def packed(model_folder: Any, tmp_path: Path) -> Path:
    write_packed(model_folder(), "int8", tmp_path / "packed")
    return tmp_path / "packed" / PROGRAM


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of what is hashed, as it is: the data is far larger than the header."""
    sizes: list[int] = []
    real = hashlib.sha256

    def counting(data: Any = b"") -> Any:
        if isinstance(data, memoryview):
            sizes.append(data.nbytes)
        return real(data)

    monkeypatch.setattr(programs.hashlib, "sha256", counting)
    return sizes


def damage(path: Path) -> None:
    """Another byte in the weights, with size and times as they were, as far as a user can set them."""
    before = path.stat()
    with open(path, "r+b") as file:
        file.seek(before.st_size - 200)
        byte = file.read(1)[0]
        file.seek(before.st_size - 200)
        file.write(bytes([byte ^ 1]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_the_second_load_reads_the_header_alone(packed, cache, settled, hashed):
    first = read_program(packed)
    assert hashed == [first.size]
    second = read_program(packed)
    assert hashed == [first.size]
    assert second.header == first.header
    np.testing.assert_array_equal(second.data, first.data)
    assert len(list(cache.iterdir())) == 1


def test_a_file_that_changed_is_read_whole_again(packed, cache, settled, hashed):
    read_program(packed)
    damage(packed)
    for _ in range(2):  # what is damaged is never noted
        with pytest.raises(InputError, match="weights do not match their SHA-256"):
            read_program(packed)
    assert len(hashed) == 3


def test_another_file_under_the_name_is_read_whole(packed, cache, settled, hashed, tmp_path):
    read_program(packed)
    shutil.copy2(packed, tmp_path / "copy.bin")
    damage(tmp_path / "copy.bin")
    os.replace(tmp_path / "copy.bin", packed)
    with pytest.raises(InputError, match="weights do not match"):
        read_program(packed)


def test_a_file_that_was_just_written_is_not_noted(packed, cache, hashed):
    read_program(packed)
    read_program(packed)
    assert len(hashed) == 2
    assert not cache.exists()


def test_a_header_that_claims_another_hash_is_not_believed(packed, cache, settled):
    read_program(packed)
    data = bytearray(packed.read_bytes())
    data[60] ^= 1
    packed.write_bytes(data)
    with pytest.raises(InputError, match="header that does not match its SHA-256"):
        read_program(packed)


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff" * 1000, b"[" * 100_000])
def test_notes_that_say_something_else_are_not_believed(content: bytes, packed, cache, settled, hashed):
    read_program(packed)
    [note] = cache.iterdir()
    good = note.read_bytes()
    for bad in (content, good + b" ", good[:-1], good.replace(b'"bytes": ', b'"bytes":  ')):
        note.write_bytes(bad)
        before = len(hashed)
        read_program(packed)
        assert len(hashed) == before + 1
        assert note.read_bytes() == good  # and is mended


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root may give files away")
def test_a_note_of_another_user_is_not_believed(packed, cache, settled, hashed):
    read_program(packed)
    [note] = cache.iterdir()
    os.chown(note, 54321, 54321)
    read_program(packed)
    assert len(hashed) == 2


def test_without_a_cache_programs_are_read_whole(packed, settled, hashed, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))  # not even root can make a folder below it
    read_program(packed)
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    read_program(packed)
    assert len(hashed) == 2


def test_a_file_that_changes_while_it_is_read_is_not_noted(packed, cache, settled, monkeypatch):
    real = programs.hashlib.sha256

    def slow(data: Any = b"") -> Any:
        if isinstance(data, memoryview):
            os.utime(packed)
        return real(data)

    monkeypatch.setattr(programs.hashlib, "sha256", slow)
    read_program(packed)
    assert not cache.exists()


def test_a_large_file_that_a_certificate_names_is_read_once(cache: Path, settled: None, tmp_path: Path, monkeypatch):
    """And again when it is another, or when another hash is asked for; the notes of programs are left alone."""
    path = tmp_path / "weights"
    read: list[Path] = []
    path.write_bytes(bytes(verified.WORTH_A_NOTE))
    wanted = hashlib.sha256(path.read_bytes()).hexdigest()
    real = verified.sha256_of

    def counting(one: Path) -> str:
        read.append(one)
        return real(one)

    monkeypatch.setattr(verified, "sha256_of", counting)
    assert [verified.has_sha256(path, wanted) for _ in range(3)] == [True] * 3
    assert len(read) == 1
    assert not verified.has_sha256(path, "0" * 64)
    assert not verified.Seal(path, path.stat(), wanted).known(), "that is of a program's data"
    before = path.stat()
    path.write_bytes(b"1" + bytes(verified.WORTH_A_NOTE - 1))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert not verified.has_sha256(path, wanted)
    path.write_bytes(b"small")
    assert verified.has_sha256(path, hashlib.sha256(b"small").hexdigest())
    assert len(list(cache.iterdir())) == 1
