"""Everything the user sees on the terminal. Results go to standard output (for people, or one JSON document), progress
and errors to standard error. Quiet when that is no terminal. Libraries that print are sent to standard error meanwhile.
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
from typing import IO, Any, TypeVar

from rich.console import Console
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from codetune.errors import CodetuneError, UsageError

NAMED_COMMAND = r"\bcodetune (?:score|embed|select|train|generate|sanitize|evaluate|eval|run|status)\b"
T = TypeVar("T")
_warned: set[str] = set()
_STDERR_WIDTH_WITHOUT_TERMINAL = 10_000  # a message in a log file is one line


@dataclass(frozen=True, slots=True)
class Shown:
    """A result: the document of `--json`, and the same for people as a title and rows of a table."""

    document: Any
    title: str
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    notes: Sequence[str] = ()


@contextlib.contextmanager
def own_stdout() -> Iterator[IO[str]]:
    """The real standard output, while descriptor 1 leads to standard error: a library that prints cannot spoil the
    JSON document. Raises UsageError where standard output is closed."""
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


def show(result: Shown, as_json: bool, output: IO[str]) -> None:
    """Raises OSError, of the file `standard output`, where the result does not fit there."""
    try:
        _write(result, as_json, output)
        output.flush()
    except OSError as why:
        why.filename = "standard output"
        with Path(os.devnull).open("wb") as nowhere:  # for what is left in the buffer when it is closed
            os.dup2(nowhere.fileno(), output.fileno())
        raise


def _write(result: Shown, as_json: bool, output: IO[str]) -> None:
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
    """What another process printed on its standard error."""
    sys.stderr.write(text)  # a progress bar that is shown meanwhile lets it pass above itself
    sys.stderr.flush()


def for_project(text: str) -> str:
    """Commands in a text, with the project file that the user has named: without it they would be of another one."""
    words = sys.argv[1:]
    named = [word.partition("=")[2] for word in words if word.startswith("--project=")]
    named += [after for word, after in pairwise(words) if word in ("-p", "--project")]
    return re.sub(NAMED_COMMAND, rf"\g<0> -p {shlex.quote(named[-1])}", text) if named else text


def say(message: str) -> None:
    _stderr().print(Text(message, style="dim"), soft_wrap=True)


def note(message: str) -> None:
    """Says what goes on; only on a terminal."""
    if _stderr().is_terminal:
        say(message)


def track(items: Iterable[T], label: str, total: int | None, unit: str, done: int = 0) -> Iterator[T]:
    """Passes the items on under a progress bar with rate and time left; `done` of the total were found done."""
    with progress(label, total, unit, done) as advance:
        for item in items:
            yield item
            advance(1)


@contextlib.contextmanager
def progress(label: str, total: int | None, unit: str, done: int = 0) -> Iterator[Advance]:
    """A bar to be moved by hand: the value it gives is called with how many units have been done."""
    console = _stderr()
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    with bar:
        task = bar.add_task(label, total=total, completed=done, rate="")
        yield Advance(bar, task, unit)


@dataclass(slots=True)
class Advance:
    _bar: Progress
    _task: Any
    _unit: str
    _began: float = field(default_factory=time.monotonic)
    _tokens: int = 0

    def __call__(self, amount: int, tokens: int = 0) -> None:
        """Where units are made of tokens, their rate is told."""
        self._tokens += tokens
        self._bar.advance(self._task, amount)
        speed = self._bar.tasks[0].speed
        rate = f"{speed:,.1f} {self._unit}/s" if speed else ""
        if self._tokens:
            rate = f"{self._tokens / max(time.monotonic() - self._began, 1e-9):,.0f} tokens/s"
        self._bar.update(self._task, rate=rate)

    def to(self, completed: int, total: int | None = None) -> None:
        self._bar.update(self._task, completed=completed, total=total)
        speed = self._bar.tasks[0].speed
        self._bar.update(self._task, rate=f"{speed:,.2f} {self._unit}/s" if speed else "")


def percent(fraction: float) -> str:
    """
    >>> percent(0.6158)
    '61.6 %'
    """
    return f"{100 * fraction:.1f} %"


def counts(refused: Mapping[str, int]) -> str:
    """
    >>> counts({"duplicate": 3, "empty answer": 1})
    '3 duplicate, 1 empty answer'
    """
    return ", ".join(f"{count:,} {reason}" for reason, count in refused.items())


def _stderr() -> Console:
    return Console(stderr=True, highlight=False, width=None if sys.stderr.isatty() else _STDERR_WIDTH_WITHOUT_TERMINAL)
