"""A text -> its longest run of lines that is a Python program, as `code_extract` of evalplus 0.3.1 finds it.

EvalPlus parses the lines between every pair of two, which takes time by the cube of their number. The run is the same
here, and found in a few passes: from its first line on a text is parsed as far as it goes, and neither an end behind
an error, nor a beginning between two statements of a run that was found, can lead to a longer one.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress

# The flag of `compile` that `codeop` uses: a text that ends too early then has an error of its own.
ALLOW_INCOMPLETE_INPUT = 0x4000
INCOMPLETE = "incomplete input"
BROKEN_STRING = re.compile(r"^unterminated f?-?string")  # ends with its line, so that no further line can help
OPENED = re.compile(r"was never closed$|^unterminated triple-quoted")  # errors that name the line where it was opened
PARSER_ERRORS = (MemoryError, RecursionError, ValueError)  # too deep a nesting; null bytes and lone surrogates
TRIES_LINE_BY_LINE = 64  # of ends, for one beginning
MOST_TRIES = 256


def longest_program(text: str) -> str:
    """The run with the most lines that are not blank, of two lines at least; the first of several; the first line of
    the text where there is none. Raises ValueError for characters that no program has, RecursionError for too deep a
    nesting."""
    with suppress(SyntaxError, MemoryError):
        ast.parse(text)
    lines = text.split("\n")
    left = _count_from_each(lines)
    best, found = 0, (0, 0)
    between_statements = bytearray(len(lines))
    for start in range(len(lines) - 1):
        if left[start] <= best:
            break
        end = None if between_statements[start] else last_end(lines, start, start + 1)
        if end is not None:
            for line in _lines_between_statements(lines, start, end):
                between_statements[line] = True
            if left[start] - left[end + 1] > best:
                best, found = left[start] - left[end + 1], (start, _without_blank_end(lines, start, end))
    return "\n".join(lines[found[0] : found[1] + 1])


def last_end(lines: Sequence[str], start: int, least: int) -> int | None:
    """The last line, `least` or a later one, with which the lines from `start` on are a program. Behind a statement
    that is open for many lines, such as a `try` of a hundred lines without its `except`, only the lines are tried
    before which a block begins."""
    end = _last_line_before_an_error(lines, start)
    for tries in range(MOST_TRIES):
        if end < least:
            break
        error = _error(_joined(lines, start, end))
        if error is None:
            return end
        if error.lineno and OPENED.search(error.msg):
            end = min(end, start + error.lineno - 1) - 1
        else:
            end = (end if tries < TRIES_LINE_BY_LINE else _first_line_of_block(lines, end)) - 1
    return None


def _first_line_of_block(lines: Sequence[str], end: int) -> int:
    """The line before which the block of a line is indented less, or the line itself where it is in no block."""
    indentation = len(lines[end]) - len(lines[end].lstrip())
    above = (line for line in range(end - 1, -1, -1) if lines[line].strip())
    return next((line for line in above if len(lines[line]) - len(lines[line].lstrip()) < indentation), end)


def _last_line_before_an_error(lines: Sequence[str], start: int) -> int:
    """The line before the first with which the lines from `start` on are wrong, whatever follows: by steps that double,
    then at the line that the parser names, else by halving the last step."""
    fine, wrong, step = start - 1, len(lines), 1
    named: list[int] = []
    while fine + 1 < wrong:
        if wrong == len(lines):
            tried = min(fine + step, len(lines) - 1)
        else:
            tried = named.pop() if named else (fine + wrong) // 2
        if not fine < tried < wrong:
            continue
        error = _error_for_good(_joined(lines, start, tried))
        if error is None:
            fine, step = tried, 2 * step
        elif wrong == len(lines):
            wrong, at = tried, start + (error.lineno or 1) - 1
            named = [at, at - 1]
        else:
            wrong = tried
    return fine


def _error_for_good(text: str) -> SyntaxError | None:
    """The error that no further lines can take away; None where they can make a program of the text, or it is one."""
    try:
        compile(text, "<string>", "exec", ast.PyCF_ONLY_AST | ALLOW_INCOMPLETE_INPUT, dont_inherit=True)
    except SyntaxError as why:
        if why.msg != INCOMPLETE:
            return why
        error = _error(text)
        return error if error and BROKEN_STRING.search(error.msg) else None
    except PARSER_ERRORS as why:
        return SyntaxError(str(why))
    return None


def _is_program(text: str) -> bool:
    return _error(text) is None


def _error(text: str) -> SyntaxError | None:
    try:
        ast.parse(text)
    except SyntaxError as why:
        return why
    except PARSER_ERRORS as why:
        return SyntaxError(str(why))
    return None


def _lines_between_statements(lines: Sequence[str], start: int, end: int) -> Iterator[int]:
    """The lines behind the first that no statement of a program has begun before. What begins there goes as far as the
    whole program does, and so is shorter."""
    inside = bytearray(end - start + 1)
    for node in ast.parse(_joined(lines, start, end)).body:
        first = min([node.lineno, *(part.lineno for part in getattr(node, "decorator_list", ()))])
        last = node.end_lineno or first
        inside[first:last] = b"\1" * (last - first)  # lines count from 1: the first line of the statement is left out
    return (start + index for index, is_inside in enumerate(inside) if index and not is_inside)


def _without_blank_end(lines: Sequence[str], start: int, end: int) -> int:
    """The first end of equally many lines that are not blank."""
    first = next(line for line in range(end, -1, -1) if lines[line].strip())
    ends = range(max(first, start + 1), end)
    return next((line for line in ends if _is_program(_joined(lines, start, line))), end)


def _count_from_each(lines: Sequence[str]) -> list[int]:
    """The number of lines that are not blank, from each line on; 0 behind the last."""
    counts = [0]
    for line in reversed(lines):
        counts.append(counts[-1] + bool(line.strip()))
    return counts[::-1]


def _joined(lines: Sequence[str], start: int, end: int) -> str:
    return "\n".join(lines[start : end + 1])
