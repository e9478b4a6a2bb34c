"""What a person or a script sees of a verb at work.

Three kinds of output, each with one place to go:

    result    `show`, `table` on standard output; with --json one object (`result`) there, and nothing else
    remarks   `say` on standard output, on standard error with --json; --quiet drops them
    progress  on standard error, always with the time left; --quiet drops it. Warnings go there and are never dropped

On a terminal progress is one live line; elsewhere (a log, a pipe) a plain line at most every ten seconds.
"""

from __future__ import annotations

import contextlib
import math
import re
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO

from rich.cells import cell_len

from chinchilla_lm.files import json_text

if TYPE_CHECKING:
    from rich.progress import Progress as LiveProgress
    from rich.progress import TaskID

# Seconds between two progress lines where there is no terminal: often enough to see life, rare enough for a log.
PLAIN_INTERVAL_S = 10.0

# A number with an optional sign, separators, exponent and unit: such cells stand to the right.
_NUMBER = re.compile(r"[+\-−±]?[\d][\d,]*(\.\d+)?([eE][+\-]?\d+)?(\s?[%×x]|\s[^\s\d]{1,12})?")


def duration(seconds: float) -> str:
    """Seconds as `0:07`, `12:03` or `1:02:03`; `?` when not a finite number."""
    if not math.isfinite(seconds):
        return "?"
    minutes, second = divmod(round(max(0.0, seconds)), 60)
    hour, minute = divmod(minutes, 60)
    return f"{hour}:{minute:02d}:{second:02d}" if hour else f"{minute}:{second:02d}"


class Console:
    """Where a verb prints. `json_mode`: one JSON object only on standard output. `quiet`: results and warnings only."""

    def __init__(self, json_mode: bool = False, quiet: bool = False) -> None:
        self.json_mode = json_mode
        self.quiet = quiet
        self._live: LiveProgress | None = None
        self._live_users = 0

    def say(self, text: str) -> None:
        """A remark on the way: standard output, standard error in JSON mode, nowhere when quiet."""
        if not self.quiet:
            _print(text, sys.stderr if self.json_mode else sys.stdout)

    def show(self, text: str) -> None:
        """Part of the result, for people: standard output even when quiet; in JSON mode like `say`."""
        if self.json_mode:
            self.say(text)
        else:
            _print(text, sys.stdout)

    def warn(self, text: str) -> None:
        """A request ignored or a doubt about the figures: standard error, always."""
        _print(f"warning: {text}", sys.stderr)

    @contextlib.contextmanager
    def warned(self, kind: type[Warning]) -> Iterator[None]:
        """What is warned of meanwhile as lines of its own, and every warning of a kind."""
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always", kind)
            yield
        for one in found:
            self.warn(str(one.message))

    def result(self, value: Any) -> None:
        """The verb's one JSON object on standard output in JSON mode, nothing otherwise; NaN and infinities: null."""
        if self.json_mode:
            _print(json_text(value, ascii_only=True), sys.stdout)

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[Any]], title: str = "") -> None:
        """A result as a table, numbers to the right; None and NaN show as `-`. In JSON mode like `say`.

        Raises ValueError for a row that has not one cell a column.
        """
        if self.json_mode and self.quiet:
            return
        cells = [[_cell(value) for value in row] for row in rows]
        if any(len(row) != len(columns) for row in cells):
            raise ValueError(f"each row needs {len(columns)} cells, one for each of {', '.join(columns)}")
        right = [_is_numeric([row[column] for row in cells]) for column in range(len(columns))]
        stream = sys.stderr if self.json_mode else sys.stdout
        if _is_terminal(stream):
            _rich_table(columns, cells, right, title, stream)
        else:
            _print("\n".join(([title] if title else []) + plain_table(columns, cells, right)), stream)

    def progress(self, total: float, label: str, unit: str = "") -> Progress:
        """A context manager whose `.advance(n=1, note="")` counts towards `total` (in `unit`) and shows the time left.

        A total of 0 means unknown: the count is shown without an end. Several may be open at once.
        """
        if self.quiet:
            return Progress(total, label, unit)
        if not _is_terminal(sys.stderr):
            return _PlainProgress(total, label, unit)
        return _RichProgress(total, label, unit, self._enter_live, self._leave_live)

    def _enter_live(self) -> LiveProgress:
        """The one live display, started for the first progress that is open and shared by the others."""
        if self._live is None:
            self._live = _new_live()
            self._live.start()
        self._live_users += 1
        return self._live

    def _leave_live(self, task: TaskID) -> None:
        """The row of the last progress to close stays on the screen; an inner one vanishes, or each turn adds a row."""
        self._live_users -= 1
        if self._live is not None and self._live_users > 0:
            self._live.remove_task(task)
        elif self._live is not None:
            self._live.stop()
            self._live = None


