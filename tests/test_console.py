"""What goes where: results, remarks and progress, for people, for scripts, on a terminal and in a log."""

import io
import json
import math
import re
import subprocess
import sys

import pytest

from chinchilla_lm import console as module
from chinchilla_lm.console import Console, duration


@pytest.mark.parametrize(
    ("json_mode", "quiet", "out", "err"),
    [
        (False, False, "remark\nresult\n", "warning: doubt\n"),
        (False, True, "result\n", "warning: doubt\n"),
        (True, False, '{"x": 1}\n', "remark\nresult\nwarning: doubt\n"),
        (True, True, '{"x": 1}\n', "warning: doubt\n"),
    ],
)
def test_each_kind_has_one_place_to_go(capsys, json_mode: bool, quiet: bool, out: str, err: str):
    console = Console(json_mode, quiet)
    console.say("remark")
    console.show("result")
    console.warn("doubt")
    console.result({"x": 1})
    assert capsys.readouterr() == (out, err)


def test_result_is_one_line_of_strict_ascii_json(capsys):
    Console(json_mode=True).result({"value": math.nan, "low": -math.inf, "text": "ü\n\ud800"})
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    assert out.isascii()
    assert json.loads(out) == {"value": None, "low": None, "text": "ü\n\ud800"}


def test_brackets_are_text_not_markup(capsys):
    Console().say("[red]95 % [0.1, 0.2]")
    assert capsys.readouterr().out == "[red]95 % [0.1, 0.2]\n"


def test_a_letter_that_the_stream_lacks_is_escaped(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    Console().say("µs")
    assert raw.getvalue() == b"\\xb5s\n"


def test_plain_table_aligns_numbers_right_and_wide_letters_by_cells(capsys):
    rows = [["original", 22713216, 91.234567, None], ["短い", 1000, 8.5, math.nan]]
    Console().table(["name", "parameters", "F1", "speed"], rows, title="Rows")
    assert capsys.readouterr().out.splitlines() == [
        "Rows",
        "name      parameters     F1  speed",
        "--------  ----------  -----  -----",
        "original  22,713,216  91.23  -",
        "短い           1,000    8.5  -",
    ]


@pytest.mark.parametrize(
    ("cell", "numeric"),
    [
        ("1.5x", True),
        ("12.3 ms", True),
        ("-0.4", True),
        ("1e-05", True),
        ("97 %", True),
        ("12.attn", False),
        ("a", False),
    ],
)
def test_what_counts_as_a_number(cell: str, numeric: bool):
    assert module._is_numeric([cell, "-", ""]) is numeric


def test_a_row_of_the_wrong_length_is_refused():
    with pytest.raises(ValueError, match="each row needs 2 cells"):
        Console().table(["a", "b"], [[1]])


def test_tables_keep_standard_output_clean_in_json_mode(capsys):
    Console(json_mode=True).table(["a"], [[1]])
    Console(json_mode=True, quiet=True).table(["a"], [[2]])
    Console(quiet=True).table(["a"], [[3]])
    out, err = capsys.readouterr()
    assert "3" in out
    assert "1" not in out
    assert "1" in err
    assert "2" not in err


class Clock:
    """A clock that stands until it is told to move."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def test_a_log_gets_a_line_every_ten_seconds_with_the_time_left(capsys, clock: Clock):
    with Console().progress(60, "training", "steps") as progress:
        for _ in range(60):
            clock.now += 1.0
            progress.advance(note="loss 0.5")
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == ""
    assert lines[0] == "training: 10 of 60 steps, 0:50 left, loss 0.5"
    assert lines[-1] == "training: 60 of 60 steps in 1:00"
    assert len(lines) == 7


def test_short_work_leaves_no_lines_and_neither_does_quiet_work(capsys, clock: Clock):
    with Console().progress(5, "quick") as progress:
        clock.now += 9.0
        progress.advance(5)
    with Console(quiet=True).progress(5, "long") as progress:
        clock.now += 900.0
        progress.advance(5)
    assert capsys.readouterr() == ("", "")


def test_an_unknown_total_counts_without_an_end(capsys, clock: Clock):
    with Console().progress(0, "reading", "records") as progress:
        clock.now += 11.0
        progress.advance(1234)
    assert capsys.readouterr().err.splitlines()[0] == "reading: 1,234 records"


def test_work_that_failed_does_not_claim_to_be_done(capsys, clock: Clock):
    def fail() -> None:
        with Console().progress(100, "training") as progress:
            clock.now += 11.0
            progress.advance(1)
            raise ValueError

    with pytest.raises(ValueError):
        fail()
    assert capsys.readouterr().err == "training: 1 of 100, 18:09 left\n"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (7.4, "0:07"), (723, "12:03"), (3723, "1:02:03"), (-1, "0:00"), (math.nan, "?")]
)
def test_durations(seconds: float, text: str):
    assert duration(seconds) == text


ON_A_TERMINAL = """
from chinchilla_lm.console import Console
console = Console()
with console.progress(3, "outer", "steps") as outer:
    for _ in range(3):
        with console.progress(2, "inner") as inner:
            inner.advance(2, note="[red] note")
        print("to the pipe", flush=True)
        outer.advance()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_on_a_terminal_there_is_one_live_display_and_the_pipe_stays_clean():
    import os
    import pty

    leader, follower = pty.openpty()
    done = subprocess.run(
        [sys.executable, "-c", ON_A_TERMINAL],
        stdout=subprocess.PIPE,
        stderr=follower,
        text=True,
        timeout=60,
        env=os.environ | {"TERM": "xterm", "COLUMNS": "100"},
    )
    os.close(follower)
    shown = os.read(leader, 1 << 16).decode()
    os.close(leader)
    assert done.returncode == 0
    assert done.stdout == "to the pipe\n" * 3
    last = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown.rsplit("\x1b[1A", 1)[-1])
    assert "3 of 3 steps" in last
    assert "inner" not in last, "an inner row vanishes when it is done"
