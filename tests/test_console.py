"""What goes to which stream: results to standard output, everything else to standard error."""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from typing import IO

import pytest
from rich.console import Console
from rich.progress import Progress

from codetune import console
from codetune.console import CommandResult
from codetune.errors import UsageError

RESULT = CommandResult(
    "select: done", ["stage", "rows"], [["select", "12"]], ["by flag: ratio"], document={"ratio": 0.5, "name": "é"}
)


def test_a_result_as_json_is_one_line_of_json() -> None:
    assert json.loads(shown(RESULT, as_json=True)) == {"ratio": 0.5, "name": "é"}
    assert shown(RESULT, as_json=True).count("\n") == 1


def test_a_number_that_json_lacks_is_never_printed() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        shown(CommandResult("train", document={"loss": float("nan")}), as_json=True)


def test_a_result_for_people_is_a_title_a_table_and_notes() -> None:
    assert [line.rstrip() for line in shown(RESULT, as_json=False).splitlines()] == [
        "select: done",
        "stage    rows",
        "select   12",
        "by flag: ratio",
    ]


def test_a_result_of_several_sections_has_a_blank_line_before_each_title() -> None:
    more = [console.TextSection("padding", ["mode", "rate"], [["max_length", "77.5 %"]], ["one epoch"])]
    lines = [line.rstrip() for line in shown(CommandResult("plan", more=more, document={}), as_json=False).splitlines()]
    assert lines == ["plan", "", "padding", "mode         rate", "max_length   77.5 %", "one epoch"]


def test_with_quiet_a_result_has_no_asides() -> None:
    result = CommandResult("report: page", notes=["2 figures"], asides=["to do more: codetune eval"], document={})
    assert shown(result, as_json=False).splitlines() == ["report: page", "2 figures", "to do more: codetune eval"]
    console.set_quiet(True)
    try:
        assert shown(result, as_json=False).splitlines() == ["report: page", "2 figures"]
    finally:
        console.set_quiet(False)


def test_with_quiet_only_warnings_errors_and_what_must_be_said_are_written(capfd: pytest.CaptureFixture[str]) -> None:
    console.set_quiet(True)
    try:
        console.say("columns found")
        console.say("Progress saved", always=True)
        console.warn("few rows")
        with console.progress("score", 9, "row") as bar:
            assert rich_progress(bar).disable
    finally:
        console.set_quiet(False)
    assert capfd.readouterr() == ("", "Progress saved\nwarning: few rows\n")


