"""One data file -> its rows, streaming: JSON arrays (`.json`), one JSON object a line (`.jsonl`, `.json`), either
gzipped; and Parquet. Any value counts as a row; only a damaged file is an error, with its line. An array is decoded
value by value from a window of text, so its size does not matter."""

from __future__ import annotations

import codecs
import gzip
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NoReturn, cast

from codetune.errors import DataError

DATA_SUFFIXES = (".json", ".jsonl", ".json.gz", ".jsonl.gz", ".parquet")
CHUNK_BYTES = 1 << 20
PARQUET_BATCH_ROWS = 1024
# The decoder can report a value that is cut ("\\u12", "fals") as an error at most this many characters before the end
# of the text that has been read.
CUT_VALUE_CHARACTERS = 16


@dataclass(frozen=True, slots=True)
class FileRow:
    """One value of a data file, whatever it is, and where it stands."""

    source: str  # the file's name in messages, or the name of a data set on the hub
    number: int  # of the line, from 1; of the row where a file has no lines
    value: object
    has_lines: bool = False

    @property
    def at_file(self) -> str:  # `at` without the number
        return f"{self.source}:" if self.has_lines else f"{self.source}:row "

    @property
    def at(self) -> str:
        return f"{self.at_file}{self.number}"


def read_file_rows(path: Path, source: str) -> Iterator[FileRow]:
    """The values of the file in order; blank lines are skipped. Raises DataError, with the line, for a damaged file."""
    if data_suffix(path) == ".parquet":
        yield from _parquet_rows(path, source)
        return
    try:
        with _open(path) as stream:
            is_array = data_suffix(path) in (".json", ".json.gz") and _first_byte(stream) == b"["
        with _open(path) as stream:
            yield from _array_rows(stream, source) if is_array else _line_rows(stream, source)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(
            f"{source} cannot be read to its end ({error}). Expected: a whole file, compressed where it is named .gz. "
            "Copy or download it again."
        ) from error


def data_suffix(path: Path) -> str | None:
    """The suffix that says how a data file is read; None for any other file.

    >>> data_suffix(Path("evol.v2.jsonl.gz")), data_suffix(Path("notes.txt"))
    ('.jsonl.gz', None)
    """
    return next((suffix for suffix in reversed(DATA_SUFFIXES) if path.name.lower().endswith(suffix)), None)


def _parquet_rows(path: Path, source: str) -> Iterator[FileRow]:
    import pyarrow.parquet  # here, because it takes a quarter of a second that JSON files need not spend

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as table:
            for batch in table.iter_batches(PARQUET_BATCH_ROWS):
                for value in batch.to_pylist():
                    number += 1
                    yield FileRow(source, number, value)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(
            f"{source} cannot be read after row {number} ({error}). Expected: a whole Parquet file. Copy it again."
        ) from error


def _open(path: Path) -> IO[bytes]:
    return cast("IO[bytes]", gzip.open(path)) if path.name.lower().endswith(".gz") else path.open("rb")


def _first_byte(stream: IO[bytes]) -> bytes:
    while chunk := stream.read(4096):
        if text := chunk.removeprefix(codecs.BOM_UTF8).lstrip():
            return text[:1]
    return b""


def _line_rows(stream: IO[bytes], source: str) -> Iterator[FileRow]:
    for number, line in enumerate(stream, start=1):
        if number == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
        if not line.strip():
            continue
        try:
            value = json.loads(line.decode("utf-8"))
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"{source}:{number} is not JSON ({error}). Expected: one object a line, in UTF-8. "
                "Fix or delete the line."
            ) from error
        yield FileRow(source, number, value, has_lines=True)


def _array_rows(stream: IO[bytes], source: str) -> Iterator[FileRow]:
    window = _JsonWindow(stream, source)
    window.take()  # the opening bracket
    number, separator = 0, "," if window.peek() != "]" else window.take()
    while separator == ",":
        number += 1
        yield FileRow(source, number, window.value())
        separator = window.take()
    if separator != "]":
        window.refuse(
            f"{separator!r} follows row {number}" if separator else f"the array breaks off after row {number}"
        )
    if window.peek():
        window.refuse("something follows the array")


class _JsonWindow:
    """A part of the text of a JSON file, extended as it is decoded: `_text[_position:]` comes next."""

    def __init__(self, stream: IO[bytes], source: str) -> None:
        self._stream, self._source = stream, source
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._json = json.JSONDecoder()
        self._text, self._position = "", 0
        self._line = 1  # the number of the line in which `_text` begins
        self._is_whole = False  # whether the stream has been read to its end

    def peek(self) -> str:
        """The next character that is no white space; empty at the end of the file. Does not move beyond it."""
        while True:
            character = self._text[self._position : self._position + 1]
            if character and character in " \t\r\n":
                self._position += 1
            elif character or not self._extend():
                return character

    def take(self) -> str:
        """As `peek`, and moves beyond the character."""
        character = self.peek()
        self._position += len(character)
        return character

    def value(self) -> object:
        """The JSON value that comes next."""
        self.peek()
        while True:
            try:
                value, end = self._json.raw_decode(self._text, self._position)
            except json.JSONDecodeError as error:
                is_cut = error.msg.startswith("Unterminated") or error.pos + CUT_VALUE_CHARACTERS > len(self._text)
                if is_cut and self._extend():
                    continue
                if is_cut:
                    self._position = len(self._text)
                    self.refuse("the file breaks off inside a row")
                self._position = error.pos
                self.refuse(f"not JSON: {error.msg}")
            except (ValueError, RecursionError) as error:
                self.refuse(f"not JSON that can be read: {error}")
            # A value that reaches the end of the window may be the beginning of a longer number.
            if end < len(self._text) or not self._extend():
                self._position = end
                return value

    def refuse(self, fault: str) -> NoReturn:
        passed = self._text[: self._position]
        if len(passed) == len(self._text):
            passed = passed.rstrip()  # a file that ends in a line feed breaks off on the line before it
        raise DataError(
            f"{self._source}:{self._line + passed.count(chr(10))}: {fault}. Expected: an array of objects, whole. Fix "
            "the file there, or copy it again."
        )

    def _extend(self) -> bool:
        """Drops the text that has been decoded and reads on; False at the end of the file."""
        if self._is_whole:
            return False
        # At least as much again as is held, so that the decoding of a long value is repeated a few times only.
        chunk = self._stream.read(max(CHUNK_BYTES, len(self._text) - self._position))
        self._is_whole = not chunk
        if chunk:
            self._line += self._text.count("\n", 0, self._position)
            self._text, self._position = self._text[self._position :], 0
        try:
            self._text += self._decoder.decode(chunk, final=self._is_whole)
        except UnicodeDecodeError as error:
            self._text += error.object[: error.start].decode("utf-8")
            self._position = len(self._text)
            self.refuse("not UTF-8")
        return not self._is_whole
