"""The terminal. Results go to standard output, as text or as one JSON document; progress, warnings and errors go to
standard error: progress as a bar, or as a line every half minute if that is no terminal. While a command runs,
libraries that print write to standard error, too.

Texts of others (names, keys, errors of libraries) stand in all of these. Their control characters are made visible
here, and their brackets are no markup.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import sys
import threading
import time
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import wrap
from types import TracebackType
from typing import IO, TypeVar

from rich.cells import cell_len
from rich.console import Console
from rich.panel import Panel
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Column, Table
from rich.text import Text

from codetune.errors import CodetuneError, UsageError
from codetune.text import duration, rate, visible

T = TypeVar("T")
SECONDS_BETWEEN_UPDATES = 0.1  # of a bar: rich takes 0.25 ms for each, more than to read a row of a data set
SECONDS_BETWEEN_LINES = 30.0  # of progress, where standard error is no terminal
_shown: set[str] = set()
_is_quiet = False  # set once, by the command line
_bars: list[Console] = []  # where a bar is drawn now
_LOG_FILE_WIDTH = 10_000  # characters; a message or a row of a table stays one line in a file
_PARTS_OF_NUMBERS = re.compile(r"(?<=\d) (?=%|(?:s|min|h|GB|MB)\b)|(?<= =) (?=\d)| (?== \d)")
_GLUE = "\x1f"  # in the place of such a space; the texts have no controls left
_GAP = 3  # spaces between the columns of a table
_BAR_WIDTH, _COUNT_AND_TIME_WIDTH = 70, 28  # characters; of the narrowest terminal with a bar


@dataclass(frozen=True, slots=True)
class TextSection:
    """A part of a result as text: title, table and notes.

    A terminal that is too narrow for the table shows it without some columns: first without those of `optional`, in
    that order, then without the last ones. `has_prose`: the last column holds sentences, which are wrapped at words.
    `asides` are lines that `--quiet` leaves out: advice, explanations, where more is to be found."""

    title: str
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    notes: Sequence[str] = ()
    optional: Sequence[str] = ()
    has_prose: bool = False
    asides: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class CommandResult(TextSection):
    """The result of a command: a section of text, `more` of them, and the document of `--json`, which says the same.
    `exit_status` is not 0 where the result itself is that something is wrong."""

    document: Mapping[str, object] = field(kw_only=True)
    more: Sequence[TextSection] = ()
    exit_status: int = 0


@contextlib.contextmanager
def reserved_stdout() -> Iterator[IO[str]]:
    """The real standard output. Meanwhile file descriptor 1 leads to standard error, so that a library that prints
    cannot spoil the JSON document. Raises UsageError where standard output is closed."""
    if sys.stdout is None:
        raise UsageError("Standard output is closed, so the result cannot be written. Open it, or use: >/dev/null")
    sys.stdout.flush()
    real = os.dup(1)
    os.dup2(2, 1)
    try:
        with os.fdopen(os.dup(real), "w", encoding="utf-8") as output:
            yield output
    finally:
        sys.stdout.flush()
        os.dup2(real, 1)
        os.close(real)


def show(result: CommandResult, as_json: bool, output: IO[str]) -> None:
    """Writes a result to `output`. Raises OSError with the file name `standard output` where writing fails."""
    try:
        _write(result, as_json, output)
        output.flush()
    except OSError as why:
        why.filename = "standard output"
        with Path(os.devnull).open("wb") as null:  # takes what is left in the buffer when `output` is closed
            os.dup2(null.fileno(), output.fileno())
        raise


def _write(result: CommandResult, as_json: bool, output: IO[str]) -> None:
    if as_json:
        text = json.dumps(result.document, allow_nan=False)  # escapes all but ASCII: a terminal obeys none of it
        output.write(text.replace("\x7f", "\\u007f") + "\n")
        return
    console = _console(output)
    for number, section in enumerate([result, *result.more]):
        _print(console, f"\n{section.title}" if number else section.title, "bold", kept="\n" if number else "")
        if section.rows:
            _write_table(section, console)
        for line in [*section.notes, *([] if _is_quiet else section.asides)]:
            _print(console, line, "dim")


def _write_table(result: TextSection, console: Console) -> None:
    """The table with the columns that there is room for, and a line that names the others. Sentences that there is no
    room for stand below their row."""
    names = [visible(name) for name in result.columns]
    cells = [[visible(cell) for cell in row] for row in result.rows]
    shown = _columns_that_fit(names, cells, result, console.width)
    if result.has_prose and len(names) - 1 not in shown:
        for row in cells:
            _print(console, (" " * _GAP).join(row[:-1]))
            _print(console, f"    {row[-1]}")
        return
    if result.has_prose:
        others = ([names[at], *(row[at] for row in cells)] for at in shown[:-1])
        room = console.width - sum(max(map(cell_len, column)) + _GAP for column in others)
        cells = [[*row[:-1], _wrapped(row[-1], room)] for row in cells]
    table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="dim")
    for at in shown:
        wraps = len(shown) == 1 or (result.has_prose and at == len(names) - 1)
        table.add_column(Text(names[at]), no_wrap=not wraps, overflow="fold")
    for row in cells:
        table.add_row(*(Text(row[at]) for at in shown))
    console.print(table)
    if left := [name for at, name in enumerate(names) if at not in shown]:
        _print(console, f"columns left out, because the terminal is narrow: {', '.join(left)}", "dim")


def _columns_that_fit(
    names: Sequence[str], cells: Sequence[Sequence[str]], result: TextSection, width: int
) -> Sequence[int]:
    """The indices of the columns to show, one at least."""
    texts = [[name, *(row[at] for row in cells)] for at, name in enumerate(names)]
    widths = [max(map(cell_len, column)) for column in texts]
    if result.has_prose:
        widths[-1] = max(cell_len(word) for text in texts[-1] for word in text.split() or [""])
    shown = list(range(len(names)))
    first = [result.columns.index(name) for name in result.optional]
    for at in [*first, *reversed([at for at in shown if at not in first])]:
        if len(shown) == 1 or sum(widths[each] + _GAP for each in shown) - _GAP <= width:
            break
        shown.remove(at)
    return shown


def show_error(error: CodetuneError) -> None:
    console = _stderr()
    if console.is_terminal:
        console.print(
            Panel(Text(visible(str(error), kept="\n")), title="error", title_align="left", border_style="red")
        )
    else:
        _print(console, f"error: {error}", kept="\n")


def show_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Shows an unknown error in the place of `sys.excepthook`: what a library says of one can hold anything."""
    relay("".join(traceback.format_exception(kind, error, trace)))


