"""The check that a text can be written as UTF-8, for command lines, project files, data files and benchmarks.

Imports nothing, because the command line needs it before anything else is loaded."""

from __future__ import annotations


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
