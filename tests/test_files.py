"""Whole or not there: what is left on the disk after each way a write can go wrong."""

import errno
import hashlib
import json
import math
import os
import re
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from chinchilla_lm import files
from chinchilla_lm.errors import InputError
from chinchilla_lm.files import (
    building,
    building_file,
    json_text,
    read_json,
    replace_folder,
    sha256_of,
    sha256_text,
    write_atomic,
)


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_write_makes_parents_replaces_and_leaves_nothing_else(tmp_path: Path):
    path = tmp_path / "a" / "b" / "plan.json"
    write_atomic(path, "old")
    write_atomic(str(path), "neu ü")
    assert path.read_bytes() == "neu ü".encode()
    write_atomic(path, b"\x00\xff")
    assert path.read_bytes() == b"\x00\xff"
    assert names(path.parent) == ["plan.json"]


def test_a_written_file_has_the_usual_permissions(tmp_path: Path):
    (tmp_path / "plain").touch()
    write_atomic(tmp_path / "ours", "x")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_link_is_followed(tmp_path: Path):
    (tmp_path / "link").symlink_to(tmp_path / "target")
    write_atomic(tmp_path / "link", "x")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_text() == "x"


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_failed_write_keeps_the_old_file_and_removes_the_temporary(tmp_path: Path, monkeypatch, error):
    path = tmp_path / "plan.json"
    write_atomic(path, "old")

    def fail(descriptor: int) -> None:
        raise error

    monkeypatch.setattr(files.os, "fsync", fail)
    with pytest.raises((InputError, KeyboardInterrupt)) as caught:
        write_atomic(path, "new")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["plan.json"]
    if isinstance(error, OSError):
        expected = f"cannot write {path}: No space left on device; free room or pass another -o"
        assert str(caught.value) == expected


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_file_that_is_built_is_whole_or_not_there(tmp_path: Path, error):
    path = tmp_path / "new" / "model.gguf"
    with building_file(path) as temporary:
        temporary.write_text("whole")
        assert not path.exists()

    def fail() -> None:
        with building_file(path) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises((InputError, KeyboardInterrupt)):
        fail()
    assert path.read_text() == "whole"
    assert names(path.parent) == ["model.gguf"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_device_is_written_to_directly_and_a_full_one_is_an_input_error():
    write_atomic("/dev/null", "x")
    assert not Path("/dev/null").is_file()
    with pytest.raises(InputError, match=r"cannot write /dev/full: No space left on device; free room"):
        write_atomic("/dev/full", "x")


def test_a_folder_or_a_file_in_the_way_is_an_input_error(tmp_path: Path):
    (tmp_path / "file").write_text("x")
    for path in (tmp_path, tmp_path / "file" / "below"):
        with pytest.raises(InputError, match=r"^cannot write .*; pass another -o$"):
            write_atomic(path, "x")
    assert names(tmp_path) == ["file"]


def test_hashes_are_sha256(tmp_path: Path):
    data = os.urandom(3 * (1 << 20) + 17)  # more than one read, and an odd rest
    (tmp_path / "x").write_bytes(data)
    assert sha256_of(tmp_path / "x") == hashlib.sha256(data).hexdigest()
    assert sha256_text("ü") == hashlib.sha256("ü".encode()).hexdigest()
    with pytest.raises(InputError, match=r"cannot read .*none: No such file"):
        sha256_of(tmp_path / "none")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "plan {path} does not exist; check the path"),
        (b'{"a": 1,}', "plan {path} is not valid JSON: .* at line 1 column 9; restore it or make it again"),
        (b"", "plan {path} is not valid JSON: .* at line 1 column 1;"),
        (b'{"a": "\xff"}', r"plan {path} is not UTF-8 text \(byte 7\);"),
        (b"[" * 200_000, "plan {path} is nested too deeply|plan {path} is not valid JSON"),
    ],
)
def test_bad_json_is_one_clear_line(tmp_path: Path, content: bytes | None, message: str):
    path = tmp_path / "plan.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_json(path, "plan")
    assert re.match(message.replace("{path}", re.escape(str(path))), str(caught.value))
    assert "\n" not in str(caught.value)