def warn(message: str) -> None:
    _print(_stderr(), f"warning: {message}", "yellow", kept="\n")


def warn_once(message: str) -> None:
    if message not in _shown:
        _shown.add(message)
        warn(message)


def say_once(message: str) -> None:
    if message not in _shown:
        _shown.add(message)
        say(message)


def relay(text: str) -> None:
    """Writes what a worker process printed to its standard error. A visible progress bar stays below the text."""
    sys.stderr.write(visible(text, kept="\n\r\t"))
    sys.stderr.flush()


def set_quiet(quiet: bool) -> None:
    """Lets this command show its result, warnings and errors only, if `quiet`: neither progress nor asides."""
    global _is_quiet
    _is_quiet = quiet


def is_quiet() -> bool:
    return _is_quiet


def say(message: str, *, always: bool = False) -> None:
    """Writes a note; `always`: with `--quiet` as well."""
    if always or not _is_quiet:
        _print(_stderr(), message, "dim", kept="\n")


def note(message: str) -> None:
    """Writes a message about progress; only on a terminal."""
    if _stderr().is_terminal:
        say(message)


def track(items: Iterable[T], label: str, total: int | None, unit: str) -> Iterator[T]:
    """Yields the items under a progress bar with their rate and the time left."""
    with progress(label, total, unit) as bar:
        pending, shown = 0, time.monotonic()
        for item in items:
            yield item
            pending += 1
            if time.monotonic() - shown > SECONDS_BETWEEN_UPDATES:
                bar.advance(pending)
                pending, shown = 0, time.monotonic()
        bar.advance(pending)


@contextlib.contextmanager
def progress(label: str, total: int | None, unit: str, done: int = 0) -> Iterator[ProgressBar]:
    """A progress bar that the caller moves; `done` of the `total` units were done before. Until it moves it shows the
    seconds that have passed: models are loaded then. Where standard error is no terminal, a line every half minute."""
    console = _console(sys.stderr)
    is_drawn = console.is_interactive and not _is_quiet
    bar = Progress(*_bar_columns(console.width), console=console, transient=True, disable=not is_drawn)
    with bar:
        task = bar.add_task(visible(label), total=None, completed=done, count="", rate="")
        shown = ProgressBar(bar, task, unit, total)
        with _above(console) if is_drawn else contextlib.nullcontext() if _is_quiet else _lines(shown):
            yield shown


@contextlib.contextmanager
def _above(console: Console) -> Iterator[None]:
    """What is written during the block stands above the bar of this console, not behind it in its line."""
    _bars.append(console)
    try:
        yield
    finally:
        _bars.remove(console)


def _bar_columns(width: int) -> Sequence[ProgressColumn]:
    """A narrow terminal shows neither bar nor rate, and the beginning of a long label: rich would cut the numbers."""
    label = Column(no_wrap=True, overflow="ellipsis", max_width=max(8, width - _COUNT_AND_TIME_WIDTH))
    columns = [
        TextColumn("{task.description}", markup=False, table_column=label),
        BarColumn(),
        TextColumn("{task.fields[count]}"),
        TextColumn("{task.fields[rate]}"),
        _TimeColumn(),
    ]
    return columns if width >= _BAR_WIDTH else columns[::2]


class _TimeColumn(TimeRemainingColumn):
    """The time left; the time that has passed where nothing tells how much is to come."""

    def render(self, task: Task) -> Text:
        return super().render(task) if task.total is not None else Text(f"{task.elapsed or 0:.0f} s")


