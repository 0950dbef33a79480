"""The check that a text can be written as UTF-8, for command lines, project files, data files and benchmarks; and days
as messages write them.

Imports nothing of codetune, because the command line needs it before anything else is loaded."""

from __future__ import annotations

import time


def lone_surrogate(text: str) -> int | None:
    """The index of the first character that is half of a surrogate pair; None for a text that can be written as UTF-8.

    JSON and file names can hold such a character; no tokenizer, terminal or UTF-8 file takes it.

    >>> lone_surrogate("grün"), lone_surrogate("a\\ud800")
    (None, 1)
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return error.start
    return None


def day(moment: time.struct_time) -> str:
    """A day, for messages.

    >>> day(time.strptime("2026-11-21 09:30:00", "%Y-%m-%d %H:%M:%S"))
    '21 November 2026'
    """
    return f"{moment.tm_mday} {time.strftime('%B %Y', moment)}"