def test_no_color_leaves_the_texts_without_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    for unset in ("FORCE_COLOR", "NO_COLOR"):
        monkeypatch.delenv(unset, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    assert "\x1b[33m" in written_in_yellow()
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[33m" not in written_in_yellow()


def test_text_in_brackets_is_shown_as_it_is() -> None:
    result = CommandResult("[bold]title[/bold]", ["[a]"], [["[red]x[/red]"]], ["models/[v1] :smile:"], document={})
    text = shown(result, as_json=False)
    assert all(part in text for part in ("[bold]title[/bold]", "[red]x[/red]", "models/[v1] :smile:"))


ESCAPE = "a\x1b[2J\x9b31m\u202eb\u200bc\r"
SHOWN = r"a\x1b[2J\x9b31m\u202eb\u200bc\r"


def test_no_terminal_obeys_what_names_hold() -> None:
    result = CommandResult(
        f"{ESCAPE}\ntitle", [f"[red]{ESCAPE}"], [[f"{ESCAPE}\ncell"]], [f"{ESCAPE}\nnote"], document={}
    )
    text = shown(result, as_json=False)
    assert [line.rstrip() for line in text.splitlines()] == [
        rf"{SHOWN}\ntitle",
        f"[red]{SHOWN}",
        rf"{SHOWN}\ncell",
        rf"{SHOWN}\nnote",
    ]


def test_a_document_is_ascii_and_says_the_same() -> None:
    text = shown(CommandResult("", document={"task": f"{ESCAPE}\x7fé"}), as_json=True)
    assert text.isascii()
    assert text.rstrip("\n").isprintable()
    assert json.loads(text) == {"task": f"{ESCAPE}\x7fé"}


@pytest.mark.parametrize(
    "write",
    [
        console.warn,
        console.say,
        console.relay,
        lambda text: console.show_error(UsageError(text)),
        lambda text: console.show_traceback(ValueError, ValueError(text), None),
    ],
)
def test_no_terminal_obeys_an_error_of_a_library(
    write: Callable[[str], None], capfd: pytest.CaptureFixture[str]
) -> None:
    write("first [red]line\nsecond: a\x1b[2J\u202e")
    assert re.fullmatch(r".*first \[red]line\nsecond: a\\x1b\[2J\\u202e\n?", capfd.readouterr().err)


def test_a_narrow_terminal_shows_fewer_columns_and_whole_words() -> None:
    names = ("benchmark", "model", "tasks", "base", "plus")
    rows = [["humaneval", "CodeLlama-7b-85b4003b", "164 of 164", "61.6 % (54.0 to 68.7)", "53.0 % (45.4 to 60.5)"]]
    result = CommandResult("", names, rows, optional=("tasks", "benchmark"), document={})
    assert shown_columns(result, 120) == names
    assert shown_columns(result, 85) == ("benchmark", "model", "base", "plus")
    assert shown_columns(result, 80) == ("model", "base", "plus")
    assert shown_columns(result, 60) == ("model", "base")
    assert "".join(written_at(result, 12)).startswith("modelCodeLlama-7b-85b4003bcolumns left out")


def test_sentences_in_the_last_column_are_wrapped_at_words() -> None:
    result = CommandResult(
        "",
        ("stage", "state", ""),
        [["tasks tuned", "stale", "the tuned model has changed since"]],
        has_prose=True,
        document={},
    )
    assert written_at(result, 40)[1:] == ["tasks tuned   stale   the tuned model", "has changed since"]
    assert written_at(result, 26) == ["tasks tuned   stale", "the tuned model has changed since"]


@pytest.mark.parametrize("number", ["95 %", "9.5 s", "12 GB", "p = 0.1"])
def test_a_number_stays_with_its_unit_and_its_name(number: str) -> None:
    output = io.StringIO()
    console._print(Console(file=output, width=4 + len(number), force_terminal=True), f"found {number}, on it")
    assert output.getvalue().splitlines()[1].startswith(number)


def test_a_number_stays_with_its_per_cent_sign_in_a_table_too() -> None:
    result = CommandResult("", ("stage", ""), [["select", "it caught 95 % of 20"]], has_prose=True, document={})
    assert written_at(result, 21)[1:] == ["select   it caught", "95 % of 20"]
    output = io.StringIO()
    console._print(Console(file=output, width=12, force_terminal=True), "it caught 95 % of 20")
    assert [line.strip() for line in output.getvalue().splitlines()] == ["it caught", "95 % of 20"]


@pytest.mark.parametrize(("term", "columns", "width"), [("xterm", "", 40), ("dumb", "", 40), ("dumb", "60", 60)])
def test_a_terminal_is_as_wide_as_it_says_whatever_the_other_streams_are(
    term: str, columns: str, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", term)
    monkeypatch.setenv("COLUMNS", columns)
    with terminal(40) as (screen, _):
        monkeypatch.setattr(sys, "stderr", screen)
        assert (console._console(screen).width, console._stderr().width) == (width, width)
        with console.progress("score", 9, "row") as bar:  # nothing can be drawn over on a terminal that is dumb
            assert rich_progress(bar).disable == (term == "dumb")


def test_what_is_said_while_a_bar_is_drawn_has_lines_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    with terminal(80) as (screen, outer):
        monkeypatch.setattr(sys, "stderr", screen)
        with console.progress("score", 9, "row"):
            console.warn("few rows")
        screen.write("the end")
        screen.flush()
        shown = ""
        while "the end" not in shown:  # a terminal hands on what it has got so far
            shown += os.read(outer, 10_000).decode()
    assert re.search(r"\x1b\[2K(\x1b\[\d+m)*warning: few rows(\x1b\[0m)*\r\n", shown)


def test_a_narrow_terminal_shows_the_whole_numbers_of_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(console._bar_columns(80)) == 5
    narrow = Console(file=io.StringIO(), width=40, force_terminal=True, force_interactive=True)
    monkeypatch.setattr(console, "_console", lambda stream: narrow)
    with console.progress("generate humaneval tuned", 1_000_000, "row") as bar:
        bar.move_to(123_456)
        shown = Console(file=io.StringIO(), width=40)
        shown.print(rich_progress(bar).get_renderable())
    assert re.fullmatch(r"generate hu… 123,456/1,000,000 [\d:-]+\s*", written(shown))


def test_a_terminal_gets_lines_that_end_between_words() -> None:
    output = io.StringIO()
    path = "/" + "x" * 30
    console._print(Console(file=output, width=24, force_terminal=True), f"generate 1.0 s, sanitize {path} 0.5 s")
    assert [line.strip() for line in output.getvalue().splitlines()] == ["generate 1.0 s, sanitize", path, "0.5 s"]


def test_a_long_note_is_one_line_of_a_file() -> None:
    note = "Run: codetune score " + "x" * 500
    assert note in shown(CommandResult("title", notes=[note], document={}), as_json=False).splitlines()


def test_a_library_that_prints_cannot_spoil_the_document() -> None:
    program = """
import os, subprocess, sys
from codetune.console import reserved_stdout
print("before")
with reserved_stdout() as output:
    print("printed by a library")
    os.system("echo printed by a child")
    os.write(1, b"written below Python\\n")
    output.write("the document\\n")
print("after")
"""
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    command = [sys.executable, "-c", program]
    ended = subprocess.run(command, env=buffered, capture_output=True, text=True, check=True)
    assert ended.stdout == "before\nthe document\nafter\n"
    assert sorted(ended.stderr.splitlines()) == ["printed by a child", "printed by a library", "written below Python"]


def test_standard_output_is_itself_again_after_an_error(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ZeroDivisionError), console.reserved_stdout():
        raise ZeroDivisionError
    subprocess.run(["echo", "after"], check=True)
    assert capfd.readouterr().out == "after\n"


def test_an_error_is_one_line_on_standard_error(capfd: pytest.CaptureFixture[str]) -> None:
    message = "--shard 8/8: shards count from 0; [expected] I from 0 to 7 " + "x" * 300
    console.show_error(UsageError(message))
    assert capfd.readouterr() == ("", f"error: {message}\n")


def test_every_mistake_of_a_project_file_keeps_its_line(capfd: pytest.CaptureFixture[str]) -> None:
    console.show_error(UsageError("a:1: first\na:2: second"))
    assert capfd.readouterr().err == "error: a:1: first\na:2: second\n"


def test_a_repeated_warning_is_written_once(capfd: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        console.warn_once("this test warns")
    assert capfd.readouterr() == ("", "warning: this test warns\n")


def test_where_there_is_no_terminal_short_work_is_quiet(capfd: pytest.CaptureFixture[str]) -> None:
    console.note("goes on")
    assert list(console.track(range(3), "score", 3, "row")) == [0, 1, 2]
    with console.progress("train", None, "step") as bar:
        bar.advance(2)
        bar.move_to(3, 10)
    assert capfd.readouterr() == ("", "")


def test_where_there_is_no_terminal_long_work_says_how_far_it_is(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(console, "SECONDS_BETWEEN_LINES", 0.001)
    written = threading.Event()
    say = console.say
    monkeypatch.setattr(console, "say", lambda message: (say(message), written.set()))
    with console.progress("score", 1200, "row", done=200) as bar:
        bar.advance(100)
        bar.advance(300)
        assert re.fullmatch(r"score: 600 of 1,200 rows \(50\.0 %\), [\d,.]+ rows/s, \d+ s left", bar.line())
        assert written.wait(10)
    assert re.match(r"score: \d00 of 1,200 rows", capfd.readouterr().err)


def test_work_of_unknown_size_says_how_much_is_done() -> None:
    with console.progress("reading [bold]\x1b[2J", None, "row") as bar:
        assert bar.line() == r"reading [bold]\x1b[2J: 0 rows, 0 s so far"
        bar.move_to(1500)
        assert bar.line() == r"reading [bold]\x1b[2J: 1,500 rows, 0 s so far"


@pytest.mark.parametrize(
    ("move", "completed", "total"),
    [
        (lambda bar: bar.advance(2), 6, 9),
        (lambda bar: bar.move_to(7), 7, 9),
        (lambda bar: bar.move_to(1, 5), 1, 5),
    ],
)
def test_a_bar_stands_where_it_was_moved(
    move: Callable[[console.ProgressBar], None], completed: int, total: int
) -> None:
    with console.progress("score", 9, "row", done=4) as bar:
        move(bar)
        (task,) = rich_progress(bar).tasks
        assert (task.completed, task.total) == (completed, total)


def test_a_bar_shows_seconds_until_it_moves_and_never_an_unknown_total() -> None:
    with console.progress("loading the model", None, "step") as bar:
        (task,) = rich_progress(bar).tasks
        assert (task.total, task.fields["count"]) == (None, "")
        bar.describe("training")
        bar.move_to(3, 1200, "loss 0.7312")
        (task,) = rich_progress(bar).tasks
        assert (task.description, task.fields["count"], task.fields["rate"]) == ("training", "3/1,200", "loss 0.7312")


def test_a_bar_over_many_fast_items_is_moved_seldom_and_to_their_number(monkeypatch: pytest.MonkeyPatch) -> None:
    amounts: list[int] = []
    monkeypatch.setattr(console.ProgressBar, "advance", lambda self, amount: amounts.append(amount))
    assert sum(1 for _ in console.track(range(50_000), "reading", None, "row")) == 50_000
    assert (sum(amounts), len(amounts) < 1000) == (50_000, True)


def test_where_units_are_made_of_tokens_the_rate_is_in_tokens_per_second() -> None:
    with console.progress("generate", 9, "sample") as bar:
        bar.advance(1, tokens=50)
        time.sleep(0.01)
        bar.advance(1, tokens=50)
        (task,) = rich_progress(bar).tasks
        assert re.fullmatch(r"[\d,]+ tokens/s", task.fields["rate"])
        assert 0 < int(task.fields["rate"].split()[0].replace(",", "")) <= 10_000  # 100 in a hundredth of a second


@pytest.mark.parametrize(
    ("fraction", "text"), [(0.0, "0.0 %"), (1.0, "100.0 %"), (0.726, "72.6 %"), (0.6463, "64.6 %"), (0.0004, "0.0 %")]
)
def test_a_fraction_is_shown_in_per_cent_with_one_decimal(fraction: float, text: str) -> None:
    assert console.percent(fraction) == text


def test_counts_are_shown_with_their_reasons() -> None:
    assert console.counts({"duplicate": 1203, "empty answer": 1}) == "1,203 duplicate, 1 empty answer"
    assert console.counts({}) == ""


@contextlib.contextmanager
def terminal(columns: int) -> Iterator[tuple[IO[str], int]]:
    """A terminal as a stream to write to, and the descriptor that what it shows is read from."""
    outer, inner = pty.openpty()
    fcntl.ioctl(inner, termios.TIOCSWINSZ, struct.pack("4H", 24, columns, 0, 0))
    with os.fdopen(outer, "rb"), os.fdopen(inner, "w") as screen:
        yield screen, outer


def written(to: Console) -> str:
    assert isinstance(to.file, io.StringIO)
    return to.file.getvalue()


def shown(result: CommandResult, as_json: bool) -> str:
    output = io.StringIO()
    console.show(result, as_json, output)
    return output.getvalue()


def shown_columns(result: CommandResult, width: int) -> tuple[str, ...]:
    """The names of the columns that a terminal of this width shows, from its table and from the line below it."""
    lines = written_at(result, width)
    left = [line.partition(": ")[2].split(", ") for line in lines if line.startswith("columns left out")]
    found = tuple(name for name in result.columns if name not in (left or [[]])[0])
    assert [word for name in found for word in name.split()] == lines[0].split()
    return found


def written_at(result: CommandResult, width: int) -> list[str]:
    output = io.StringIO()
    console._write_table(result, Console(file=output, width=width))
    return [line.strip() for line in output.getvalue().splitlines()]


def written_in_yellow() -> str:
    output = io.StringIO()
    console._print(Console(file=output, force_terminal=True), "warning", "yellow")
    return output.getvalue()


def rich_progress(bar: console.ProgressBar) -> Progress:
    return bar._progress