def test_json_text_is_strict_json():
    @dataclass
    class Point:
        x: float
        where: Path

    value = {
        "nan": math.nan,
        "inf": [np.float32("inf"), -math.inf],
        "numpy": np.arange(3),
        "scalar": np.float64(0.5),
        "flag": np.bool_(True),
        "point": Point(1.5, Path("a/b")),
        "set": {"b", "a"},
        3: "key",
    }
    text = json_text(value)
    assert json.loads(text, parse_constant=lambda name: pytest.fail(name)) == {
        "nan": None,
        "inf": [None, None],
        "numpy": [0, 1, 2],
        "scalar": 0.5,
        "flag": True,
        "point": {"x": 1.5, "where": "a/b"},
        "set": ["a", "b"],
        "3": "key",
    }
    assert json_text("ü") == '"ü"'
    assert json_text("ü", ascii_only=True) == '"\\u00fc"'
    with pytest.raises(TypeError, match="object has no JSON form"):
        json_text({"x": object()})


def make(folder: Path, text: str, error: BaseException | None = None) -> None:
    with building(folder) as temporary:
        (temporary / "config.json").write_text(text)
        if error is not None:
            raise error


def test_a_folder_appears_whole_and_is_replaced_whole(tmp_path: Path):
    model = tmp_path / "out" / "model"
    make(model, "old")
    (model / "extra").touch()
    with building(model) as temporary:
        (temporary / "config.json").write_text("new")
        assert temporary.parent == model.parent
        assert (model / "config.json").read_text() == "old", "the old one stays until the new one is whole"
    assert names(model) == ["config.json"]
    assert (model / "config.json").read_text() == "new"
    assert names(tmp_path / "out") == ["model"]


@pytest.mark.parametrize("error", [OSError("disk"), KeyboardInterrupt(), ValueError("bug")])
def test_a_folder_that_failed_leaves_the_old_one(tmp_path: Path, error: BaseException):
    model = tmp_path / "model"
    make(model, "old")
    with pytest.raises(type(error)):
        make(model, "new", error)
    assert names(tmp_path) == ["model"]
    assert (model / "config.json").read_text() == "old"


def test_a_folder_that_is_not_ours_is_refused_before_any_work(tmp_path: Path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").touch()
    with pytest.raises(InputError, match=r"photos holds files but no config.json.*pass another -o"):
        make(tmp_path / "photos", "x")
    assert names(tmp_path / "photos") == ["cat.jpg"]
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"file is a file, not a folder"):
        make(tmp_path / "file", "x")
    (tmp_path / "empty").mkdir()
    make(tmp_path / "empty", "x")
    assert names(tmp_path / "empty") == ["config.json"]


def test_a_failed_rename_brings_the_old_folder_back(tmp_path: Path):
    make(tmp_path / "model", "old")
    with pytest.raises(InputError, match="cannot write"):
        replace_folder(tmp_path / "missing", tmp_path / "model")
    assert (tmp_path / "model" / "config.json").read_text() == "old"
    assert names(tmp_path) == ["model"]


@pytest.mark.skipif(os.name == "nt", reason="needs kill -9")
def test_what_a_killed_process_left_is_swept_and_a_living_one_is_left_alone(tmp_path: Path):
    script = (
        "import sys, time; from chinchilla_lm.files import building\n"
        "with building(sys.argv[1]) as t:\n"
        "    (t / 'half').touch(); print('ready', flush=True); time.sleep(20)"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "model")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        make(tmp_path / "model", "first")
        assert len(names(tmp_path)) == 2, "the living process keeps its half"
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert len(names(tmp_path)) == 2, "kill -9 leaves a half-built folder"
    make(tmp_path / "model", "second")
    assert names(tmp_path) == ["model"]
