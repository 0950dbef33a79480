"""The terminal. Results go to standard output, as text or as one JSON document; progress, warnings and errors go to
standard error, progress only where that is a terminal. While a command runs, libraries that print write to standard
error, too.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import IO, TypeVar

from rich.console import Console
from rich.panel import Panel
from rich.progress import BarColumn, Progress, Task, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from codetune.errors import CodetuneError, UsageError

NAMED_COMMAND = r"\bcodetune (?:score|embed|select|train|generate|sanitize|evaluate|eval|run|status)\b"
T = TypeVar("T")
SECONDS_BETWEEN_UPDATES = 0.1  # of a bar: rich takes 0.25 ms for each, more than to read a row of a data set
_warned: set[str] = set()
_LOG_FILE_WIDTH = 10_000  # characters; a message in a log file stays one line


@dataclass(frozen=True, slots=True)
class CommandResult:
    """The result of a command: the document of `--json`, and the same as text (title, table and notes)."""

    document: Mapping[str, object]
    title: str
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    notes: Sequence[str] = ()


@contextlib.contextmanager
def reserved_stdout() -> Iterator[IO[str]]:
    """The real standard output. Meanwhile file descriptor 1 leads to standard error, so that a library that prints
    cannot spoil the JSON document. Raises UsageError where standard output is closed."""
    if sys.stdout is None:
        raise UsageError(
            "Standard output is closed, so there is nowhere to put the result. Open it, or use: >/dev/null"
        )
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
        output.write(json.dumps(result.document, ensure_ascii=False, allow_nan=False) + "\n")
        return
    console = Console(file=output, highlight=False, width=None if output.isatty() else 160)
    console.print(Text(result.title, style="bold"), soft_wrap=True)
    if result.rows:
        table = Table(*result.columns, box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="dim")
        for row in result.rows:
            table.add_row(*(Text(cell) for cell in row))
        console.print(table)
    for line in result.notes:
        console.print(Text(line, style="dim"), soft_wrap=True)


def show_error(error: CodetuneError) -> None:
    console = _stderr()
    if console.is_terminal:
        console.print(Panel(Text(str(error)), title="error", title_align="left", border_style="red"))
    else:
        console.print(Text(f"error: {error}"), soft_wrap=True)


def warn(message: str) -> None:
    _stderr().print(Text(f"warning: {message}", style="yellow"), soft_wrap=True)


def warn_once(message: str) -> None:
    if message not in _warned:
        _warned.add(message)
        warn(message)


def relay(text: str) -> None:
    """Writes what a worker process printed to its standard error. A visible progress bar stays below the text."""
    sys.stderr.write(text)
    sys.stderr.flush()


def with_project_option(text: str) -> str:
    """`text` with `-p PATH` added to each codetune command in it, where the user has named a project file."""
    words = sys.argv[1:]
    named = [word.partition("=")[2] for word in words if word.startswith("--project=")]
    named += [after for word, after in pairwise(words) if word in ("-p", "--project")]
    return re.sub(NAMED_COMMAND, rf"\g<0> -p {shlex.quote(named[-1])}", text) if named else text


def say(message: str) -> None:
    _stderr().print(Text(message, style="dim"), soft_wrap=True)


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
    seconds that have passed: models are loaded then."""
    console = _stderr()
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[count]}"),
        TextColumn("{task.fields[rate]}"),
        _TimeColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    with bar:
        yield ProgressBar(bar, bar.add_task(label, total=None, completed=done, count="", rate=""), unit, total)


class _TimeColumn(TimeRemainingColumn):
    """The time left; the time that has passed where nothing tells how much is to come."""

    def render(self, task: Task) -> Text:
        return super().render(task) if task.total is not None else Text(f"{task.elapsed or 0:.0f} s")


@dataclass(slots=True)
class ProgressBar:
    _progress: Progress
    _task: TaskID
    _unit: str
    _total: int | None
    _began: float = field(default_factory=time.monotonic)
    _tokens: int = 0

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
        self._progress.update(self._task, description=activity)

    def _show_rate(self, decimals: int, detail: str = "") -> None:
        speed = self._progress.tasks[0].speed
        rate = f"{speed:,.{decimals}f} {self._unit}/s" if speed else ""
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
    return f"{100 * fraction:.1f} %"


def counts(refused: Mapping[str, int]) -> str:
    """Refusals counted by their reasons, as text.

    >>> counts({"duplicate": 3, "empty answer": 1})
    '3 duplicate, 1 empty answer'
    """
    return ", ".join(f"{count:,} {reason}" for reason, count in refused.items())


def _stderr() -> Console:
    return Console(stderr=True, highlight=False, width=None if sys.stderr.isatty() else _LOG_FILE_WIDTH)
