"""A CSV file -> its rows, streaming: a header with the names of the columns, commas between fields, and quotes around
those with a comma, a quote or a line break, as RFC 4180 has it. Every value is text."""

from __future__ import annotations

import codecs
import csv
from collections.abc import Iterator
from typing import IO

from codetune.errors import DataError
from codetune.user_files import ROW_BYTES, read_lines

OTHER_SEPARATORS = (";", "\t", "|")
WRONG_COUNT = "another number of fields than the header"


def read_csv_rows(stream: IO[bytes], source: str) -> Iterator[tuple[int, dict[str, str] | str]]:
    """For each row the line on which it begins, and its values by column, or why it has none. Raises DataError, with
    the line, for a file that is no CSV or has no usable header."""
    csv.field_size_limit(ROW_BYTES)  # of the whole program, which reads no other CSV
    reader = csv.reader(_text_lines(stream, source), strict=True)
    names: list[str] | None = None
    while True:
        line = reader.line_num + 1
        try:
            fields = next(reader, None)
        except csv.Error as error:
            raise DataError(
                f"{source}:{line} is not CSV ({error}). Expected: commas between fields, and quotes around a field "
                "with a comma, a quote or a line break. Fix the line, or write the file again."
            ) from error
        if fields is None:
            return
        if not fields:  # a blank line
            continue
        if names is None:
            names = _header(fields, f"{source}:{line}")
        elif len(fields) == len(names):
            yield line, dict(zip(names, fields, strict=True))
        else:
            yield line, WRONG_COUNT


def _header(names: list[str], at: str) -> list[str]:
    if twice := [name for name in names if names.count(name) > 1]:
        raise DataError(f"{at} names the column {twice[0]!r} twice. Expected: a name for each column. Rename one.")
    if len(names) == 1 and (other := [mark for mark in OTHER_SEPARATORS if mark in names[0]]):
        raise DataError(
            f"{at} has one column, {names[0]!r}. Expected: commas between columns, not {other[0]!r}. Write the file "
            "again with commas."
        )
    return names


def _text_lines(stream: IO[bytes], source: str) -> Iterator[str]:
    for number, line in enumerate(read_lines(stream, source), start=1):
        try:
            yield line.removeprefix(codecs.BOM_UTF8 if number == 1 else b"").decode("utf-8")
        except UnicodeDecodeError as error:
            raise DataError(f"{source}:{number} is not UTF-8 ({error.reason}). Save the file as UTF-8.") from error