class Progress:
    """Counts and shows nothing; what a quiet console hands out and what the two that show build on."""

    def __init__(self, total: float, label: str, unit: str) -> None:
        self.total, self.label, self.unit = float(total), label, unit
        self.done = 0.0

    def advance(self, n: float = 1, note: str = "") -> None:
        """Count `n` more units; `note` stands beside the count (`loss 0.31`)."""
        self.done += n

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None


class _PlainProgress(Progress):
    """A line at most every PLAIN_INTERVAL_S, and a closing one if there was any."""

    def __enter__(self) -> Progress:
        self._started = self._printed = time.monotonic()
        self._spoke = False
        return self

    def advance(self, n: float = 1, note: str = "") -> None:
        super().advance(n, note)
        now = time.monotonic()
        if now - self._printed < PLAIN_INTERVAL_S:
            return
        self._printed, self._spoke = now, True
        elapsed = now - self._started
        parts = [f"{self.label}: {_count(self.done, self.total, self.unit)}"]
        if self.total > 0 and self.done > 0:
            parts.append(f"{duration(elapsed * max(0.0, self.total - self.done) / self.done)} left")
        _print(", ".join(parts + ([note] if note else [])), sys.stderr)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._spoke and kind is None:
            took = duration(time.monotonic() - self._started)
            _print(f"{self.label}: {_count(self.done, self.total, self.unit)} in {took}", sys.stderr)


class _RichProgress(Progress):
    """A row of the console's live display."""

    def __init__(
        self, total: float, label: str, unit: str, enter: Callable[[], LiveProgress], leave: Callable[[TaskID], None]
    ) -> None:
        super().__init__(total, label, unit)
        self._enter, self._leave = enter, leave

    def __enter__(self) -> Progress:
        self._display = self._enter()
        self._task = self._display.add_task(self.label, total=self.total or None, note="", count=self._count())
        return self

    def advance(self, n: float = 1, note: str = "") -> None:
        super().advance(n, note)
        self._display.update(self._task, advance=n, note=note, count=self._count())

    def _count(self) -> str:
        return _count(self.done, self.total, self.unit)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._display.stop_task(self._task)
        self._leave(self._task)


def _new_live() -> LiveProgress:
    """Label, bar, count, time left, note, on standard error.

    What is printed meanwhile goes above the live line, but only where standard output is a terminal too: a pipe must
    get its bytes untouched.
    """
    from rich.console import Console as RichConsole
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[count]}", markup=False),
        TimeRemainingColumn(elapsed_when_finished=True),
        TextColumn("{task.fields[note]}", markup=False),
        console=RichConsole(file=sys.stderr),
        redirect_stdout=_is_terminal(sys.stdout),
    )


def _rich_table(columns: Sequence[str], cells: list[list[str]], right: list[bool], title: str, stream: TextIO) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console as RichConsole
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title) if title else None, box=SIMPLE_HEAD, title_justify="left")
    for name, is_right in zip(columns, right, strict=True):
        table.add_column(Text(name), justify="right" if is_right else "left", overflow="fold")
    for row in cells:
        table.add_row(*(Text(cell) for cell in row))
    RichConsole(file=stream).print(table)


def plain_table(columns: Sequence[str], cells: Sequence[Sequence[str]], right: Sequence[bool]) -> list[str]:
    """The lines of a table in plain text: a heading, a rule, a line a row; widths in terminal cells."""
    widths = [max(cell_len(text) for text in column) for column in zip(columns, *cells, strict=True)]
    lines = [columns, ["-" * width for width in widths], *cells]
    return ["  ".join(map(_padded, line, widths, right)).rstrip() for line in lines]


def _padded(text: str, width: int, right: bool) -> str:
    space = " " * (width - cell_len(text))
    return space + text if right else text + space


def _cell(value: Any) -> str:
    """None and NaN as `-`, yes and no, 1,234 for whole numbers, four significant digits for others, text as it is."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if 1000 <= abs(value) < 1e15 else f"{value:.4g}"
    return str(value)


def _is_numeric(cells: Sequence[str]) -> bool:
    filled = [cell for cell in cells if cell not in ("", "-")]
    return bool(filled) and all(_NUMBER.fullmatch(cell) for cell in filled)


def _count(done: float, total: float, unit: str) -> str:
    count = f"{done:,.0f} of {total:,.0f}" if total > 0 else f"{done:,.0f}"
    return f"{count} {unit}".rstrip()


def _is_terminal(stream: TextIO) -> bool:
    return hasattr(stream, "isatty") and stream.isatty()


def _print(text: str, stream: TextIO) -> None:
    """One line, flushed. A letter that the stream's encoding lacks is written as an escape, never an error."""
    try:
        print(text, file=stream, flush=True)
    except UnicodeEncodeError:
        encoding = stream.encoding or "ascii"
        print(text.encode(encoding, "backslashreplace").decode(encoding), file=stream, flush=True)