@contextlib.contextmanager
def _lines(bar: ProgressBar) -> Iterator[None]:
    """Writes a line of progress every half minute during the block, also while nothing moves."""
    ended = threading.Event()

    def write() -> None:
        while not ended.wait(SECONDS_BETWEEN_LINES):
            say(bar.line())

    writer = threading.Thread(target=write, daemon=True)
    writer.start()
    try:
        yield
    finally:
        ended.set()
        writer.join()


@dataclass(slots=True)
class ProgressBar:
    _progress: Progress
    _task: TaskID
    _unit: str
    _total: int | None
    _began: float = field(default_factory=time.monotonic)
    _tokens: int = 0
    _first: tuple[float, float] | None = None  # time and position of the first move: loading is over
    _detail: str = ""

    def advance(self, amount: int, tokens: int = 0) -> None:
        """Adds `amount` units; where they were made of tokens, the rate is in tokens per second."""
        self._tokens += tokens
        self._progress.update(self._task, total=self._total, advance=amount)
        self._show_rate(1)

    def move_to(self, completed: int, total: int | None = None, detail: str = "") -> None:
        """Sets the number of units that are done, and where it is known of all; `detail` stands before the rate."""
        self._total = self._total if total is None else total
        self._progress.update(self._task, completed=completed, total=self._total)
        self._show_rate(2, detail)

    def describe(self, activity: str) -> None:
        """Sets the text before the bar."""
        self._progress.update(self._task, description=visible(activity))

    def line(self) -> str:
        """The progress as a line of a log: how many of how many, what the bar shows beside it, and the time left."""
        task = self._progress.tasks[0]
        parts = [quantity(int(task.completed), self._unit)]
        if self._total:
            share = percent(task.completed / self._total)
            parts = [f"{task.completed:,.0f} of {quantity(self._total, self._unit)} ({share})", self._detail]
        if speed := self._mean_speed():
            parts.append(task.fields["rate"] if self._tokens else rate(speed, self._unit))
            parts.append(f"{duration((self._total - task.completed) / speed)} left" if self._total else "")
        else:
            parts.append(f"{duration(time.monotonic() - self._began)} so far")
        return f"{task.description}: {', '.join(filter(None, parts))}"

    def _mean_speed(self) -> float | None:
        """Units per second since the first move; None before the second."""
        if self._first is None:
            return None
        began, start = self._first
        return (self._progress.tasks[0].completed - start) / max(time.monotonic() - began, 1e-9) or None

    def _show_rate(self, decimals: int, detail: str = "") -> None:
        self._first = self._first or (time.monotonic(), self._progress.tasks[0].completed)
        self._detail = detail
        speed = self._progress.tasks[0].speed
        rate = f"{speed:,.{decimals}f} {self._unit}s/s" if speed else ""
        if self._tokens:
            rate = f"{self._tokens / max(time.monotonic() - self._began, 1e-9):,.0f} tokens/s"
        done = int(self._progress.tasks[0].completed)
        count = f"{done:,}" if self._total is None else f"{done:,}/{self._total:,}"
        self._progress.update(self._task, count=count, rate=", ".join(filter(None, (detail, rate))))


def percent(fraction: float) -> str:
    """A fraction in per cent, with one decimal.

    >>> percent(0.6158)
    '61.6 %'
    """
    return f"{100 * fraction:z.1f} %"


def quantity(count: int, noun: str) -> str:
    """A number of things.

    >>> quantity(1, "row"), quantity(1203, "row")
    ('1 row', '1,203 rows')
    """
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def counts(refused: Mapping[str, int]) -> str:
    """Refusals counted by their reasons, as text.

    >>> counts({"duplicate": 3, "empty answer": 1})
    '3 duplicate, 1 empty answer'
    """
    return ", ".join(f"{count:,} {reason}" for reason, count in refused.items())


def _stderr() -> Console:
    return _bars[-1] if _bars else _console(sys.stderr)


def _console(stream: IO[str]) -> Console:
    """A terminal is as wide as it says itself, unless COLUMNS is set. rich asks the standard streams of the process,
    which may be files, and takes a terminal whose TERM is dumb for 80 columns wide, unless it is told both sizes."""
    if not stream.isatty():
        return Console(file=stream, highlight=False, width=_LOG_FILE_WIDTH)
    own = os.get_terminal_size(stream.fileno())
    width, height = shutil.get_terminal_size((own.columns or 80, own.lines or 24))
    return Console(file=stream, highlight=False, width=width, height=height)


def _print(console: Console, text: str, style: str = "", kept: str = "") -> None:
    """A terminal gets lines that end between words (longer words, such as paths, it breaks itself); a file one line."""
    text = visible(text, kept)
    if console.is_terminal:
        text = "\n".join(_wrapped(line, console.width) for line in text.split("\n"))
    console.print(Text(text, style), soft_wrap=True)


def _wrapped(line: str, width: int) -> str:
    """Never ends a line between a number and its unit, or what it is the value of."""
    lines = wrap(_PARTS_OF_NUMBERS.sub(_GLUE, line), width, break_long_words=False, break_on_hyphens=False)
    return "\n".join(lines).replace(_GLUE, " ")
