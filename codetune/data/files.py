"""Files of JSON -> their rows, streaming: arrays (`.json`), one object a line (`.jsonl`, `.json`), either gzipped.

A value that is not what a row should be is passed on as it is; only a file that is damaged is an error, with its line.
An array is decoded value by value from a window, so its size does not matter. Parquet and the hub are `tables.py`."""

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
# A cut at most so near to the end of what has been read can be what the decoder stumbles over ("\\u12", "fals").
TAIL = 16


@dataclass(frozen=True, slots=True)
class Row:
    place: str  # "FILE:", or "FILE:row " where a file has no lines
    number: int  # from 1
    value: object

    @property
    def at(self) -> str:
        return f"{self.place}{self.number}"


def read_json_rows(path: Path, shown: str) -> Iterator[Row]:
    """The values of the array, or of the lines, in order; blank lines are passed over."""
    try:
        with _open(path) as stream:
            is_array = data_suffix(path) in (".json", ".json.gz") and _first_byte(stream) == b"["
        with _open(path) as stream:
            yield from _array_rows(stream, shown) if is_array else _line_rows(stream, shown)
    except (OSError, EOFError, zlib.error) as why:
        raise DataError(
            f"{shown} cannot be read to its end ({why}). Expected: a whole file, compressed where it is named .gz. "
            "Copy or download it again."
        ) from why


def data_suffix(path: Path) -> str | None:
    """Which kind of data file the name says; None where it is none.

    >>> data_suffix(Path("evol.v2.jsonl.gz")), data_suffix(Path("notes.txt"))
    ('.jsonl.gz', None)
    """
    return next((suffix for suffix in reversed(DATA_SUFFIXES) if path.name.lower().endswith(suffix)), None)


def _open(path: Path) -> IO[bytes]:
    return cast("IO[bytes]", gzip.open(path)) if path.name.lower().endswith(".gz") else path.open("rb")


def _first_byte(stream: IO[bytes]) -> bytes:
    while chunk := stream.read(4096):
        if text := chunk.removeprefix(codecs.BOM_UTF8).lstrip():
            return text[:1]
    return b""


def _line_rows(stream: IO[bytes], shown: str) -> Iterator[Row]:
    for number, line in enumerate(stream, start=1):
        if number == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
        if not line.strip():
            continue
        try:
            value = json.loads(line.decode("utf-8"))
        except (ValueError, RecursionError) as why:
            raise DataError(
                f"{shown}:{number} is not JSON ({why}). Expected: one object a line, in UTF-8. Mend or delete the line."
            ) from why
        yield Row(f"{shown}:", number, value)


def _array_rows(stream: IO[bytes], shown: str) -> Iterator[Row]:
    window = _Window(stream, shown)
    window.take()  # the bracket that made it an array
    number = 0
    if window.peek() == "]":
        window.take()
    else:
        mark = ","
        while mark == ",":
            number += 1
            yield Row(f"{shown}:row ", number, window.value())
            mark = window.take()
        if mark != "]":
            window.refuse(f"{mark!r} follows row {number}" if mark else f"the array breaks off after row {number}")
    if window.peek():
        window.refuse("something follows the array")


class _Window:
    """A part of the text of a JSON file that moves along: `text[position:]` is what comes next."""

    def __init__(self, stream: IO[bytes], shown: str) -> None:
        self._stream = stream
        self._shown = shown
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._json = json.JSONDecoder()
        self._text = ""
        self._position = 0
        self._line = 1  # of the first character of the text
        self._is_whole = False  # nothing more comes from the stream

    def peek(self) -> str:
        """The next character that is no white space, without taking it; empty at the end."""
        while True:
            rest = self._text[self._position : self._position + 1]
            if rest and rest not in " \t\r\n":
                return rest
            if rest:
                self._position += 1
            elif not self._extend():
                return ""

    def take(self) -> str:
        letter = self.peek()
        self._position += len(letter)
        return letter

    def value(self) -> object:
        """The JSON value that comes next."""
        self.peek()
        while True:
            try:
                value, end = self._json.raw_decode(self._text, self._position)
            except json.JSONDecodeError as why:
                is_cut = why.msg.startswith("Unterminated") or why.pos + TAIL > len(self._text)
                if is_cut and self._extend():
                    continue
                if is_cut:
                    self._position = len(self._text)
                    self.refuse("the file breaks off inside a row")
                self._position = why.pos
                self.refuse(f"not JSON: {why.msg}")
            except (ValueError, RecursionError) as why:
                self.refuse(f"not JSON that can be read: {why}")
            # A value that reaches the end of the window may be the beginning of a longer number.
            if end < len(self._text) or not self._extend():
                self._position = end
                return value

    def refuse(self, fault: str) -> NoReturn:
        passed = self._text[: self._position]
        if len(passed) == len(self._text):
            passed = passed.rstrip()  # a file that ends in a line feed breaks off on the line before it
        raise DataError(
            f"{self._shown}:{self._line + passed.count(chr(10))}: {fault}. Expected: an array of objects, whole. Mend "
            "the file there, or copy it again."
        )

    def _extend(self) -> bool:
        """Drops what has been taken and reads on; False at the end of the file."""
        if self._is_whole:
            return False
        # At least as much again, so that a long value is not decoded over and over.
        chunk = self._stream.read(max(CHUNK_BYTES, len(self._text) - self._position))
        self._is_whole = not chunk
        if chunk:
            self._line += self._text.count("\n", 0, self._position)
            self._text, self._position = self._text[self._position :], 0
        try:
            self._text += self._decoder.decode(chunk, final=self._is_whole)
        except UnicodeDecodeError as why:
            self._text += why.object[: why.start].decode("utf-8")
            self._position = len(self._text)
            self.refuse("not UTF-8")
        return not self._is_whole
